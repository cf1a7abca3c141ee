"""The contact sheet of an evaluation: a row a candidate, a column a prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdlora.data.images import open_image
from sdlora.generation.contact_sheet import contact_sheet

MOST_ROWS = 40
CELL = 144
"""Longest side of an image on the sheet, in pixels."""


class SheetRow(NamedTuple):
    """One candidate's images, and the training image that most are nearest to."""

    title: str
    images: Sequence[Path]
    nearest: Path | None = None
    proposed: bool = False


def evaluation_sheet(rows: Sequence[SheetRow], prompts: Sequence[str]) -> Image.Image:
    """Return the sheet of ``rows``, of which the first, the base's, and the proposed one are always shown.

    Of more rows than a sheet holds, as many are shown evenly.
    """
    shown = [rows[index] for index in _evenly(len(rows), MOST_ROWS, {0, *_proposed(rows)})]
    cells = [[*map(_open, row.images), _open(row.nearest) if row.nearest else None] for row in shown]
    titles = [f"{row.title} - we would take this" if row.proposed else row.title for row in shown]
    return contact_sheet(cells, titles, [*prompts, "nearest training picture"], cell=CELL)


def _proposed(rows: Sequence[SheetRow]) -> set[int]:
    return {index for index, row in enumerate(rows) if row.proposed}


def _evenly(count: int, most: int, always: set[int]) -> list[int]:
    """Return up to ``most`` of the numbers below ``count``, evenly, and those of ``always``."""
    return (
        sorted({round(number * (count - 1) / (most - 1)) for number in range(most)} | always)
        if count > most
        else [*range(count)]
    )


def _open(path: Path) -> Image.Image:
    image = open_image(path).rgb
    image.thumbnail((CELL, CELL))
    return image
