"""Images as a model sees them: of one size, with normalised levels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from sdlora.errors import ModelError
from sdlora.families.untrusted_folder import read_config

LARGEST_SIDE = 2048
"""Side in pixels above which no model sees images."""


class ImagePreparation:
    """Size and levels of the images that a model sees, from its ``preprocessor_config.json``."""

    def __init__(
        self, width: int, height: int, mean: Sequence[float], deviation: Sequence[float],
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ):  # fmt: skip
        self.width, self.height, self.resampling = width, height, resampling
        self.mean, self.deviation = (torch.tensor(list(values)).view(3, 1, 1) for values in (mean, deviation))

    @classmethod
    def read(cls, folder: Path, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> Self:
        """Read it from a model's folder. Raises ModelError if it is missing, or says nothing that can be done."""
        newer = folder / "processor_config.json"
        path = folder / "preprocessor_config.json"
        values = read_config(path) if path.exists() or not newer.exists() else read_config(newer)
        values = values.get("image_processor", values)
        try:
            width, height = _sides(values["size"])
            found = cls(width, height, values["image_mean"], values["image_std"], resampling)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: names no width and height, or no levels, of images: {error}") from None
        if not 1 <= min(width, height) <= max(width, height) <= LARGEST_SIDE or not (found.deviation > 0).all():
            raise ModelError(f"{path}: images of {width} x {height} with such levels fit no model")
        return found

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return an image as float32 (3, height, width), normalised; its shape is not kept, as in training."""
        resized = image.convert("RGB").resize((self.width, self.height), self.resampling)
        levels = torch.from_numpy(np.asarray(resized, np.float32)).permute(2, 0, 1) / 255
        return (levels - self.mean) / self.deviation


def _sides(size: Any) -> tuple[int, int]:
    """Return width and height; older configs give one number for both."""
    if isinstance(size, int):
        return size, size
    return int(size["width"]), int(size["height"])
