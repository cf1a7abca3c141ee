"""Summary of an adapter file from its header alone: for lists of many files, no tensor is read and no torch loaded."""

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.adapters import parametrizations
from sdlora.errors import FormatError
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formats.checked_tensors import FOREIGN, refuse_pickle
from sdlora.formats.infer_base import infer_family_from_header
from sdlora.formats.inspection import trigger_words
from sdlora.formats.storage import FORMATS

PICTURES = ("ssmd_cover_images", "modelspec.thumbnail")
"""Header entries with images: a JSON list of base64 texts (sd-webui-additional-networks), or a data URL."""
MARKS = {"dora_scale": "magnitude", "on_input": "input_scale"}
"""Tensors of files that alone tell a layer's method, and one that only this method has."""
Shapes = dict[str, tuple[int, ...]]
"""Shapes of a layer's tensors, by name."""


@dataclass(frozen=True)
class HeaderSummary:
    """Facts of an adapter file from its header. Fields that the header does not tell are empty."""

    title: str
    format: str
    method: str
    family: str
    base: str
    """Name of the base model in the file."""
    rank: str
    """``16``, or ``4 to 16``."""
    alpha: str
    triggers: tuple[str, ...]
    layers: int
    illustrated: bool
    """True if the header seems to hold an image, which ``read_cover_image`` returns."""


def read_header_summary(path: Path) -> HeaderSummary:
    """Summarise the adapter file at ``path``.

    Raises FormatError if it is no complete safetensors file or holds no adapter, FileError if it cannot be read.
    """
    refuse_pickle(path)
    header = read_safetensors_header(path)
    shapes = {key: _shape(path, entry) for key, entry in header.items() if key != "__metadata__"}
    if not shapes:
        raise FormatError(f"{path}: holds no tensors")
    metadata = _metadata(header)
    foreign = next((name for mark, name in FOREIGN.items() if any(mark in f"{key}." for key in shapes)), "")
    format = max(FORMATS.values(), key=lambda candidate: sum(candidate.parse(key) is not None for key in shapes))
    layers: dict[str, Shapes] = {}
    for key, shape in shapes.items():
        if (slot := format.parse(key)) and slot[1] != "alpha":
            layers.setdefault(slot[0], {})[slot[1]] = shape
    methods = Counter(filter(None, map(_method, layers.values())))
    if not methods and not foreign:
        raise FormatError(f"{path}: is no adapter that is known here: {len(shapes)} tensors")
    ranks = Counter(filter(None, map(_rank, layers.values())))
    widths = {layer: _inputs(own) for layer, own in layers.items()}
    return HeaderSummary(
        title=metadata.get("modelspec.title") or metadata.get("ss_output_name", ""),
        format=format.name if methods else "",
        method=foreign or parametrizations.parametrizations()[methods.most_common(1)[0][0]].title,
        family=infer_family_from_header(widths, metadata, shapes.keys()),
        base=metadata.get("ss_sd_model_name", ""),
        rank=f"{min(ranks)} to {max(ranks)}" if len(ranks) > 1 else "".join(map(str, ranks)),
        alpha=metadata.get("ss_network_alpha", ""),
        triggers=trigger_words(metadata),
        layers=len(layers),
        illustrated=any(map(metadata.get, PICTURES)),
    )


def read_cover_image(path: Path) -> bytes:
    """Return the first image in a file's header, or empty bytes: any kind of image file, to be checked before it is
    opened.

    Raises FormatError and FileError as ``read_header_summary`` does.
    """
    metadata = _metadata(read_safetensors_header(path))
    text = metadata.get(PICTURES[1], "")
    try:
        covers = json.loads(metadata.get(PICTURES[0]) or "[]")
        text = covers[0] if isinstance(covers, list) and covers and isinstance(covers[0], str) else text
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (ValueError, RecursionError):  # Foreign tools write anything there.
        return b""


def _method(own: Shapes) -> str:
    """Return the method of a layer with tensors of these names; empty if there is none."""
    try:
        return parametrizations.method_of([MARKS[name] for name in MARKS if name in own][:1] or own)
    except FormatError:
        return ""


def _rank(own: Shapes) -> int:
    """Return a layer's rank; 0 if it has none."""
    ranked = (own[name] for each in parametrizations.parametrizations().values() for name in each.ranked if name in own)
    return next((shape[0] for shape in ranked if shape), 0)


def _inputs(own: Shapes) -> int:
    """Return the input width of a linear layer, from its adapter's shapes; 0 if they do not tell."""
    columns = {name: shape[1] for name, shape in own.items() if len(shape) > 1}
    if small := columns.get("lokr_w1") or columns.get("lokr_w1_b"):
        return small * (columns.get("lokr_w2") or columns.get("lokr_w2_b") or 0)
    return columns.get("down") or columns.get("hada_w1_b") or columns.get("diff") or 0


def _shape(path: Path, entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
        raise FormatError(f"{path}: is not a safetensors file (its header is damaged)")
    return tuple(shape)


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        return {}
    return {key: text for key, text in metadata.items() if isinstance(text, str)}
