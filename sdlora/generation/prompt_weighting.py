"""Weights in a prompt, ``(word:1.2)``, and its chunks of 75 tokens, as AUTOMATIC1111 reads them.

``(word)`` weighs 1.1 times as much, ``[word]`` 1 / 1.1, ``(word:1.2)`` 1.2; they nest, ``\\(`` is a bracket itself, and
``BREAK`` begins a new part (the "Attention/emphasis" and "Infinite prompt length" of stable-diffusion-webui's wiki;
modules/prompt_parser.py, modules/sd_hijack_clip.py). As there, a bracket that is never closed reaches to the end, and
one that was never opened is a plain letter. Unlike there, a lone backslash stays, and ``BREAK`` works in brackets too.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

ROUND, SQUARE = 1.1, 1 / 1.1
MAX_BACKTRACK = 20
"""Most tokens by which a full chunk is shortened to end at a comma."""
MAX_DEPTH = 32
"""Most nested brackets of a kind; those further inside are letters (1.1 ** 32 is 21)."""
PIECE = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|[^\\()\[\]:]+|[\\:]")
BREAK = re.compile(r"\bBREAK\b")


class WeightedText(NamedTuple):
    """Words of one weight; ``text`` None is a ``BREAK``."""

    text: str | None
    weight: float = 1.0


class PromptChunk(NamedTuple):
    """A chunk of a prompt: token ids without start and end tokens, and a weight for each."""

    tokens: list[int]
    weights: list[float]


def parse_weights(prompt: str) -> list[WeightedText]:
    """Return ``prompt`` without its brackets, as runs of equal weight. Any text can be read."""
    texts: list[str | None] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    for piece in PIECE.finditer(prompt):
        text, number = piece.group(), piece.group(1)
        if text in opened and len(opened[text]) < MAX_DEPTH:
            opened[text].append(len(texts))
        elif number is not None and opened["("]:
            close("(", float(number))
        elif text == ")" and opened["("]:
            close("(", ROUND)
        elif text == "]" and opened["["]:
            close("[", SQUARE)
        else:
            texts += [text[1]] if text.startswith("\\") and len(text) == 2 else _parts(text)
            weights += [1.0] * (len(texts) - len(weights))
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return _joined(map(WeightedText, texts, weights))


def _parts(text: str) -> list[str | None]:
    """Split ``text`` at each ``BREAK``, which is a None and takes the space around it along."""
    first, *rest = BREAK.split(text)
    if not rest:
        return [first]
    *middle, last = rest
    return [first.rstrip(), *(part for text in middle for part in (None, text.strip())), None, last.lstrip()]


def _joined(runs: Iterable[WeightedText]) -> list[WeightedText]:
    """Join neighbours of one weight, so that words are cut into tokens as they would be without brackets."""
    joined: list[WeightedText] = []
    for (is_break, weight), group in groupby(runs, lambda run: (run.text is None, run.weight)):
        alike = list(group)
        joined += alike if is_break else [WeightedText("".join(run.text or "" for run in alike), weight)]
    return [run for run in joined if run.text != ""] or [WeightedText("")]


def escape_weights(text: str) -> str:
    """Escape ``text`` so that ``parse_weights`` reads its brackets and backslashes as letters."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", text)


def split_chunks(runs: Sequence[WeightedText], tokens: Callable[[str], list[int]], room: int) -> list[PromptChunk]:
    """Split ``runs`` into chunks of at most ``room`` tokens, at least one; ``tokens`` gives a text's token ids.

    A full chunk ends at its last comma, if that is among its last ``MAX_BACKTRACK`` tokens.
    """
    comma = tokens(",")
    parts = [PromptChunk([], [])]
    for text, weight in runs:
        if text is None:
            parts.append(PromptChunk([], []))
            continue
        for token in tokens(text):
            if len(parts[-1].tokens) == room:
                end = room if [token] == comma else _end(parts[-1].tokens, comma)
                ids, weights = parts.pop()
                parts += [PromptChunk(ids[:end], weights[:end]), PromptChunk(ids[end:], weights[end:])]
            parts[-1].tokens.append(token)
            parts[-1].weights.append(weight)
    return parts[:-1] if len(parts) > 1 and not parts[-1].tokens else parts


def _end(tokens: list[int], comma: list[int]) -> int:
    """Return after how many of its ``tokens`` a full chunk ends."""
    full = len(tokens)
    return next((end for end in range(full, max(0, full - MAX_BACKTRACK), -1) if [tokens[end - 1]] == comma), full)
