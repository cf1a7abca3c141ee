"""Adapters as material: merged, resized, extracted from two models, baked into one, looked into; a layer at a time."""

from sdlora.editing.baking import bake
from sdlora.editing.extracting import extract
from sdlora.editing.layer_spectrum import spectrum
from sdlora.editing.merging import merge
from sdlora.editing.resizing import resize

__all__ = ["bake", "extract", "merge", "resize", "spectrum"]
