"""Data sets to train on: the bundled subject with class images of the base, or soft noise in odd sizes."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SUBJECT = Path(__file__).parent.parent / "sample_data" / "subject"
INSTANCE_PROMPT, CLASS_PROMPT = "a photo of sks cat", "a photo of a cat"
LARGEST = 1.8
"""Sides of noise pictures over the training size, at most: far below what cameras give, so decoding stays cheap."""


def subject_and_class(folder: Path, base: str, resolution: int, count: int) -> tuple[Path, Path]:
    """The sample subject without its captions, and ``count`` class pictures made by ``base``."""
    from sdlora.generation.studio import Studio

    (folder / "class").mkdir(parents=True)
    (folder / "subject").mkdir()
    for picture in SUBJECT.glob("*.png"):
        shutil.copy(picture, folder / "subject")
    studio = Studio(base)
    for seed in range(count):
        made = studio.generate(CLASS_PROMPT, steps=8, seed=seed, width=resolution, height=resolution)[0]
        made.save(folder / "class" / f"{seed}.png")
    return folder / "subject", folder / "class"


def noise(folder: Path, resolution: int, count: int) -> tuple[Path, Path]:
    """Six subject and ``count`` class pictures, JPEG, each of a size of its own, larger than the training's."""
    rng = np.random.default_rng(0)
    for name, number in (("subject", 6), ("class", count)):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            width, height = (int(resolution * rng.uniform(1.05, LARGEST)) for _ in range(2))
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
            picture.save(folder / name / f"{index}.jpg", quality=90)
    return folder / "subject", folder / "class"
