"""Pictures drawn for the tests of the room ``data``."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.data.dataset import Example
from sdlora.filesystem.reading import sha256


def drawn(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """A picture like no other: noise over a gradient, so that each cut and each mirror image differs."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    slope = np.linspace(0, 190, width)[None, :, None]
    return Image.fromarray((noise + slope).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty data folder, with a name that careless code trips over."""
    path = tmp_path / "dir ü 空 '"
    path.mkdir()
    return path


@pytest.fixture
def example(folder: Path) -> Callable[..., Example]:
    """A function that draws a picture into ``folder`` and gives its example."""

    def make(name: str = "a.png", width: int = 64, height: int = 64, seed: int = 0, **values: object) -> Example:
        path = folder / name
        drawn(width, height, seed).save(path)
        return Example(path, values.pop("caption", f"picture {seed}"), width, height, digest=sha256(path), **values)  # type: ignore[arg-type]

    return make
