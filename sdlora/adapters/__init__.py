"""Adapter methods by name, and the type of the config's ``adapter`` section.

A new method is one file with its section, one row in ``METHODS``, and one more member of the union: ``Lora | Dora``.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator

from sdlora.adapters.base import Method
from sdlora.adapters.lora import Lora

METHODS: dict[str, type[Method]] = {"lora": Lora}


def _with_method(value: Any) -> Any:
    """A table that names no method is a LoRA's: a union, unlike a field, has no default for what tells it apart."""
    return {"method": "lora"} | value if isinstance(value, dict) else value


Adapter = Annotated[Lora, Discriminator("method"), BeforeValidator(_with_method)]
