"""Masks from the probabilities of a segmenter: threshold, growth, soft edges."""

import numpy as np
from PIL import Image, ImageFilter

from sdlora.masking.settings import MaskSettings

LONGEST_SIDE = 1024
"""Longest side in pixels at which masks are shaped; no segmenter sees more."""


def shape_mask(probabilities: Image.Image, size: tuple[int, int], settings: MaskSettings) -> Image.Image | None:
    """Return the mask (L) of an image of ``size``, at ``LONGEST_SIDE`` at most; None if nothing of it counts.

    ``probabilities`` (L) are stretched over the image.
    """
    longest = max(size)
    scale = min(1.0, LONGEST_SIDE / longest)
    width, height = (max(1, round(side * scale)) for side in size)
    levels = np.asarray(probabilities.resize((width, height), Image.Resampling.BILINEAR))
    found = (levels > 0) & (levels >= round(255 * settings.threshold))
    if not found.any():
        return None
    mask = np.where(found, levels if settings.soft else np.uint8(255), np.uint8(0))
    mask = grow(mask, round(settings.grow * longest * scale))
    return Image.fromarray(mask).filter(ImageFilter.GaussianBlur(settings.feather * longest * scale / 2))


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return each place's greatest level within so many ``pixels`` along both axes (a dilation by a square)."""
    for axis in (0, 1):
        left = pixels
        reach = 1
        while left:  # Steps of 1, 2, 4 ...: each doubles what the step before has reached.
            step = min(reach, left)
            mask = np.maximum.reduce([mask, _shifted(mask, step, axis), _shifted(mask, -step, axis)])
            left -= step
            reach += step
    return mask


def _shifted(mask: np.ndarray, step: int, axis: int) -> np.ndarray:
    """Return ``mask`` moved along an axis; what comes in has the level of the edge."""
    places = np.arange(mask.shape[axis]) - step
    return mask.take(places.clip(0, mask.shape[axis] - 1), axis)
