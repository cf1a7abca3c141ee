"""Words that a base model's text encoder has a meaning for, where they are few: a small base lists them in a file.

A folder of such a base has ``known_words.json``: lists of ``objects``, ``colours``, ``places``, ``styles`` and
``other`` words, ``style_phrases`` for its captioner, and ``near``, everyday words by the known one that is nearest to
them. Bases that were trained on the web have no such file, and nothing is said of words. Front ends may import this:
no torch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sdlora.errors import SdloraError
from sdlora.families.base_models import locate_base
from sdlora.filesystem.reading import modified_ns, read_json

FILE = "known_words.json"
SUBJECTS = ("objects", "colours", "places", "styles")
"""Lists of what the base can show, in the order in which they are told."""
_MAX_BYTES = 1 << 20
_SPELLING = 0.8
"""Least similarity, 0 to 1, of words of which one counts as a misspelling, or the plural, of the other."""
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class KnownWords:
    """Words and phrases that a base knows."""

    subjects: Mapping[str, tuple[str, ...]]
    """Phrases for what it can show, by the names in ``SUBJECTS``."""
    other: tuple[str, ...] = ()
    """Words that captions may have, such as articles."""
    style_phrases: tuple[str, ...] = ()
    """Phrases that name a style around a description, which stands for ``{}``; one a style."""
    near: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Unknown words, by the known phrase that is nearest to them."""

    @cached_property
    def words(self) -> frozenset[str]:
        phrases = (*(phrase for phrases in self.subjects.values() for phrase in phrases), *self.other)
        return frozenset(word for phrase in phrases for word in _words(phrase))

    def unknown(self, texts: Iterable[str], trigger: str = "") -> list[str]:
        """List the words of ``texts`` that it does not know and that are not the trigger's, the most frequent first."""
        passed = self.words | {*_words(trigger)}
        counts = Counter(word for text in texts for word in dict.fromkeys(_words(text)) if word not in passed)
        return [word for word, _ in counts.most_common()]

    def nearest(self, word: str) -> list[str]:
        """Return the known words and phrases nearest to ``word``: by meaning, else by spelling; none if there is none.

        Spelling is compared with what it can show, since nobody means an article.
        """
        found = [phrase for phrase, words in self.near.items() if word in words]
        single = [phrase for phrases in self.subjects.values() for phrase in phrases if " " not in phrase]
        return found or get_close_matches(word, single, n=1, cutoff=_SPELLING)

    def summary(self) -> str:
        """Return all that it can show: ``house, tree; red, blue; on grass``."""
        return "; ".join(", ".join(phrases) for phrases in self.subjects.values() if phrases)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def known_words(base: str) -> KnownWords | None:
    """Return the words that ``base`` knows; None if it does not list them, or is no folder here."""
    with suppress(SdloraError):
        source = locate_base(base)
        file = Path(source.location) / FILE
        if source.kind == "folder" and file.is_file():
            return _read(file, modified_ns(file))
    return None


@lru_cache(maxsize=16)
def _read(file: Path, modified: int) -> KnownWords | None:
    """Read a folder's list; None if it is none, as it may be a stranger's file."""
    with suppress(SdloraError, AttributeError, TypeError):
        values = read_json(file, _MAX_BYTES)
        subjects = {name: _texts(values.get(name, [])) for name in SUBJECTS}
        near = {str(phrase): _texts(words) for phrase, words in values.get("near", {}).items()}
        if any(subjects.values()):
            other, style_phrases = (_texts(values.get(name, [])) for name in ("other", "style_phrases"))
            return KnownWords(subjects, other, style_phrases, near)
    return None


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(values)
    return tuple(" ".join(value.lower().split()) for value in values)


def describe(thing: str, colour: str | None, place: str | None) -> str:
    """Return the plain description of one object, such as ``a red house on grass``; None leaves a part out."""
    return " ".join(filter(None, (with_article(" ".join(filter(None, (colour, thing)))), place)))


def with_article(words: str) -> str:
    """Return ``words`` with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
