"""Drawn pictures kept on disk in chunks, so that CLIP, VAE, UNet and the classifier share one drawing of them.

A pool is a folder of `00000.npy`, ... each uint8 (CHUNK, 128, 128, 3). What picture i shows is a function of i alone,
so nothing else is stored.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tools.pocket import world

CHUNK = 1024
EXAM_OFFSET = 10_000_000
"""Pictures from this number on are for testing: half of them of held-out combinations."""


@cache
def _combinations(kept_out: bool) -> list[world.Combination]:
    return world.combinations(kept_out)


def label(index: int) -> tuple[str, str, str, str]:
    """(object, colour, place, style) of picture `index`; below EXAM_OFFSET never a held-out combination."""
    rng = np.random.default_rng([7, index])
    choices = _combinations(index >= EXAM_OFFSET and index % 2 == 1)
    return *choices[rng.integers(len(choices))], world.STYLES[rng.integers(len(world.STYLES))]


def world_picture(index: int) -> Image.Image:
    return world.draw(*label(index), seed=index)


def _draw_chunk(picture: Callable[[int], Image.Image], path: Path, first: int) -> Path:
    pictures = np.stack([np.asarray(picture(i)) for i in range(first, first + CHUNK)])
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.save(file, pictures)
    os.replace(part, path)
    return path


def fill(
    folder: Path, chunks: int, workers: int, offset: int = 0, picture: Callable[[int], Image.Image] = world_picture
) -> None:
    """Draw the chunks that the pool lacks, in `workers` processes; `picture` makes the one of a number."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [c for c in range(chunks) if not (folder / f"{c:05d}.npy").exists()]
    with ProcessPoolExecutor(workers) as executor:
        jobs = [executor.submit(_draw_chunk, picture, folder / f"{c:05d}.npy", offset + c * CHUNK) for c in missing]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc=f"drawing {folder.name}", unit="chunk"):
            job.result()


class Pool:
    """The chunks that are there now, by picture number."""

    def __init__(self, folder: Path, offset: int = 0):
        self.chunks = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("?????.npy"))]
        self.offset = offset

    def __len__(self) -> int:
        return len(self.chunks) * CHUNK

    def pictures(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, 128, 128, 3) of the pictures at 0-based `indices`."""
        return np.stack([self.chunks[i // CHUNK][i % CHUNK] for i in indices])

    def labels(self, indices: np.ndarray) -> list[tuple[str, str, str, str]]:
        return [label(self.offset + int(i)) for i in indices]
