"""Changes of valid files that fuzzing makes: those that know a file's structure, and blind ones.

``mutate_folder`` changes one file of a folder by the kind that its suffix names. Everything is decided by the given
random generator, so that a case can be made anew from its number.
"""

import json
import random
import struct
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

DEEP, ENDLESS, FAR = "@deep@", "@endless@", "@far@"
"""Strings that stand for what no JSON library writes: nesting without end, thousands of digits, 1e999."""
RAW = {DEEP: "[" * 20_000, ENDLESS: "9" * 5_000, FAR: "1e999"}
NUMBERS: list[Any] = [
    0, -1, 1, 2, 7, 255, 65_536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**62, 2**63, -(2**63), 2**64, 10**30,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS = [
    "", " ", "a", "0", "-1", "nan", "1e999", "true", "null", "\0", "a\0b", "\ud800", "a\udfffb", "\u202eevil", "\n",
    "a\r\nb",
    "\x1b[2J", "\ufeff", "e\u0301", "\u0130", "\u4e00" * 300, "x" * 5_000, "../../../etc/passwd", "/etc/passwd", "..",
    ".", "~",
    "~nobody/x", "C:\\x", "\\\\host\\x", "CON", "a/b", "x. ", "<img src=x onerror=alert(1)>", "%s%n{}{0.__class__}",
    "F32", "F64", "C64", "F8_E4M3", "BOOL", "I64", "U8", "F3", "float16", "v_prediction", "pocket", "LORA",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"": None}, ["a", 1], [0] * 300, {"a": {"b": {"c": []}}}, DEEP, ENDLESS,
    FAR,
    *NUMBERS, *TEXTS,
]  # fmt: skip
PIECES = [
    "(", ")", "[", "]", ":", "<lora:", ">", "<", "\\", "BREAK", " ", "1.2", ",", "=", "te=", "\u00e9", "\n", "nan",
    "-", "+",
    "\"", "'", "#", "{", "}", ".", "Steps: ", "Size: ", "x", "Seed: ", "Negative prompt: ", "9" * 30, "1-5", "(+2)",
    "[5]",
    "e9", "\t", "\r", "|", ";", "//", "0", "\u2028", "\U0001f600", "a" * 400,
]  # fmt: skip


