"""Captions as a base model's text encoder reads them: in its tokens, in chunks. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdlora.families.clip_tokenizer import local_tokenizer
from sdlora.generation.prompt_weighting import WeightedText, parse_weights, split_chunks

ROOM = 75
"""Tokens of a chunk beside its start and end: the text encoders of all families read 77."""


class ReadCaption(NamedTuple):
    """A caption as the text encoder receives it."""

    chunks: tuple[str, ...]
    """The text of each chunk, as its tokens spell it."""
    tokens: int
    """Number of tokens, without those of start and end."""


def read_captions(
    captions: Sequence[str], base: str, weighted: bool = False, tokenizer: Path | None = None
) -> list[ReadCaption] | None:
    """Return ``captions`` in the tokens of ``base``; None if its tokenizer does not lie on this machine.

    ``weighted`` reads brackets as weights (``data.caption_weights``). ``tokenizer`` is ``model.tokenizer``. Raises
    ModelError for a base that is none, or a tokenizer that cannot be read.
    """
    found = local_tokenizer(base, tokenizer)
    if found is None:
        return None

    def ids(text: str) -> list[int]:
        return list(found(text, add_special_tokens=False, verbose=False).input_ids)

    read = []
    for caption in captions:
        chunks = split_chunks(parse_weights(caption) if weighted else [WeightedText(caption)], ids, ROOM)
        texts = tuple(str(found.decode(chunk.tokens)) for chunk in chunks)
        read.append(ReadCaption(texts, sum(len(chunk.tokens) for chunk in chunks)))
    return read
