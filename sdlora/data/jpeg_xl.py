"""Size of a JPEG XL image by its header (ISO 18181-1, annexes A and D).

The package that reads JPEG XL decodes a file as soon as it opens it: ten kilobytes can be a gigabyte of pixels.
"""

import os
from typing import IO

from sdlora.errors import DatasetError

MAX_EXTRA_CHANNELS = 4
"""Channels beside the colors: as many as the format's level 5 allows, which is that of pictures on the web."""
_MAX_BOXES = 100
_HEADER = 64
"""Bytes of a codestream that hold all that is read here."""
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIDE = ((9, 1), (13, 1), (18, 1), (30, 1))


class _Bits:
    """Numbers in a codestream, least bit first."""

    def __init__(self, content: bytes):
        self._number, self._left = int.from_bytes(content, "little"), 8 * len(content)

    def read(self, count: int) -> int:
        if count > self._left:
            raise DatasetError("is damaged or cut short (its header ends too early)")
        value = self._number & ((1 << count) - 1)
        self._number >>= count
        self._left -= count
        return value

    def choose(self, *options: tuple[int, int]) -> int:
        """Read two bits, which choose one of four numbers of bits and what is added to their value (U32)."""
        bits, offset = options[self.read(2)]
        return self.read(bits) + offset


def require_plain_jxl(file: IO[bytes]) -> tuple[int, int]:
    """Return width and height of the JPEG XL image in ``file``, which is left at its beginning.

    Raises DatasetError with the reason alone for a header that is damaged, or a file that is animated, or has a preview
    or more further channels than pictures have.
    """
    file.seek(0)
    start = file.read(12)
    if not start.startswith(b"\xff\x0a"):
        _seek_codestream(file)
        start = b""
    else:
        file.seek(0)
    bits = _Bits(file.read(_HEADER))
    file.seek(0)
    if bits.read(16) != 0x0AFF:
        raise DatasetError("is damaged or cut short (no JPEG XL codestream where one should be)")
    size = _read_size(bits)
    if not bits.read(1):  # not all_default
        _require_plain_metadata(bits)
    return size


def _seek_codestream(file: IO[bytes]) -> None:
    """Seek the codestream in the boxes of a container."""
    file.seek(0, os.SEEK_END)
    end, at = file.tell(), 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        body = at + 8
        if length == 1:
            length, body = int.from_bytes(file.read(8), "big"), at + 16
        if kind in (b"jxlc", b"jxlp"):
            file.seek(body + 4 * (kind == b"jxlp"))  # A part begins with its number.
            return
        if length < 8 or at + length >= end:
            break
        at += length
    raise DatasetError("is damaged or cut short (no JPEG XL codestream in it)")


def _read_size(bits: _Bits) -> tuple[int, int]:
    small = bits.read(1)

    def side() -> int:
        return (bits.read(5) + 1) * 8 if small else bits.choose(*_SIDE)

    height = side()
    ratio = bits.read(3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _require_plain_metadata(bits: _Bits) -> None:
    """Read up to the number of extra channels, and refuse what is no plain image."""
    if bits.read(1):  # extra_fields
        bits.read(3)  # orientation
        if bits.read(1):
            _read_size(bits)  # the size to display it in
        if bits.read(1) or bits.read(1):
            raise DatasetError("is animated, or has a preview, which is not read in JPEG XL; save it as PNG or JPEG")
    if bits.read(1):  # float samples
        bits.choose((0, 32), (0, 16), (0, 24), (6, 1))
        bits.read(4)
    else:
        bits.choose((0, 8), (0, 10), (0, 12), (6, 1))
    bits.read(1)  # modular_16_bit_buffers
    if bits.choose((0, 0), (0, 1), (4, 2), (12, 1)) > MAX_EXTRA_CHANNELS:
        raise DatasetError(f"has more than {MAX_EXTRA_CHANNELS} channels beside its colors; save it as PNG or JPEG")
