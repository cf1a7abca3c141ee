"""Edit adapters layer by layer: merge, resize, extract from two models, bake into a model, inspect, compare."""

from sdlora.editing.baking import bake
from sdlora.editing.extracting import extract
from sdlora.editing.layer_spectrum import spectrum
from sdlora.editing.merging import merge, merge_by
from sdlora.editing.overlap import overlap
from sdlora.editing.resizing import resize

__all__ = ["bake", "extract", "merge", "merge_by", "overlap", "resize", "spectrum"]
