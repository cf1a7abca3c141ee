"""Training images as models look at them: batch by batch, with those that cannot be used left alone and named."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from PIL import Image

from sdlora.data.dataset import Example, summarize_names
from sdlora.data.images import open_image
from sdlora.errors import DatasetError
from sdlora.events import Notice, OnEvent

T = TypeVar("T")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield ``items`` in lists of ``size``; the last may be shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def open_batch(examples: Iterable[Example], problems: list[str]) -> list[tuple[Example, Image.Image]]:
    """Return the ``examples`` with their images; those that cannot be read any more become lines of ``problems``."""
    opened = []
    for example in examples:
        try:
            opened.append((example, open_image(example.path).rgb))
        except DatasetError as error:
            problems.append(f"{example.path.name}: {error}")
    return opened


def notice_unusable(problems: Sequence[str], on_event: OnEvent) -> None:
    """Name the files of ``problems``, lines ``name: reason``, if there are any."""
    if problems:
        names = summarize_names([line.partition(":")[0] for line in problems], "file")
        on_event(Notice(message=f"Left alone, as they cannot be used: {names}; sdlora check tells why."))
