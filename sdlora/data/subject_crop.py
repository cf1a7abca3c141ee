"""Crops to the subject: the part of an image around what its mask marks.

Front ends may import this: no torch.
"""

import math
from functools import lru_cache
from pathlib import Path

from sdlora.data.cropping import CropBox
from sdlora.data.images import MAX_RATIO, MIN_SIDE, ImageSize, inspect_image, open_mask


def subject_box(mask: Path | None, size: ImageSize, margin: float) -> CropBox | None:
    """Return the part of an upright image of ``size`` around what ``mask`` marks; None for all of it,
    or without a mask.

    ``margin`` is added on each side, as a share of the longer one. What the mask marks has at least half of its
    greatest brightness: the faint rest of a soft edge, or of a JPEG, is no subject. Raises DatasetError if the mask
    cannot be read.
    """
    if mask is None:
        return None
    left, top, right, bottom = _marked(mask, inspect_image(mask).key)
    (left, right), (top, bottom) = (left * size.width, right * size.width), (top * size.height, bottom * size.height)
    more = margin * max(right - left, bottom - top)
    width, height = right - left + 2 * more, bottom - top + 2 * more
    least = max(MIN_SIDE, max(min(width, size.width), min(height, size.height)) / MAX_RATIO)
    columns = _around(left - more, right + more, least, size.width)
    rows = _around(top - more, bottom + more, least, size.height)
    box = CropBox(columns[0], rows[0], columns[1], rows[1])
    return None if box == (0, 0, *size) else box


def _around(begin: float, end: float, least: float, side: int) -> tuple[int, int]:
    """Return whole pixels from ``begin`` to ``end`` within 0 to ``side``, ``least`` of them or more, as for any image
    that can be trained on.
    """
    begin, end = max(0.0, begin), min(float(side), end)
    if end - begin < least:
        begin = min(max(0.0, (begin + end - least) / 2), side - least)
        end = begin + least
    return math.floor(begin + 1e-6), min(side, math.ceil(end - 1e-6))


@lru_cache(maxsize=4000)
def _marked(mask: Path, key: str) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of what a mask marks, as shares of its sides."""
    levels = open_mask(mask)
    brightest = max(level for level, number in enumerate(levels.histogram()) if number)
    least = max(1.0, brightest / 2)
    marked = levels.point([255 * (level >= least) for level in range(256)]).getbbox()
    left, top, right, bottom = marked or (0, 0, *levels.size)
    return left / levels.width, top / levels.height, right / levels.width, bottom / levels.height
