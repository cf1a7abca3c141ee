"""A tagger in ONNX that is small enough to be written byte by byte, without a library of that format.

Its probabilities are sums of an image's mean levels of blue, green and red over 255, times ``weights``.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from tests.support import onnx_bytes

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
    """The mean over rows and columns, and a product with the weights."""
    mean = onnx_bytes.node(
        "ReduceMean", ["image"], "mean", onnx_bytes.attribute("axes", ints=(1, 2)),
        onnx_bytes.attribute("keepdims", number=0),
    )  # fmt: skip
    product = onnx_bytes.node("MatMul", ["mean", "weights"], "odds")
    taken = onnx_bytes.value("image", batch, SIDE, SIDE, 3)
    return onnx_bytes.model(
        13, [mean, product], [_weights(outside)], taken, onnx_bytes.value("odds", batch, len(WEIGHTS[0]))
    )  # fmt: skip


def _weights(outside: str) -> bytes:
    head = onnx_bytes.tensor_head("weights", len(WEIGHTS), len(WEIGHTS[0]))
    if outside:
        location = onnx_bytes.bytes_field(1, b"location") + onnx_bytes.bytes_field(2, outside.encode())
        return head + onnx_bytes.bytes_field(13, location) + onnx_bytes.number_field(14, 1)
    levels = b"".join(struct.pack("<f", weight / 255) for row in WEIGHTS for weight in row)
    return head + onnx_bytes.bytes_field(9, levels)
