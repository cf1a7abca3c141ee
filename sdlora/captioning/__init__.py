"""Captions written by models. Adding a kind of model is one new file and one row here."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdlora.captioning.captioner import Captioner

KINDS = {
    "pocket": ("sdlora.captioning.pocket", "PocketCaptioner"),
    "blip": ("sdlora.captioning.blip", "BlipCaptioner"),
    "florence2": ("sdlora.captioning.florence2", "Florence2Captioner"),
    "wd14": ("sdlora.captioning.wd14", "Wd14Captioner"),
}
"""Module and class of each kind of captioner, imported on first use. Names of transformers' models are its own."""


def captioner_class(kind: str) -> "type[Captioner]":
    """Return the class of a ``kind`` of captioner."""
    module, name = KINDS[kind]
    found: type[Captioner] = getattr(import_module(module), name)
    return found
