"""Zip files and pictures that are made to cost time, memory or disk, or to lead out of their folder."""

import io
import os
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sdlora.data.images import inspect_image, open_image
from sdlora.data.projects import Project
from sdlora.errors import SdloraError
from sdlora.generation.images import embedded_texts
from tests.support.fuzz_readers import peak_memory
from tests.support.hostile_files import Maker, content, contents, picture_bomb, png, text_bomb, zip_of
from tests.support.images import noise_image
from tests.support.mutations import PNG, _chunk, _chunks

SECONDS, MEMORY = 5.0, 300 << 20
PIECES = 400_000
"""Empty pieces of a picture of about 2 MB; what is uploaded may be 25 times as large."""


def measured(read: Callable[[], object]) -> object:
    """Return what ``read`` returns, or its refusal; it takes little time and memory."""
    before, start = peak_memory(reset=True), time.process_time()
    try:
        result = read()
    except SdloraError as error:
        result = error
    assert time.process_time() - start < SECONDS
    assert peak_memory() - before < MEMORY
    return result


def patched(entries: dict[str, bytes], changes: dict[tuple[bytes, int], bytes], **options: object) -> Maker:
    """A zip with other bytes at some offset of every record of a kind."""

    def make(path: Path) -> None:
        zip_of(entries, **options)(path)
        data = bytearray(path.read_bytes())
        for (mark, offset), field in changes.items():
            at = data.find(mark)
            while at >= 0:
                data[at + offset : at + offset + len(field)] = field
                at = data.find(mark, at + 1)
        path.write_bytes(data)

    return make


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def overlapping(path: Path) -> None:
    """Hundreds of entries that are all the same bytes of the file."""
    zip_of({"000.bmp": bytes(5_000_000)}, compression=zipfile.ZIP_DEFLATED)(path)
    data = path.read_bytes()
    at, end = data.index(CENTRAL), data.index(END)
    records = b"".join(data[at:end].replace(b"000.bmp", f"{number:03}.bmp".encode()) for number in range(300))
    tail = bytearray(data[end:])
    tail[8:12], tail[12:16] = struct.pack("<HH", 300, 300), struct.pack("<I", len(records))
    path.write_bytes(data[:at] + records + tail)


def zip64(size: int, offset: int) -> Maker:
    """A zip whose sizes and places of 64 bits lie."""

    def make(path: Path) -> None:
        zip_of({"a.png": png()})(path)
        data = path.read_bytes()
        at, end = data.index(CENTRAL), data.index(END)
        record = bytearray(data[at:end])
        extra = struct.pack("<HHQQQ", 1, 24, size, size, offset)
        record[20:28], record[42:46] = b"\xff" * 8, b"\xff" * 4
        record[30:32] = struct.pack("<H", len(extra))
        tail = bytearray(data[end:])
        tail[12:16] = struct.pack("<I", len(record) + len(extra))
        path.write_bytes(data[:at] + record + extra + tail)

    return make


def link(target: str) -> Maker:
    entry = zipfile.ZipInfo("link.png")
    entry.external_attr = 0o120777 << 16
    return zip_of({entry: target.encode()})


def packed(make: Maker) -> Maker:
    """A zip of one picture."""

    def pack(path: Path) -> None:
        inside = path.with_name("inside.png")
        make(inside)
        zip_of({"a.png": inside.read_bytes()})(path)
        inside.unlink()

    return pack


NAMES = ["../a.png", "../../../../tmp/evil.png", "/etc/evil.png", "C:\\evil.png", "..\\..\\evil.png",
"\\\\host\\x\\b.png",
         "CON.png", "a.png ", "a.png.", "~/.bashrc.png", "c.png:stream", "./././d.png", "a/../../e.png"]  # fmt: skip
