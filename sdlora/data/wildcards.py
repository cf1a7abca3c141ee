"""Wildcards in captions: ``{red|blue} house`` stands for one of its options, which is drawn anew at each step.

They nest, an option may be empty, and ``{3::red|blue}`` draws red three times as often. ``\\{``, ``\\|`` and ``\\}``
are the letters themselves, and so is what stands in doubled braces, ``{{red|blue}}``. Of several lines, one is drawn.
Lines, braces and doubled braces are those of kohya's scripts (``enable_wildcard``), weights those of
sd-dynamic-prompts. Front ends may import this: no torch.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice, product
from math import prod
from typing import NamedTuple

from sdlora.seeds import uniform

MAX_DEPTH = 32
"""Most braces inside one another; those further inside are letters."""
MOST_READINGS = 16
"""Readings of a caption up to which all are listed; of more, as many are drawn."""
_PIECE = re.compile(r"\\[{|}]|[{|}]|[^\\{|}]+|\\")
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")
_COMMAS = re.compile(r"(?:\s*,){2,}")
_BRACE = re.compile(r"\\[{}]|[{}]")
_UNREAD = re.compile(r"(?<=\{)\s*[\d-]+\$\$|__[\w/*-]+__")
"""Spellings of other tools that are not read: several options at once (sd-dynamic-prompts), a line of a file."""


class Choice(NamedTuple):
    """One wildcard: its options, each a sequence of texts and further choices, and their weights."""

    options: "tuple[Parts, ...]"
    weights: tuple[float, ...]


Parts = tuple[str | Choice, ...]
_Open = list["str | list[_Open]"]
"""Parts while they are parsed: a list in place of a choice holds its options."""


@lru_cache(maxsize=4096)
def parse_wildcards(line: str) -> Parts:
    """Return the texts and choices of ``line``. Any text can be read: a brace without its partner is a letter."""
    levels: list[list[_Open]] = [[[]]]
    for piece in _PIECE.findall(line):
        if piece == "{" and len(levels) <= MAX_DEPTH:
            levels.append([[]])
        elif piece == "|" and len(levels) > 1:
            levels[-1].append([])
        elif piece == "}" and len(levels) > 1:
            options = levels.pop()
            levels[-1][-1].append(options)
        else:
            levels[-1][-1].append(piece[-1] if len(piece) == 2 and piece[1] in "{|}" else piece)
    while len(levels) > 1:
        options = levels.pop()
        levels[-1][-1] += ["{", *_joined(options)]
    return _built(levels[0][0])


def _joined(options: Sequence[_Open]) -> _Open:
    """Return the parts of all options, with bars between them that are letters."""
    return [*options[0], *(part for option in options[1:] for part in ("|", *option))]


def _built(parts: _Open) -> Parts:
    return tuple(built for part in parts for built in ((part,) if isinstance(part, str) else _choice(part)))


def _choice(options: list[_Open]) -> Parts:
    """Return the choice between ``options``; doubled braces are a pair of letters around what stands in them."""
    inner = options[0][0] if len(options) == 1 and len(options[0]) == 1 else ""
    if isinstance(inner, list):
        return ("{", *_built(_joined(inner)), "}")
    weights = []
    for option in options:
        start = option[0] if option and isinstance(option[0], str) else ""
        found = _WEIGHT.match(start)
        weights.append(float(found[1]) if found else 1.0)
        option[:1] = [start[found.end() :]] if found else option[:1]
    return (Choice(tuple(map(_built, options)), tuple(weights if any(weights) else [1.0] * len(weights))),)


def draw_reading(caption: str, *key: int | str) -> str:
    """Return one line of ``caption`` with one option of each of its choices; ``key`` decides which."""
    lines = caption.split("\n")
    line = lines[int(uniform(*key, "line") * len(lines))]
    return _tidied(line, _draw(parse_wildcards(line), *key, "wildcard"))


def _draw(parts: Parts, *key: int | str) -> str:
    texts = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        left, option = uniform(*key, number) * sum(part.weights), 0
        while left >= part.weights[option] and option + 1 < len(part.options):
            left -= part.weights[option]
            option += 1
        texts.append(_draw(part.options[option], *key, number, option))
    return "".join(texts)


def _tidied(line: str, reading: str) -> str:
    """Return ``reading`` without the spaces and commas that empty options leave; a line without choices as it is."""
    if reading == line:
        return line
    return _COMMAS.sub(",", " ".join(reading.split())).strip(" ,")


def count_readings(caption: str) -> int:
    """Return in how many ways ``caption`` can be read: 1 without choices and further lines.

    Options of equal text, and of weight 0, are counted too.
    """
    return sum(_count(parse_wildcards(line)) for line in caption.split("\n"))


def _count(parts: Parts) -> int:
    return prod(sum(map(_count, part.options)) for part in parts if isinstance(part, Choice))


def list_readings(caption: str, most: int = MOST_READINGS) -> list[str]:
    """Return the different readings of ``caption``: all if there are at most ``most``, else so many of them, drawn."""
    if count_readings(caption) > most:
        return list(dict.fromkeys(draw_reading(caption, "reading", number) for number in range(most)))
    lines = caption.split("\n")
    return list(dict.fromkeys(_tidied(line, text) for line in lines for text in _texts(parse_wildcards(line), most)))


def _texts(parts: Parts, most: int) -> Iterator[str]:
    """Yield the texts of ``parts``, ``most`` at most."""
    pools = [
        [part] if isinstance(part, str) else [*chain(*(_texts(option, most) for option in part.options))][:most]
        for part in parts
    ]
    return islice(map("".join, product(*pools)), most)


def unread_syntax(caption: str) -> list[str]:
    """List what is read as it stands in ``caption``, and looks like more: other tools' wildcards, a brace alone."""
    found = [text.strip() for text in _UNREAD.findall(caption)]
    for line in caption.split("\n"):
        opened = 0
        for brace in _BRACE.findall(line):
            opened += {"{": 1, "}": -1}.get(brace, 0)
            if opened < 0:
                break
        if opened:
            found.append("{" if opened > 0 else "}")
    return list(dict.fromkeys(found))
