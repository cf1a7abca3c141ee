"""Weights in a prompt, ``(word:1.2)``, and its parts of 75 tokens, as AUTOMATIC1111 reads them.

``(word)`` weighs 1.1 times as much, ``[word]`` 1 / 1.1, ``(word:1.2)`` 1.2; they nest, ``\\(`` is a bracket itself, and
``BREAK`` begins a new part (the "Attention/emphasis" and "Infinite prompt length" of stable-diffusion-webui's wiki;
modules/prompt_parser.py, modules/sd_hijack_clip.py). As there, a bracket that is never closed reaches to the end, and
one that was never opened is a plain letter. Unlike there, a lone backslash stays, and ``BREAK`` works in brackets too.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROUND, SQUARE = 1.1, 1 / 1.1
BACK = 20
"""How many tokens a full part is shortened by at most, to end at a comma."""
DEEPEST = 32
"""Brackets of a kind that count inside one another; what is opened further in is a letter (1.1 ** 32 is 21)."""
PIECE = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|[^\\()\[\]:]+|[\\:]")
BREAK = re.compile(r"\bBREAK\b")


class Run(NamedTuple):
    """Words of one weight; ``text`` None is a ``BREAK``."""

    text: str | None
    weight: float = 1.0


class Chunk(NamedTuple):
    """A part of a prompt: token ids without the marks of beginning and end, and a weight for each."""

    tokens: list[int]
    weights: list[float]


def parse(prompt: str) -> list[Run]:
    """``prompt`` without its brackets, as runs of equal weight. Any text can be read."""
    runs: list[Run] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        runs[start:] = [Run(run.text, run.weight * factor) for run in runs[start:]]

    for piece in PIECE.finditer(prompt):
        text, number = piece.group(), piece.group(1)
        if text in opened and len(opened[text]) < DEEPEST:
            opened[text].append(len(runs))
        elif number is not None and opened["("]:
            close("(", float(number))
        elif text == ")" and opened["("]:
            close("(", ROUND)
        elif text == "]" and opened["["]:
            close("[", SQUARE)
        elif text.startswith("\\") and len(text) == 2:
            runs.append(Run(text[1]))
        else:
            runs += _parts(text)
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return _joined(runs)


def _parts(text: str) -> list[Run]:
    """``text`` as runs, cut at each ``BREAK``, which takes the space around it along."""
    first, *rest = BREAK.split(text)
    if not rest:
        return [Run(first)]
    *middle, last = rest
    return [
        Run(first.rstrip()),
        *(run for part in middle for run in (Run(None), Run(part.strip()))),
        Run(None),
        Run(last.lstrip()),
    ]


def _joined(runs: Sequence[Run]) -> list[Run]:
    """Neighbours of one weight as one run, so that words are cut into tokens as they would be without brackets."""
    joined: list[Run] = []
    for run in runs:
        last = joined[-1] if joined else Run(None)
        if run.text is None or last.text is None or run.weight != last.weight:
            joined.append(run)
        else:
            joined[-1] = Run(last.text + run.text, run.weight)
    return [run for run in joined if run.text != ""] or [Run("")]


def escape(text: str) -> str:
    """``text`` so that ``parse`` reads its brackets and backslashes as letters."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", text)


def chunks(runs: Sequence[Run], tokens: Callable[[str], list[int]], room: int) -> list[Chunk]:
    """``runs`` cut into parts of at most ``room`` tokens, at least one; ``tokens`` gives a text's bare token ids.

    A part that is full ends at its last comma, if that is among its last ``BACK`` tokens.
    """
    comma = tokens(",")
    parts = [Chunk([], [])]
    for text, weight in runs:
        if text is None:
            parts.append(Chunk([], []))
            continue
        for token in tokens(text):
            if len(parts[-1].tokens) == room:
                end = room if [token] == comma else _end(parts[-1].tokens, comma)
                ids, weights = parts.pop()
                parts += [Chunk(ids[:end], weights[:end]), Chunk(ids[end:], weights[end:])]
            parts[-1].tokens.append(token)
            parts[-1].weights.append(weight)
    return parts[:-1] if len(parts) > 1 and not parts[-1].tokens else parts


def _end(tokens: list[int], comma: list[int]) -> int:
    """After how many of the ``tokens`` of a full part it ends."""
    full = len(tokens)
    return next((end for end in range(full, max(0, full - BACK), -1) if [tokens[end - 1]] == comma), full)
