"""Frequency of tags in captions: how many images have each comma-separated part, or each word.

Front ends may import this: no torch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal, NamedTuple

from sdlora.data.captions import caption_readings
from sdlora.data.dataset import Example
from sdlora.data.settings import Data

Unit = Literal["tags", "words"]
TAGS_A_CAPTION = 3
"""Parts of the middle caption from which captions count as lists of tags, not as sentences."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class TagCount(NamedTuple):
    """A tag, as it is written first, and the number of images that have it."""

    tag: str
    images: int


def caption_tags(caption: str, data: Data) -> list[str]:
    """Return the comma-separated parts of ``caption``; with wildcards, those of all its readings, each once."""
    readings = caption_readings(caption, data)
    parts = [part.strip() for reading in readings for part in reading.split(",") if part.strip()]
    return parts if len(readings) == 1 else [*dict.fromkeys(parts)]


def usual_unit(examples: Sequence[Example], data: Data) -> Unit:
    """Return what to count: tags if captions are lists of these, words if they are sentences."""
    numbers = [len(caption_tags(example.caption, data)) for example in examples]
    return "tags" if numbers and median(numbers) >= TAGS_A_CAPTION else "words"


def count_tags(examples: Sequence[Example], data: Data, unit: Unit | None = None) -> list[TagCount]:
    """Return each tag or word of the captions as training reads them, the most frequent first; case is ignored.

    ``unit`` is what the captions suggest if it is None. Of wildcards, each option counts.
    """
    unit = unit or usual_unit(examples, data)
    counts: Counter[str] = Counter()
    spelled: dict[str, str] = {}
    for example in examples:
        tags = caption_tags(example.caption, data)
        found = tags if unit == "tags" else _words(tags)
        keys = dict.fromkeys(spelled.setdefault(tag.casefold(), tag).casefold() for tag in found)
        counts.update(keys.keys())
    return [TagCount(spelled[key], number) for key, number in counts.most_common()]


def _words(tags: Iterable[str]) -> list[str]:
    return [word for tag in tags for word in _WORD.findall(tag)]
