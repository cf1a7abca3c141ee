"""Adapter methods by name, and the type of the config's ``adapter`` section.

A new method is one file with its section, and one line in each of the two below.
"""

from typing import Annotated

from pydantic import Discriminator

from sdlora.adapters.lora import Lora

METHODS = {"lora": Lora}

Adapter = Annotated[Lora, Discriminator("method")]
