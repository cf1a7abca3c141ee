"""Masks of training images made by models. Adding a kind of model is one new file and one row here."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdlora.masking.segmenter import Segmenter

KINDS = {
    "clipseg": ("sdlora.masking.clipseg", "ClipSegmenter"),
    "onnx": ("sdlora.masking.saliency", "SaliencySegmenter"),
    "faces": ("sdlora.masking.faces", "FaceSegmenter"),
}
"""Module and class of each kind of segmenter, imported on first use. ``clipseg`` is transformers' own name."""


def segmenter_class(kind: str) -> "type[Segmenter]":
    """Return the class of a ``kind`` of segmenter."""
    module, name = KINDS[kind]
    found: type[Segmenter] = getattr(import_module(module), name)
    return found
