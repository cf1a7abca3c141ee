"""Grey of more than 8 bits, in files as other programs write them, comes out at its true brightness."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.data.images import inspect_image, open_image
from sdlora.errors import DatasetError

SIDE = 64
RAMP = np.tile(np.linspace(0, 1, SIDE), (SIDE, 1))
"""Brightness from black to white."""


def write_tiff(path: Path, values: np.ndarray, bits: int, sample_format: int, photometric: int = 1) -> None:
    """Write an uncompressed TIFF 6.0 of grey with these tags, many of which Pillow itself cannot write."""
    data = values.tobytes()
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 277: 1, 278: SIDE, 339: sample_format}
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = [(tag, 3, 1, value) for tag, value in tags.items()] + [(273, 4, 1, start), (279, 4, 1, len(data))]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + b"\0\0\0\0" + data)


def write_png(path: Path, values: np.ndarray, color_type: int) -> None:
    """Write a PNG of 16 bits a channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


TIFFS = {
    "unsigned 32 bits": ((RAMP * (2**32 - 1)).astype("<u4"), 32, 1),
    "signed 32 bits": ((RAMP * (2**31 - 1)).astype("<i4"), 32, 2),
    "levels of 8 bits in 32": ((RAMP * 255).round().astype("<i4"), 32, 2),
    "levels of 16 bits in 32": ((RAMP * 65535).astype("<i4"), 32, 2),
    "unsigned 16 bits": ((RAMP * 65535).astype("<u2"), 16, 1),
    "signed 16 bits": ((RAMP * 32767).astype("<i2"), 16, 2),
    "floats to 1": (RAMP.astype("<f4"), 32, 3),
    "floats to 255": ((RAMP * 255).astype("<f4"), 32, 3),
    "floats to 65535": ((RAMP * 65535).astype("<f4"), 32, 3),
    "overexposed floats": ((RAMP * 4).astype("<f4"), 32, 3),
    "0 for white": (((1 - RAMP) * 65535).astype("<u2"), 16, 1, 0),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_is_as_bright_as_its_numbers_mean(folder: Path, kind: str) -> None:
    path = folder / "a.tif"
    write_tiff(path, *TIFFS[kind])
    assert inspect_image(path).size == (SIDE, SIDE)
    grey = np.asarray(open_image(path).rgb)[..., 0].astype(int)
    assert np.abs(grey - RAMP * 255).max() <= 1


def test_what_is_no_number_is_black_and_infinity_white(folder: Path) -> None:
    values = RAMP.astype("<f4").copy()
    values[0, :4] = np.nan, np.inf, -np.inf, -3
    write_tiff(folder / "a.tif", values, 32, 3)
    grey = np.asarray(open_image(folder / "a.tif").rgb)[..., 0]
    assert grey[0, :4].tolist() == [0, 255, 0, 0] and grey[1, -1] == 255


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 1), (6, 3)])
def test_a_png_of_16_bits_is_scaled_and_not_clipped(folder: Path, color_type: int, channels: int) -> None:
    planes = [(RAMP * 65535)] * channels + ([np.full_like(RAMP, 32768)] if color_type & 4 else [])
    write_png(folder / "a.png", np.dstack(planes), color_type)
    inspect_image(folder / "a.png")
    rgb, mask = open_image(folder / "a.png", "#000000")
    share = 128 / 255 if color_type & 4 else 1
    assert np.abs(np.asarray(rgb)[..., 0] - RAMP * 255 * share).max() <= 2
    assert (mask.getextrema() if mask else None) == ((128, 128) if color_type & 4 else None)


@pytest.mark.parametrize(("bits", "kind"), [(64, "<f8"), (16, "<f2")])
def test_a_tiff_that_pillow_does_not_read_is_called_one(folder: Path, bits: int, kind: str) -> None:
    write_tiff(folder / "a.tif", RAMP.astype(kind), bits, 3)
    with pytest.raises(DatasetError, match="is a TIFF of a kind that is not read here; save it as PNG or JPEG"):
        inspect_image(folder / "a.tif")


def test_only_grey_whose_range_is_guessed_gets_a_new_key_in_caches(folder: Path) -> None:
    """Latents that were cached before of all other images stay."""
    write_tiff(folder / "plain.tif", *TIFFS["unsigned 16 bits"])
    write_tiff(folder / "guessed.tif", *TIFFS["floats to 255"])
    Image.new("RGB", (64, 64)).save(folder / "color.png")
    plain, guessed, color = (inspect_image(folder / name) for name in ("plain.tif", "guessed.tif", "color.png"))
    assert plain.key == plain.digest and color.key == color.digest and guessed.key == f"{guessed.digest}/range"
