"""Find images that are nearly the same, whatever size, quality, crop or mirroring: by a difference hash and the
colours.

Front ends may import this: no torch.

Each image is averaged to a grid, once uncropped and once for each of the slight crops below. The hash tells for every
cell whether its neighbours to the right and below are brighter (Neal Krawetz, "Kind of Like That", 2013). Two images
match if the hash of the one, uncropped, is near to one of the other's crops, and the colours of both grids agree too:
the hash alone confuses drawings on one flat ground. Thresholds: see ``tests/data/test_near_duplicates.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELLS = 16
WORKING_SIZE = 96
"""Side in pixels to which an image is reduced before it is cropped."""
HASH_DISTANCE = 0.12
"""Largest share of the hash's bits in which two matching images differ."""
COLOUR_DISTANCE = 0.06
"""Largest value of one minus the correlation of their colours."""
_BITS = 2 * CELLS * CELLS

Grids = NDArray[np.uint8]
"""Colours of an image (crops, CELLS + 1, CELLS + 1, 3): uncropped first, then each crop."""


class DuplicatePair(NamedTuple):
    """Indices of two images that are nearly the same, in order."""

    first: int
    second: int
    mirrored: bool


def _crops() -> list[tuple[float, float, float, float]]:
    """List crops as shares of the sides: none, a twentieth or a tenth off every side, and off one side."""
    boxes = [(0.0, 0.0, 1.0, 1.0)]
    for kept_share in (0.95, 0.9):
        lost = 1 - kept_share
        places = [lost * part for part in (0, 0.5, 1)]
        boxes += [(x, y, x + kept_share, y + kept_share) for x in places for y in places]
        boxes += [(0, 0, kept_share, 1), (lost, 0, 1, 1), (0, 0, 1, kept_share), (0, lost, 1, 1)]
    return boxes


CROPS = tuple(_crops())


def comparison_grids(image: Image.Image) -> Grids:
    """Return the grids of an RGB image, by which it is compared."""
    small = image.resize((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
    side = CELLS + 1
    boxes = [
        (left * WORKING_SIZE, top * WORKING_SIZE, right * WORKING_SIZE, bottom * WORKING_SIZE)
        for left, top, right, bottom in CROPS
    ]
    made = [np.asarray(small.resize((side, side), Image.Resampling.LANCZOS, box=box)) for box in boxes]
    return np.stack(made)


def near_duplicates(images: Sequence[Grids]) -> list[DuplicatePair]:
    """Find all pairs of images that are nearly the same, in order."""
    if len(images) < 2:
        return []
    stacked = np.stack(images)
    uncropped = stacked[:, 0]
    signs, colours = _signs(uncropped), _colours(uncropped)
    found: dict[tuple[int, int], bool] = {}
    for cut in range(len(CROPS)):
        for mirrored in (False, True):
            other = stacked[:, cut, :, ::-1] if mirrored else stacked[:, cut]
            near = signs @ _signs(other).T >= _BITS * (1 - 2 * HASH_DISTANCE)
            np.fill_diagonal(near, False)
            firsts, seconds = np.nonzero(near)
            if not len(firsts):
                continue
            same = (colours[firsts] * _colours(other[seconds])).sum(-1) >= 1 - COLOUR_DISTANCE
            for i, j in zip(firsts[same].tolist(), seconds[same].tolist(), strict=True):
                found.setdefault((min(i, j), max(i, j)), mirrored)
    return [DuplicatePair(i, j, mirrored) for (i, j), mirrored in sorted(found.items())]


def group_duplicates(pairs: Sequence[DuplicatePair]) -> list[list[int]]:
    """Group images that match, directly or through others."""
    home: dict[int, list[int]] = {}
    for i, j, _ in pairs:
        one, other = home.setdefault(i, [i]), home.setdefault(j, [j])
        if one is not other:
            one += other
            home.update(dict.fromkeys(other, one))
    return sorted(sorted(group) for group in {id(group): group for group in home.values()}.values())


def _signs(grid: Grids) -> NDArray[np.float32]:
    """Return the hash as +1 and -1 (N, _BITS), so that the product of two counts the bits in which they agree."""
    grey = grid.astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], np.float32)
    right, below = grey[:, :-1, 1:] > grey[:, :-1, :-1], grey[:, 1:, :-1] > grey[:, :-1, :-1]
    bits = np.concatenate([right.reshape(len(grey), -1), below.reshape(len(grey), -1)], axis=1)
    return np.where(bits, np.float32(1), np.float32(-1))


def _colours(grid: Grids) -> NDArray[np.float32]:
    """Return unit vectors about their mean (N, values): the similarity of two grids, however bright."""
    values = grid.reshape(len(grid), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