ZIPS: dict[str, tuple[Maker, str]] = {
    "a zip in a zip, under a picture's name": (
        lambda path: zip_of({"a.png": zip_bytes({"b.png": png()})})(path), "a.png is a zip file"
    ),
    "zips in zips": (lambda path: nested(path, 40), "is an archive inside the zip"),
    "overlapping entries": (overlapping, "lie upon one another|times its size"),
    "smaller than it says": (patched({"a.png": png()}, {(CENTRAL, 24): b"\xff\xff\0\0"}), ""),
    "larger than it says": (patched({"a.png": bytes(10**6)}, {(CENTRAL, 24): b"\x10\0\0\0", (LOCAL, 22): b"\x10\0\0\0"},
                                    compression=zipfile.ZIP_DEFLATED), "damaged|declares"),
    "packed larger than the file": (patched({"a.png": png()}, {(CENTRAL, 20): b"\xff\xff\xff\x7f"}),
    ""),
    "two gigabytes in one entry": (patched({"a.png": png()}, {(CENTRAL, 24): b"\0\0\0\x70"}), "times its size"),
    "many empty entries": (zip_of({f"{number}.png": b"" for number in range(4001)}), "holds 4001 files"),
    "huge names": (zip_of({f"{number}{'x' * 60_000}.png": b"" for number in range(50)}), "is empty"),
    "names without end": (zip_of({f"{number}{'x' * 60_000}.png": b"" for number in range(80)}), "lists more files"),
    "a password": (patched({"a.png": png()}, {(CENTRAL, 8): b"\1\0", (LOCAL, 6): b"\1\0"}), "locked with a password"),
    "strong encryption": (patched({"a.png": png()}, {(CENTRAL, 8): b"\x40\0", (LOCAL, 6): b"\x40\0"}), "damaged"),
    "patched data": (patched({"a.png": png()}, {(CENTRAL, 8): b"\x20\0", (LOCAL, 6): b"\x20\0"}), "damaged"),
    "sizes of 64 bits": (zip64(2**63, 0), "unpacks to"),
    "a place of 64 bits": (zip64(100, 2**64 - 1), "damaged|lie upon"),
    "a place beyond the file": (zip64(100, 2**40), "damaged"),
    "deflate64": (patched({"a.png": png()}, {(CENTRAL, 10): b"\x09\0"}), "packed in a way"),
    "no method that there is": (patched({"a.png": png()}, {(CENTRAL, 10): b"\x63\0"}), "packed in a way"),
    "another method inside": (patched({"a.png": png()}, {(LOCAL, 8): b"\x0c\0"}), ""),
    "a version from the future": (patched({"a.png": png()}, {(CENTRAL, 6): b"\xff\0"}), "damaged"),
    "a link to a file": (link("/etc/passwd"), "is a link, not a file"),
    "one name twice": (
        lambda path: twice(path, "a.png", "a.png"), ""
    ),
    "names that differ by case alone": (lambda path: twice(path, "a.png", "A.PNG"), ""),
    "names of all kinds": (lambda path: twice(path, *NAMES), ""),
    "a picture bomb": (packed(picture_bomb), "over 67 million"),
    "texts that unpack to more": (packed(text_bomb), "text beside its pixels"),
}  # fmt: skip


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, inside in entries.items():
            archive.writestr(name, inside)
    return file.getvalue()


def nested(path: Path, depth: int) -> None:
    inside = zip_bytes({"a.bmp": bytes(10**6)})
    for _ in range(depth):
        inside = zip_bytes({"inner.zip": inside, "again.zip": inside})[:2_000_000]
    zip_of({"inner.zip": inside})(path)


