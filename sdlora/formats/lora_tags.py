"""Adapters named in a prompt: ``<lora:name:0.8>``, in the syntax of AUTOMATIC1111.

The first number scales the text encoder and, unless a second is given, the UNet too; ``te=`` and ``unet=`` name
them (modules/extra_networks.py and extensions-builtin/Lora/extra_networks_lora.py of stable-diffusion-webui).
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from sdlora.adapters.state import Scale
from sdlora.errors import ConfigError
from sdlora.formatting import one_line

TAG = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)


TEXT, DENOISER = "text_encoder", "unet"
"""Keys of a tag's scales where it has two."""


class TaggedPrompt(NamedTuple):
    """A prompt without its tags, and the scales that they asked for."""

    text: str
    scales: dict[str, Scale]


def parse_lora_tags(prompt: str) -> TaggedPrompt:
    """Take the ``<lora:...>`` tags out of ``prompt``. Raises ConfigError for one that cannot be read.

    Of two tags with one name the later holds.
    """
    scales = dict(_read(tag.group(0), tag.group(1)) for tag in TAG.finditer(prompt))
    if not scales:
        return TaggedPrompt(prompt, {})
    text = re.sub(r"[ \t]{2,}", " ", TAG.sub(" ", prompt))
    return TaggedPrompt(re.sub(r" (?=,)", "", text).strip(" "), scales)


def lora_tag(name: str, scale: Scale) -> str:
    """The tag that asks for adapter ``name`` at ``scale``; the inverse of ``parse``."""
    if isinstance(scale, Mapping):
        numbers = ":".join(_number(scale.get(part, 1.0)) for part in (TEXT, DENOISER))
        return f"<lora:{name}:{numbers}>"
    return f"<lora:{name}:{_number(scale)}>"


def _read(tag: str, inside: str) -> tuple[str, Scale]:
    name, *rest = (part.strip() for part in inside.split(":"))
    named = dict(part.split("=", 1) for part in rest if "=" in part)
    positional = [part for part in rest if "=" not in part]
    unknown = sorted(named.keys() - {"te", "unet"})
    if not name or len(positional) > 2 or unknown:
        tag = one_line(tag)
        raise ConfigError(f"prompt: {tag} cannot be read; write <lora:name:0.8>, or <lora:name:TEXT:UNET>")
    text = _scale(tag, named.get("te", positional[0] if positional else "1"))
    unet = _scale(tag, named.get("unet", positional[1] if len(positional) == 2 else str(text)))
    return name, unet if unet == text else {TEXT: text, DENOISER: unet}


def _scale(tag: str, number: str) -> float:
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ConfigError(f"prompt: {one_line(tag)}: {one_line(number)!r} is no number; write <lora:name:0.8>")
    return scale


def _number(scale: float) -> str:
    return f"{scale:g}" if float(f"{scale:g}") == scale else repr(float(scale))