def mutate_folder(folder: Path, rng: random.Random) -> str:
    """Change one file below ``folder``, or its name; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = rng.choice(files)
    by_kind = STRUCTURED.get(path.suffix.lower())
    change = by_kind if by_kind and rng.random() < 0.75 else mutate_bytes
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path.write_bytes(change(path.read_bytes(), rng))
    return f"{path.relative_to(folder)}: {change.__name__}"


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, move, splice or overwrite bytes, without regard to what they mean."""
    data = bytearray(content)
    start, length = rng.randrange(len(data) + 1), min(len(data), rng.choice((1, 2, 4, 8, 64, 1000)))
    piece = bytes(data[start : start + length])
    match rng.randrange(7):
        case 0:
            for _ in range(rng.choice((1, 3, 20)) if data else 0):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[start:]
        case 2:
            del data[start : start + length]
        case 3:
            data[start:start] = piece * rng.choice((1, 2, 50))
        case 4:
            data[start : start + length] = rng.randbytes(length)
        case 5:
            fields = [struct.pack(form, value) for form in ("<H", ">H", "<I", ">I", "<Q") for value in (0, 1, 255)]
            fields += (
                [bytes(size) for size in (1, 4)] + [b"\xff" * size for size in (1, 2, 4, 8)] + [b"\x7f\xff\xff\xff"]
            )
            field = rng.choice(fields)
            data[start : start + len(field)] = field
        case 6:
            data = bytearray(
                rng.choice((b"", b"\0", b"\xff\xfe" + content, b"\xef\xbb\xbf" + content, content + content))
            )
    return bytes(data)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Change one place of a JSON value."""
    places = [*_places(value)]
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0 | 1 | 2:
            holder[key] = _like(holder[key], rng)
        case 3:
            del holder[key]
        case 4:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
        case 5 if isinstance(holder, dict):
            holder[str(rng.choice(TEXTS))] = holder[key]
        case _:
            holder[key] = rng.choice(places)[0] if rng.random() < 0.2 else rng.choice(VALUES)
            return json.loads(json.dumps(_unlooped(value)))
    return value


def _like(value: Any, rng: random.Random) -> Any:
    """Return another value, which is often of the same kind."""
    kinds = {bool: [True, False], int: NUMBERS, float: NUMBERS, str: TEXTS}
    return rng.choice(kinds.get(type(value), VALUES) if rng.random() < 0.6 else VALUES)


def _places(value: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    keys = [*value] if isinstance(value, dict) else [*range(len(value))][:50] if isinstance(value, list) else []
    inner = [place for key in keys for place in _places(value[key], depth + 1)] if depth < 8 else []
    return [(value, key) for key in keys] + inner


def _unlooped(value: Any, depth: int = 0) -> Any:
    """Return ``value`` cut off at some depth: one that holds itself cannot be written."""
    if isinstance(value, dict):
        return {key: _unlooped(inner, depth + 1) for key, inner in value.items()} if depth < 12 else {}
    if isinstance(value, list):
        return [_unlooped(inner, depth + 1) for inner in value] if depth < 12 else []
    return value


def write_json(value: Any, rng: random.Random) -> bytes:
    """Return ``value`` as JSON, sometimes with a key twice, and with what stands for raw text in it."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9 or "\\ud" in json.dumps(value))
    if text.startswith("{") and len(text) > 2 and rng.random() < 0.1:
        text = f"{text[:-1]}, {text[1:]}"
    for mark, raw in RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode()


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Change one value of a JSON file."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(content, rng)
    return write_json(mutate_value(value, rng), rng)


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Change one line of a file of JSON lines, or their order."""
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            rng.shuffle(lines)
        case 1:
            lines.insert(number, lines[rng.randrange(len(lines))])
        case _:
            lines[number] = mutate_json(lines[number], rng)
    return b"\n".join(lines)


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change a value of the header, one of the JSON texts in its metadata, or the frame around it."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]
        entry = header[rng.choice(names)]
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return mutate_bytes(content, rng)
    body = content[8 + length :]
    match rng.randrange(7):
        case 0:
            header = mutate_value(header, rng)
        case 1:
            _mutate_metadata(header, rng)
        case 2 if isinstance(entry, dict):
            name = rng.choice(("dtype", "shape", "data_offsets"))
            entry[name] = _like(entry.get(name), rng) if rng.random() < 0.5 else mutate_value(entry.get(name), rng)
        case 3 if isinstance(entry, dict):
            body += _consistent(entry, len(body), rng)
        case 4 if isinstance(other := header[rng.choice(names)], dict) and isinstance(entry, dict):
            entry["data_offsets"] = other.get("data_offsets")
        case 5:
            old = rng.choice(names)
            header[_other_key(old, rng)] = header.pop(old) if rng.random() < 0.7 else header[old]
        case _:
            length = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
            return struct.pack("<Q", max(0, length)) + content[8:]
    text = write_json(header, rng)
    return struct.pack("<Q", len(text)) + text + body


SHAPES: list[list[int]] = [
    [], [0], [1], [2], [8], [0, 8], [8, 0], [2, 8], [8, 2], [1, 1], [2, 2], [2, 2, 2], [2, 8, 1, 1], [2, 2, 3, 3], [1,
    8],
    [2, 8, 3], [1] * 9, [0, 2**62, 2**62], [0, 2**31], [2**20, 0],
]  # fmt: skip
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U16": 2,
         "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}  # fmt: skip


def _consistent(entry: dict[str, Any], end: int, rng: random.Random) -> bytes:
    """Give a tensor another shape and type, and return its bytes, which go to the file's end: all of it is in order."""
    shape, dtype = rng.choice(SHAPES), rng.choice([*SIZES])
    size = SIZES[dtype]
    for side in shape:
        size *= side
    entry |= {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
    return rng.choice((bytes(size), b"\x3f" * size, b"\xff" * size, rng.randbytes(size)))


def _other_key(key: str, rng: random.Random) -> str:
    parts = key.split(".")
    ends = ["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "hada_w1_a", "hada_t1",
    "lokr_w1",
            "lokr_w2_a", "diff", "diff_b", "weight", "on_input", "lora_A.weight", "lora_magnitude_vector",
            "oft_blocks"]  # fmt: skip
    return rng.choice(
        (".".join([*parts[:1], rng.choice(ends)]), key.replace("_", ".", 1), f"{key}.x", rng.choice(TEXTS))
    )


def _mutate_metadata(header: dict[str, Any], rng: random.Random) -> None:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not metadata:
        header["__metadata__"] = rng.choice(VALUES)
        return
    key = rng.choice([*metadata])
    try:
        inner = json.loads(metadata[key])
    except (ValueError, TypeError, RecursionError):
        metadata[key] = rng.choice(VALUES if rng.random() < 0.3 else TEXTS)
    else:
        text = write_json(mutate_value(inner, rng), rng).decode()
        metadata[key] = text if len(text) < 15_000 else "[" * 3_000


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Change a text by pieces that mean something in prompts, axes, infotexts and TOML."""
    text = content.decode("utf-8", "replace")
    lines = text.split("\n")
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    match rng.randrange(7):
        case 0 | 1:
            text = text[:start] + "".join(rng.choices(PIECES, k=rng.choice((1, 2, 8)))) + text[start:]
        case 2:
            text = text[:start] + rng.choice(PIECES) + text[end:]
        case 3:
            text = text[:start] + rng.choice(TEXTS) + text[end:]
        case 4:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            text = "\n".join(lines)
        case 5:
            number = rng.randrange(len(lines))
            name, sign, _ = lines[number].partition("=")
            value = rng.choice(
                [*map(str, NUMBERS), *(json.dumps(text) for text in TEXTS), "[]", "{}", "[" * 300, "true"]
            )
            lines[number] = f"{name}{sign} {value}"
            text = "\n".join(lines)
        case _:
            text = text[:start] + text[start:end] * rng.choice((2, 30)) + text[end:]
    return text[:200_000].encode("utf-8", "surrogatepass")


def mutate_toml(content: bytes, rng: random.Random) -> bytes:
    """Change one value of a TOML file, or its text."""
    try:
        values = tomllib.loads(content.decode())
        return tomli_w.dumps(mutate_value(values, rng)).encode() if rng.random() < 0.6 else mutate_text(content, rng)
    except (ValueError, TypeError, AttributeError, RecursionError):  # TOML has no null, and no halves of pairs.
        return mutate_text(content, rng)


def mutate_png(content: bytes, rng: random.Random) -> bytes:
    """Change one chunk of a PNG, or put another one in; its checksum is right most of the time."""
    chunks = _chunks(content)
    if not chunks:
        return mutate_bytes(content, rng)
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    match rng.randrange(6):
        case 0:
            width, height = (rng.choice((0, 1, 31, 64, 2**15, 2**31 - 1, 2**32 - 1)) for _ in range(2))
            rest = bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5))
            head = (struct.pack(">II", width, height) + (rest if rng.random() < 0.5 else chunks[0][1][8:]))[:13]
            chunks[0] = chunks[0][0], head
        case 1:
            chunks.insert(max(1, number), rng.choice(_odd_chunks()))
        case 2:
            chunks[number] = kind, mutate_bytes(data, rng)
        case 3:
            del chunks[number]
        case 4:
            chunks.insert(number, chunks[rng.randrange(len(chunks))])
        case _:
            chunks[number] = rng.choice((b"IDAT", b"fdAT", b"PLTE", b"tRNS", b"gAMA", b"abcd", b"\0\0\0\0")), data
    wrong = rng.randrange(len(chunks)) if chunks and rng.random() < 0.1 else -1
    return PNG + b"".join(_chunk(*chunk, n == wrong) for n, chunk in enumerate(chunks))


PNG = b"\x89PNG\r\n\x1a\n"


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while content.startswith(PNG) and at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _chunk(kind: bytes, data: bytes, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def _odd_chunks() -> list[tuple[bytes, bytes]]:
    bomb = zlib.compress(bytes(20_000_000), 9)
    exif = b"II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\xff\0\0\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0"
    return [
        (b"tEXt", b"parameters\0a house\nSteps: 3, Seed: 1, Size: 9x9"), (b"tEXt", b"\0"), (b"tEXt", b"x" * 200),
        (b"zTXt", b"parameters\0\0" + bomb), (b"zTXt", b"parameters\0\7x"), (b"iCCP", b"icc\0\0" + bomb),
        (b"iTXt", b"parameters\0\1\0\0\0" + bomb), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>"),
        (b"iTXt", b"parameters\0\0\0\0\0\xff\xfe"), (b"eXIf", exif), (b"eXIf", exif[:12]), (b"eXIf",
        b"MM\0*" + bytes(40)),
        (b"acTL", struct.pack(">II", 2**31 - 1, 0)), (b"acTL", b"\0"), (b"fcTL", bytes(26)), (b"PLTE", b"\1" * 7),
        (b"tRNS", b"\0" * 300), (b"gAMA", bytes(4)), (b"pHYs", b"\0\0"), (b"IEND", b""), (b"IDAT", bomb[:500]),
    ]  # fmt: skip


def mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """Change one field of a zip's records: a size, an offset, a flag, a method, a count, a name's length."""
    data = bytearray(content)
    marks = [b"PK\3\4", b"PK\1\2", b"PK\5\6"]
    places = [at for mark in marks for at in _occurrences(content, mark)]
    if not places:
        return mutate_bytes(content, rng)
    at = rng.choice(places)
    offset, size = at + rng.randrange(4, 44, 2), rng.choice((2, 2, 4))
    value = rng.choice((0, 1, 8, 9, 12, 14, 99, 0x7FFF, 0xFFFF, 0x8000, 2**31 - 1, 2**32 - 1, len(content), at))
    data[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(data)


def _occurrences(content: bytes, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + 1)
    return found


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutate_json, ".jsonl": mutate_lines, ".safetensors": mutate_safetensors, ".png": mutate_png,
    ".zip": mutate_zip,
    ".txt": mutate_text, ".caption": mutate_text, ".toml": mutate_toml, ".taken": mutate_json, ".asked": mutate_json,
}  # fmt: skip
