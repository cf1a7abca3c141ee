"""Texts as the denoiser reads them: prompts when generating, captions when training, in chunks.

The text encoder reads a fixed number of tokens, 77 of Stable Diffusion's. Longer texts are split into chunks, each read
on its own; a denoiser reads them one behind the other. The pooled output of a text is its first chunk's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from sdlora.families.base import Conditioning, Family
from sdlora.generation.prompt_weighting import PromptChunk, WeightedText, parse_weights, split_chunks

MOST_KEPT = 65_536
"""Captions whose tokens a reader keeps."""


def prompt_chunks(family: Family, text: str, weighted: bool = True) -> list[PromptChunk]:
    """Split ``text`` into chunks that the text encoder can read; its brackets are weights, or just letters."""
    room = family.build_input_ids([]).shape[1] - 2
    runs = parse_weights(text) if weighted else [WeightedText(text)]
    return split_chunks(runs, family.token_ids_without_special, room)


def join_chunks(rows: Conditioning, chunks: int) -> Conditioning:
    """Return (B, ``chunks`` L, D) of ``rows`` (B ``chunks``, L, D), in which each text's chunks follow one another."""
    if chunks == 1:
        return rows
    text = rows.text.reshape(-1, chunks * rows.text.shape[1], rows.text.shape[2])
    return replace(rows, text=text, pooled=None if rows.pooled is None else rows.pooled[::chunks])


def apply_token_weights(vectors: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Multiply encoded tokens ``vectors`` (1, L, D) by their weights, then by one number that restores their mean.

    The "Original" emphasis of stable-diffusion-webui (modules/sd_emphasis.py). ``weights`` begin at the second token.
    Where the new mean is no average of the old ones, as with vectors whose means have no common sign, the ratio of the
    means carries no information, and the vectors are only weighted.
    """
    if all(weight == 1 for weight in weights):
        return vectors
    each = torch.ones(vectors.shape[1], device=vectors.device)
    each[1 : 1 + len(weights)] = torch.tensor(weights, device=vectors.device)
    weighted = vectors.float() * each[:, None]
    change = float(weighted.mean() / vectors.float().mean())
    restored = weighted / change if change and min(1, *weights) <= change <= max(1, *weights) else weighted
    return restored.to(vectors.dtype)


class CaptionReader:
    """Captions as the text encoder reads them in training; those that are to be stacked get equally many chunks.

    What is missing is filled up with empty chunks, as between a prompt and its negative prompt.
    """

    def __init__(self, family: Family, weighted: bool = False):
        self.family, self.weighted = family, weighted
        self._chunks = lru_cache(MOST_KEPT)(self._split)

    def _split(self, caption: str) -> list[PromptChunk]:
        return prompt_chunks(self.family, caption, self.weighted)

    def count(self, caption: str) -> int:
        """Return the number of chunks of ``caption``, 1 or more."""
        return len(self._chunks(caption))

    def ids(self, captions: Sequence[str], chunks: int | None = None) -> torch.Tensor:
        """Return token ids (rows, L) int64: ``chunks`` rows of each caption, or as many as it has."""
        return torch.cat([self.family.build_input_ids(chunk.tokens) for chunk in self._rows(captions, chunks)])

    def read(
        self, captions: Sequence[str], chunks: int, encode: Callable[[torch.Tensor], Conditioning]
    ) -> Conditioning:
        """Return the conditioning (B, ``chunks`` L, D) of ``captions``; ``encode`` reads rows of token ids."""
        rows = encode(self.ids(captions, chunks))
        weights = [chunk.weights for chunk in self._rows(captions, chunks)]
        if any(weight != 1 for each in weights for weight in each):
            pairs = zip(rows.text.split(1), weights, strict=True)
            rows = replace(rows, text=torch.cat([apply_token_weights(row, each) for row, each in pairs]))
        return join_chunks(rows, chunks)

    def _rows(self, captions: Sequence[str], chunks: int | None) -> list[PromptChunk]:
        rows = []
        for own in map(self._chunks, captions):
            rows += [*own, *[PromptChunk([], [])] * ((chunks or 0) - len(own))]
        return rows
