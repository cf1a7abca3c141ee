"""Adapter methods by name, and the type of the config's ``adapter`` section.

A new method is one file with its section, a row in ``METHODS`` and in ``forms.FORMS``, and one more member of the
union.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator

from sdlora.adapters.ia3 import Ia3
from sdlora.adapters.lora import Dora, Lora
from sdlora.adapters.lycoris import Loha, Lokr
from sdlora.adapters.method import Method

METHODS: dict[str, type[Method]] = {"lora": Lora, "dora": Dora, "loha": Loha, "lokr": Lokr, "ia3": Ia3}


def _with_method(value: Any) -> Any:
    """A table that names no method is a LoRA's: a union, unlike a field, has no default for what tells it apart."""
    return {"method": "lora"} | value if isinstance(value, dict) else value


Adapter = Annotated[Lora | Dora | Loha | Lokr | Ia3, Discriminator("method"), BeforeValidator(_with_method)]
