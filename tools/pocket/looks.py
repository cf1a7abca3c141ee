"""Drawings in looks that no caption names, for the image tower of CLIP alone: it shall know a red house in any look.

Only the brightness of a picture changes, or lines are laid over it, so that colour words stay true.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from tools.pocket.pool import world_picture

OFFSET = 1_000_000
"""Pictures from this number on are drawn for this; below, for the other networks."""


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32)


def _image(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _outlines(image: Image.Image) -> np.ndarray:
    """(H, W, 1) in [0, 1]: where colours change, a few pixels wide."""
    smooth = _levels(image.filter(ImageFilter.GaussianBlur(1)))
    slope = sum(np.abs(np.gradient(smooth, axis=axis)).max(2) for axis in (0, 1))
    return np.clip(slope / 24, 0, 1)[..., None]


def _cells(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Uneven panes with dark or light seams."""
    side = image.width
    sites, step = rng.uniform(0, side, (rng.integers(12, 70), 2)), np.arange(side)
    nearest = ((step[None, :, None] - sites[:, 0]) ** 2 + (step[:, None, None] - sites[:, 1]) ** 2).argmin(2)
    seams = ((nearest != np.roll(nearest, 1, 0)) | (nearest != np.roll(nearest, 1, 1)))[..., None]
    shade = rng.uniform(0.75, 1.25, len(sites))[nearest][..., None]
    return _image(np.where(seams, rng.choice([20.0, 235.0]), _levels(image) * shade))


def _tubes(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bright outlines with a glow, on a dim picture."""
    lines = _image(_levels(image) * _outlines(image) * rng.uniform(1.2, 1.8) + 30 * _outlines(image))
    glow = lines.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4)))
    return _image(_levels(image) * rng.uniform(0.1, 0.4) + _levels(lines) + _levels(glow))


def _ink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Black outlines and hatching."""
    y, x = np.mgrid[: image.height, : image.width]
    slant, gap = rng.uniform(-2, 2), rng.uniform(3, 7)
    hatching = ((x + slant * y) % gap < 1)[..., None] * rng.uniform(0, 0.6)
    return _image(_levels(image) * (1 - _outlines(image)) * (1 - hatching))


def _blocks(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Square tiles with a bevel."""
    size = int(rng.integers(3, 7))
    small = image.resize((image.width // size, image.height // size), Image.Resampling.BOX)
    tiled = _levels(small.resize(image.size, Image.Resampling.NEAREST))
    edge = ((np.arange(image.width) % size == 0)[None, :] | (np.arange(image.height) % size == 0)[:, None])[..., None]
    return _image(tiled * np.where(edge, rng.uniform(0.6, 1.2), 1))


def _dots(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A print's dots on paper."""
    y, x = np.mgrid[: image.height, : image.width]
    gap = rng.uniform(3, 6)
    screen = (np.cos(2 * np.pi * x / gap) * np.cos(2 * np.pi * y / gap))[..., None]
    return _image(_levels(image) + rng.uniform(30, 90) * screen)


LOOKS = (_cells, _tubes, _ink, _blocks, _dots)


def _chosen(index: int) -> tuple[list[Callable], np.random.Generator]:
    rng = np.random.default_rng([13, index])
    return [LOOKS[i] for i in rng.permutation(len(LOOKS))[: 2 if rng.random() < 0.1 else 1]], rng


def names(index: int) -> str:
    """Return the names of the features that tell an image's style."""
    return "+".join(sorted(look.__name__ for look in _chosen(index)[0]))


def picture(index: int) -> Image.Image:
    """RGB, 128 x 128: the world's picture of this number in one look, a tenth of them in two."""
    chosen, rng = _chosen(index)
    image = world_picture(index)
    for look in chosen:
        image = look(image, rng)
    return image
