"""Pictures drawn for the tests of the room ``data``."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.data.dataset import Example
from sdlora.filesystem.reading import sha256
from tests.support.images import noise_image


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
        noise_image(width, height, seed).save(path)
        return Example(path, values.pop("caption", f"picture {seed}"), width, height, digest=sha256(path), **values)  # type: ignore[arg-type]

    return make
