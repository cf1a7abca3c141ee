"""A tagger in ONNX that is small enough to be written byte by byte, without a library of that format.

Its probabilities are sums of an image's mean levels of blue, green and red over 255, times ``weights``.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

SIDE = 8
TAGS = (
    ("general", "9"),
    ("red_dress", "0"),
    ("blue_hair", "0"),
    ("x_x", "0"),
    ("some_one_(series)", "4"),
    ("old", "3"),
)
"""Tags and their categories: a rating, three general ones, a character, and one that captions never have."""
WEIGHTS = ((1, 0, 1, 0, 0, 1), (1, 0, 0, 1, 0, 1), (1, 1, 0, 0, 1, 1))
"""For blue, green and red: the weight of each tag."""
_FLOAT, _INT, _INTS = 1, 2, 7


def write_tiny_tagger(
    folder: Path, tags: Sequence[tuple[str, str]] = TAGS, batch: int | str = "N", outside: str = ""
) -> Path:
    """Write ``model.onnx`` and ``selected_tags.csv``; return the folder.

    ``batch`` is the number of images that the model takes at once, a name for any. ``outside`` is a file from which the
    model would read its weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{number},{name},{category},7" for number, (name, category) in enumerate(tags)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]))
    (folder / "model.onnx").write_bytes(_model(batch, outside))
    return folder


def _model(batch: int | str, outside: str) -> bytes:
    """A ModelProto: the mean over rows and columns, and a product with the weights."""
    mean = _node("ReduceMean", ["image"], "mean", _attribute("axes", ints=(1, 2)), _attribute("keepdims", number=0))
    product = _node("MatMul", ["mean", "weights"], "odds")
    count = len(WEIGHTS[0])
    graph = b"".join(
        [
            _bytes(1, mean), _bytes(1, product), _bytes(2, b"tagger"), _bytes(5, _weights(outside)),
            _bytes(11, _value("image", batch, SIDE, SIDE, 3)), _bytes(12, _value("odds", batch, count)),
        ]
    )  # fmt: skip
    return _number(1, 8) + _bytes(8, _bytes(1, b"") + _number(2, 13)) + _bytes(7, graph)


def _weights(outside: str) -> bytes:
    head = _number(1, len(WEIGHTS)) + _number(1, len(WEIGHTS[0])) + _number(2, _FLOAT) + _bytes(8, b"weights")
    if outside:
        return head + _bytes(13, _bytes(1, b"location") + _bytes(2, outside.encode())) + _number(14, 1)
    return head + _bytes(9, b"".join(struct.pack("<f", weight / 255) for row in WEIGHTS for weight in row))


def _node(kind: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    named = b"".join(_bytes(1, name.encode()) for name in inputs)
    settings = b"".join(_bytes(5, attribute) for attribute in attributes)
    return named + _bytes(2, output.encode()) + _bytes(4, kind.encode()) + settings


def _attribute(name: str, ints: Sequence[int] = (), number: int | None = None) -> bytes:
    values = b"".join(_number(8, value) for value in ints) if number is None else _number(3, number)
    return _bytes(1, name.encode()) + values + _number(20, _INTS if number is None else _INT)


def _value(name: str, *shape: int | str) -> bytes:
    sizes = (_number(1, size) if isinstance(size, int) else _bytes(2, size.encode()) for size in shape)
    tensor = _number(1, _FLOAT) + _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
