"""sdlora: LoRA training for Stable Diffusion. The public names load on first use (PEP 562)."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdlora.api.training import train
    from sdlora.config import TrainConfig as TrainConfig
    from sdlora.generation.studio import Studio as Studio

__version__ = "0.1.0"
_PUBLIC = {"TrainConfig": "sdlora.config", "train": "sdlora.api.training", "Studio": "sdlora.generation.studio"}
__all__ = ["Studio", "TrainConfig", "train"]
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT loads it where it is installed, and it advises.


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sdlora' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
