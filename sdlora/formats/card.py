"""What an adapter file's header alone tells: for lists of many files, where no tensor is read and no torch loaded."""

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import FormatError
from sdlora.files import read_safetensors_header
from sdlora.formats.inspection import triggers
from sdlora.formats.kinship import family_by
from sdlora.formats.kohya import ORIGINAL
from sdlora.formats.storage import FOREIGN, FORMATS, refuse_pickle

PICTURES = ("ssmd_cover_images", "modelspec.thumbnail")
"""Where headers keep pictures: a JSON list of base64 texts (sd-webui-additional-networks), or a data URL."""
FAMILY_NAMES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}


@dataclass(frozen=True)
class Card:
    """An adapter file by its header. What the header does not tell is empty."""

    title: str
    format: str
    method: str
    family: str
    base: str
    """What the file calls its base model."""
    rank: str
    """``16``, or ``4 to 16``."""
    alpha: str
    triggers: tuple[str, ...]
    layers: int
    illustrated: bool
    """Whether the header seems to hold a picture: ``read_cover`` gets it."""


def read_card(path: Path) -> Card:
    """The card of the adapter file at ``path``.

    Raises FormatError if it is no whole safetensors file or holds no adapter, FileError if it cannot be read.
    """
    refuse_pickle(path)
    header = read_safetensors_header(path)
    shapes = {key: _shape(path, entry) for key, entry in header.items() if key != "__metadata__"}
    metadata = _metadata(header)
    method = next((name for mark, name in FOREIGN.items() if any(mark in f"{key}." for key in shapes)), "LoRA")
    format = max(FORMATS.values(), key=lambda candidate: sum(candidate.parse(key) is not None for key in shapes))
    slots = {format.parse(key): shape for key, shape in shapes.items()}
    downs = {slot[0]: shape for slot, shape in slots.items() if slot is not None and slot[1] == "down" and shape}
    if not downs and method == "LoRA":
        raise FormatError(f"{path}: is no adapter that is known here: {len(shapes)} tensors")
    ranks = Counter(shape[0] for shape in downs.values())
    widths = {layer: shape[1] for layer, shape in downs.items() if len(shape) > 1}
    return Card(
        title=metadata.get("modelspec.title") or metadata.get("ss_output_name", ""),
        format=format.name if downs else "",
        method=method,
        family="sdxl" if any(key.startswith(ORIGINAL) for key in shapes) else family_by(widths, metadata),
        base=metadata.get("ss_sd_model_name", ""),
        rank=f"{min(ranks)} to {max(ranks)}" if len(ranks) > 1 else "".join(map(str, ranks)),
        alpha=metadata.get("ss_network_alpha", ""),
        triggers=triggers(metadata),
        layers=len(downs),
        illustrated=any(map(metadata.get, PICTURES)),
    )


def read_cover(path: Path) -> bytes:
    """The first picture in a file's header: a picture file of any kind, to be judged before it is opened; or nothing.

    Raises FormatError and FileError as ``read_card`` does.
    """
    metadata = _metadata(read_safetensors_header(path))
    text = metadata.get(PICTURES[1], "")
    try:
        covers = json.loads(metadata.get(PICTURES[0]) or "[]")
        text = covers[0] if isinstance(covers, list) and covers and isinstance(covers[0], str) else text
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (ValueError, RecursionError):  # Strangers write anything there.
        return b""


def _shape(path: Path, entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
        raise FormatError(f"{path}: is not a safetensors file (its header is damaged)")
    return tuple(shape)


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    said = header.get("__metadata__")
    return {key: text for key, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}
