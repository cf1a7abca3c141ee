"""Findings on a data set, and what the checks that make them look at.

Front ends may import this: no torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdlora.data import near_duplicates
from sdlora.data.dataset import Example, summarize_names
from sdlora.data.images import ImageSize
from sdlora.data.settings import Data
from sdlora.families.known_words import KnownWords

Severity = Literal["must", "could", "fine"]
"""Fix it first (``must``); it could be better (``could``); handled, and reported so that it surprises nobody
(``fine``)."""


@dataclass(frozen=True)
class Finding:
    """One result of a check: its severity, a sentence with its remedy, and the images it concerns."""

    severity: Severity
    label: str
    """One or two words for the cards of those images."""
    text: str
    images: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class PixelCheck:
    """Facts from the pixels of one image: rotated by EXIF, transparent, and its grids for comparison."""

    rotated: bool
    transparent: bool
    grids: near_duplicates.Grids


@dataclass(frozen=True)
class DatasetUnderCheck:
    """The data set that the checks judge."""

    data: Data
    resolution: int
    """Side in pixels of the square whose area training images get."""
    examples: Sequence[Example]
    sizes: Sequence[ImageSize]
    """The bucket of each example."""
    pixels: Sequence[PixelCheck] = ()
    """The pixels of each example, as far as ``PIXEL_CHECKS`` run."""
    known: KnownWords | None = None
    """Words that the base model knows, if it lists them."""
    held_out: int = 0
    """Number of the examples that are not trained on."""


def paths_of(examples: Iterable[Example]) -> tuple[Path, ...]:
    """Return the files of ``examples``."""
    return tuple(example.path for example in examples)


def summarize(examples: Sequence[Example]) -> str:
    """Return how many there are, with the names of the first few."""
    return summarize_names([example.path.name for example in examples])
