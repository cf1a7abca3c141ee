"""Generated images, photographs where there are some, and an encoder with a predictable result."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def block_means(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An encoder whose answer is known: the mean of each 8 x 8 block, in four channels."""
    mean = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 8).expand(-1, 4, -1, -1)
    return mean, torch.full_like(mean, 0.5)


def noise_image(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """A picture like no other: noise over a gradient, so that each cut and each mirror image differs."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    slope = np.linspace(0, 190, width)[None, :, None]
    return Image.fromarray((noise + slope).astype(np.uint8))


PHOTO_FOLDER = Path(os.environ.get("SDLORA_PHOTOS", Path(__file__).parents[3] / "shared/data/dreambooth"))
PHOTO_SETS = sorted(path for path in PHOTO_FOLDER.iterdir() if path.is_dir()) if PHOTO_FOLDER.is_dir() else []
