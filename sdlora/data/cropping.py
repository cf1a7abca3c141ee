"""Crops of images: the part that fills a training size, of the whole image or of its subject.

Front ends may import this: torch is imported by the function that returns tensors.
"""

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageOps

from sdlora.data.images import ImageSize

if TYPE_CHECKING:
    import torch


class CropBox(NamedTuple):
    """Part of an upright image: pixels from the left and the top to its edges."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def size(self) -> ImageSize:
        """Width and height, in whole pixels."""
        return ImageSize(round(self.right - self.left), round(self.bottom - self.top))

    def scaled(self, image: ImageSize, other: tuple[int, int]) -> "CropBox":
        """Return the same part of a copy of ``image`` that has the size ``other``."""
        across, down = other[0] / image.width, other[1] / image.height
        return CropBox(self.left * across, self.top * down, self.right * across, self.bottom * down)


def crop_box(image: ImageSize, size: ImageSize, position: float, part: CropBox | None = None) -> CropBox:
    """Return the largest part of ``image``, or of ``part`` of it, that has the ratio of ``size``.

    ``position`` 0 takes the left (or top) end, 0.5 the middle, 1 the right (or bottom).
    """
    begin, first, end, last = part or (0, 0, *image)
    scale = min((end - begin) / size.width, (last - first) / size.height)
    width, height = min(end - begin, size.width * scale), min(last - first, size.height * scale)
    left, top = begin + (end - begin - width) * position, first + (last - first - height) * position
    return CropBox(left, top, left + width, top + height)


def overflow(image: ImageSize, size: ImageSize) -> float:
    """Return the pixels, at the scale of ``size``, by which ``image`` exceeds ``size`` once it covers it."""
    scale = max(size.width / image.width, size.height / image.height)
    return max(image.width * scale - size.width, image.height * scale - size.height)


def size_and_crop(
    image: ImageSize, size: ImageSize, position: float = 0.5, flip: bool = False, part: CropBox | None = None
) -> tuple[int, int, int, int]:
    """Return original height and width of ``image``, and top and left of the crop that ``crop_and_resize`` makes after
    scaling, both counted from the corner of the whole image.

    These are SDXL's size and crop conditions (arXiv:2307.01952, section 2.2).
    """
    box = part or CropBox(0, 0, *image)
    scale = max(size.width / box.size.width, size.height / box.size.height)
    over = [round(side * scale) - target for side, target in zip(box.size, size, strict=True)]
    left, top = (
        round(begin * scale) + round(side * position) for begin, side in zip(box[:2], over, strict=True)
    )  # fmt: skip
    return image.height, image.width, top, round(image.width * scale) - size.width - left if flip else left


def size_to_cover(image: ImageSize, size: ImageSize, part: CropBox | None) -> ImageSize:
    """Return the size of a copy of ``image`` in which its ``part`` is as large as ``size``."""
    if part is None:
        return size
    return ImageSize(*(ceil(a * b / c) for a, b, c in zip(size, image, part.size, strict=True)))


def crop_and_resize(
    image: Image.Image, size: ImageSize, position: float = 0.5, flip: bool = False, part: CropBox | None = None
) -> Image.Image:
    """Crop ``image``, or ``part`` of it, to the ratio of ``size`` and resize it in one pass (Lanczos, widened to the
    reduction).
    """
    box = crop_box(ImageSize(*image.size), size, position, part)
    cut = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return ImageOps.mirror(cut) if flip else cut


def crop_and_resize_mask(
    mask: Image.Image, size: ImageSize, position: float = 0.5, flip: bool = False, part: CropBox | None = None
) -> "torch.Tensor":
    """Crop ``mask`` (L) alike and average it over each latent: float32 (1, h, w) in [0, 1]; ``size`` in latents."""
    import numpy as np
    import torch

    cut = mask.resize(size, Image.Resampling.BOX, box=crop_box(ImageSize(*mask.size), size, position, part))
    values = np.asarray(ImageOps.mirror(cut) if flip else cut, dtype=np.float32) / 255
    return torch.from_numpy(values)[None]
