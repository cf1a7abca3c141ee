"""Parts of a caption as training reads it: the words around it, and those that may be left out.

Front ends may import this: no torch.
"""

from itertools import groupby
from typing import NamedTuple

from sdlora.data.captions import COMMA, OUTSIDE_BRACKETS
from sdlora.data.settings import Data


class CaptionPart(NamedTuple):
    """A piece of a caption, and what happens to it."""

    text: str
    added: bool
    """Whether the settings put it there: trigger, prefix, suffix, or what stands in for a missing caption."""
    loose: bool
    """Whether it may be shuffled or left out at a step."""


def caption_parts(line: str, own: str, data: Data) -> list[CaptionPart]:
    """Split one line of a training caption into its parts; ``own`` is what was written for the image."""
    start = line.find(own) if own else -1
    end = start + len(own)
    added = [not start <= place < end for place in range(len(line))] if start >= 0 else [True] * len(line)
    loose = _loose(line, data)
    places = groupby(range(len(line)), lambda place: (added[place], loose[place]))
    return [CaptionPart("".join(line[place] for place in each), *marks) for marks, each in places]


def _loose(line: str, data: Data) -> list[bool]:
    """Return for each letter whether it stands behind the parts that are kept in their places."""
    if not (data.shuffle_captions or data.tag_dropout):
        return [False] * len(line)
    commas = [found.start() for found in (OUTSIDE_BRACKETS if data.caption_weights else COMMA).finditer(line)]
    begins = [0, *(comma + 1 for comma in commas)]
    first = begins[data.keep_tokens] if data.keep_tokens < len(begins) else len(line)
    return [place >= first for place in range(len(line))]