def twice(path: Path, *names: str) -> None:
    """A zip of so many different pictures, each with a caption, under names as they are given."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, png(noise_image(seed=number)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", ZIPS)
def test_a_zip_made_to_harm_is_told_and_leaves_pictures_of_its_project_alone(tmp_path: Path, case: str) -> None:
    make, reason = ZIPS[case]
    make(tmp_path / "bomb.zip")
    project = Project(tmp_path / "data", "mine")
    outside = contents(tmp_path)
    added = measured(lambda: project.add([tmp_path / "bomb.zip"]))
    said = " ".join(getattr(added, "remarks", (str(added),)))
    assert re.search(reason, said), said
    assert all(len(line) <= 600 and line.isprintable() for line in getattr(added, "remarks", ()))
    new = {path for path in contents(tmp_path) if path not in outside and not path.endswith(".lock")}
    assert all(path.startswith(str(project.folder)) for path in new)
    assert len(new) == len(project.images()) == added.images, (new, said)
    assert all(path.name[:3].isdecimal() and path.suffix in (".png",) for path in project.images())
    assert sum(contents(tmp_path / "data").values()) < 1_000_000


def test_pictures_of_one_name_or_of_names_that_differ_by_case_are_all_kept(tmp_path: Path) -> None:
    left_out = {"~/.bashrc.png", "c.png:stream"}  # Hidden, and of no picture's ending.
    for number, names in enumerate((["a.png", "a.png"], ["a.png", "A.PNG"], NAMES)):
        twice(tmp_path / "pack.zip", *names)
        project = Project(tmp_path, f"p{number}")
        assert project.add([tmp_path / "pack.zip"]).images == len([name for name in names if name not in left_out])


def test_pictures_and_captions_find_each_other_without_what_windows_drops_of_names(tmp_path: Path) -> None:
    pictures = {"10_sks dog. /a.png.": png(), "10_sks dog/b.png ": png(noise_image(seed=1))}
    zip_of(pictures | {"10_sks dog/a.txt": b"one", "10_sks dog . /b.txt..": b"two"})(tmp_path / "pack.zip")
    project = Project(tmp_path, "mine")
    added = project.add([tmp_path / "pack.zip"])
    assert (added.images, added.remarks) == (2, ())
    assert sorted(map(project.caption, project.images())) == ["one", "two"]
    assert added.folder_words is not None and added.folder_words.class_name == "dog"


def png_with(*extra: tuple[bytes, bytes], times: int = 1) -> bytes:
    """A small PNG with more chunks behind its head."""
    first, *rest = _chunks(png())
    return (
        PNG + _chunk(*first) + b"".join(_chunk(*chunk) for chunk in extra) * times + b"".join(_chunk(*c) for c in rest)
    )


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    noise_image().save(file, "JPEG", **options)
    return file.getvalue()


def scans(path: Path) -> None:
    """A JPEG of 64 million pixels whose last scan, of 95 bytes, comes a thousand times more."""
    file = io.BytesIO()
    Image.new("L", (8000, 8000)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    at = whole.rindex(b"\xff\xda")
    path.write_bytes(whole[:at] + whole[at:-2] * 1000 + b"\xff\xd9")


def comments(path: Path) -> None:
    """A GIF of empty comments."""
    file = io.BytesIO()
    noise_image().save(file, "GIF")
    whole = file.getvalue()
    at = 13 + 3 * (2 << (whole[10] & 7))
    path.write_bytes(whole[:at] + b"\x21\xfe\x01a\0" * PIECES + whole[at:])


def frames(kind: str, number: int) -> Maker:
    def make(path: Path) -> None:
        first, *others = (noise_image(32, 32, seed) for seed in range(8))
        first.save(path, kind, save_all=True, append_images=others * (number // 8))

    return make


def strips(count: int, length: int, compression: int = 1) -> Maker:
    """A TIFF of 64 x 64 grey pixels that says so much of its strips."""

    def make(path: Path) -> None:
        body = zlib.compress(bytes(50_000_000), 9) if compression == 8 else bytes(4096)
        table = 8 + 2 + 9 * 12 + 4
        offsets, lengths = table, table + 4 * count
        start = lengths + 4 * count
        entries = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
                   (273, 4, count, offsets if count > 1 else start), (277, 3, 1, 1), (278, 4, 1, max(1, 64 // count)),
                   (279, 4, count, lengths if count > 1 else length)]  # fmt: skip
        head = b"II*\0" + struct.pack("<IH", 8, len(entries))
        head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
        path.write_bytes(head + struct.pack("<I", start) * count + struct.pack("<I", length) * count + body)

    return make


BOMB = zlib.compress(bytes(100_000_000), 9)
PICTURES: dict[str, Maker] = {
    "zTXt that unpacks to 100 MB.png": content(png_with((b"zTXt", b"parameters\0\0" + BOMB))),
    "iTXt that unpacks to 100 MB.png": content(png_with((b"iTXt", b"parameters\0\1\0\0\0" + BOMB))),
    "a colour profile of 100 MB.png": content(png_with((b"iCCP", b"icc\0\0" + BOMB))),
    "pixels that unpack to 100 MB more.png": content(png_with((b"IDAT", BOMB))),
    "empty chunks.png": content(png_with((b"abCd", b""), times=PIECES)),
    "empty texts.png": content(png_with((b"tEXt", b"a\0"), times=PIECES)),
    "empty pixels.png": content(png_with((b"IDAT", b""), times=PIECES)),
    "frames without end.png": content(png_with((b"acTL", struct.pack(">II", 2**31 - 1, 0)))),
    "empty segments.jpg": content(jpeg()[:2] + b"\xff\xec\0\2" * PIECES + jpeg()[2:]),
    "scans.jpg": scans,
    "comments.gif": comments,
    "two hundred frames.gif": frames("GIF", 200),
    "two hundred frames.webp": frames("WEBP", 200),
    "two hundred frames.tiff": frames("TIFF", 200),
    "a strip of 2 GB.tiff": strips(1, 2**31 - 1),
    "a strip of 4 GB.tiff": strips(1, 2**32 - 1),
    "many strips.tiff": strips(60_000, 2**31 - 1),
    "a packed strip of 50 MB.tiff": strips(1, 48_000, 8),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_made_to_cost_time_or_memory_costs_little(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    PICTURES[name](path)
    before = contents(tmp_path)
    for read in (inspect_image, open_image, embedded_texts):
        result = measured(lambda read=read: read(path))
        if isinstance(result, SdloraError):
            assert len(str(result).splitlines()) == 1 and len(str(result)) < 600
    assert contents(tmp_path) == before


def test_a_photograph_of_many_pieces_is_taken(tmp_path: Path) -> None:
    """The bounds are far from what programs write: a progressive JPEG, a PNG whose chunks are as small as any."""
    noise_image(600, 400).save(tmp_path / "a.jpg", progressive=True)
    pixels = b"".join(data for kind, data in _chunks(png(noise_image(600, 400))) if kind == b"IDAT")
    first = _chunks(png(noise_image(600, 400)))[0]
    pieces = [pixels[at : at + 64] for at in range(0, len(pixels), 64)]
    data = PNG + _chunk(*first) + b"".join(_chunk(b"IDAT", piece) for piece in pieces) + _chunk(b"IEND", b"")
    (tmp_path / "b.png").write_bytes(data)
    assert len(pieces) > 3_000
    for name in ("a.jpg", "b.png"):
        assert inspect_image(tmp_path / name).size == (600, 400)
        assert open_image(tmp_path / name).rgb.size == (600, 400)


@pytest.mark.skipif(os.name == "nt", reason="memory is read from /proc")
def test_grey_of_16_bits_is_scaled_in_little_memory(tmp_path: Path) -> None:
    Image.new("I;16", (8192, 2048)).save(tmp_path / "a.png")
    before = peak_memory(reset=True)
    open_image(tmp_path / "a.png")
    assert peak_memory() - before < 200 << 20
