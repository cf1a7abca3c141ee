"""Words that a base model knows, from the ``words.json`` beside it: the bundled one has so few that they can be listed.

``python -m tools.pocket.words`` writes the file. Front ends may import this: no torch.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.families.base_models import BUNDLED
from sdlora.families.settings import trimmed_base
from sdlora.filesystem.reading import read_json

FILE = "words.json"


@dataclass(frozen=True)
class BaseWords:
    """Objects, colours and places that a base can show, and the sentences that say them."""

    objects: tuple[str, ...]
    colours: tuple[str, ...]
    places: tuple[str, ...]
    """Places with their preposition, such as ``on grass``."""
    phrases: tuple[str, ...]
    """Sentences around a description, which stands for ``{}``; the first is ``{}`` alone."""
    styles: tuple[str, ...]
    """Sentences around a description that name a style, one a style."""
    free: tuple[str, ...]
    """Names without a meaning, for what an adapter learns."""


def base_words(base: str) -> BaseWords | None:
    """Return the words of a bundled base; None for any other, whose words nobody has listed."""
    folder = BUNDLED.get(trimmed_base(base))
    return _read_words(folder / FILE) if folder and (folder / FILE).is_file() else None


@lru_cache
def _read_words(path: Path) -> BaseWords:
    return BaseWords(**{name: tuple(values) for name, values in read_json(path).items()})


def describe(thing: str, colour: str | None, place: str | None) -> str:
    """Return the plain description of one object, such as ``a red house on grass``; None leaves a part out."""
    return " ".join(filter(None, (with_article(" ".join(filter(None, (colour, thing)))), place)))


def with_article(words: str) -> str:
    """Return ``words`` with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
