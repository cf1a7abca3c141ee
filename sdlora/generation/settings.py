"""Previews while training, as settings."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sdlora.errors import ConfigError
from sdlora.generation.samplers import canonical_sampler
from sdlora.section import Section


def validate_sampler(name: str) -> str:
    """``name`` as the table of samplers spells it. Raises ValueError, naming near ones, if it is unknown."""
    try:
        return canonical_sampler(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None


class Engine(Section):
    """How pictures are computed: what it costs, and next to nothing of what they show."""

    vae_tiling: Literal["auto", "on", "off"] = "auto"
    """Decode large pictures in overlapping tiles: less memory, faint traces. `auto`: where they would not fit whole."""

    offload: Literal["none", "model"] = "none"
    """`model`: text encoders, UNet and VAE come to the graphics card in turns; slower, with less of its memory."""

    attention: Literal["sdpa", "xformers"] = "sdpa"
    """PyTorch's own attention, or that of xformers, where it is installed."""


class Sample(Section):
    """Pictures drawn with the adapter while it trains, from step 0 on, always from the same noise."""

    every: int = Field(default=100, ge=0)
    """Steps between two previews; 0 draws none."""

    prompts: tuple[str, ...] = ()
    """What to draw: one picture a prompt. Empty draws none. `(word:1.2)` weighs words here, not in captions."""

    negative: str = ""
    """What to keep out of the pictures."""

    steps: int = Field(default=20, ge=1, le=1000)
    """Sampling steps: more take longer, and beyond some 30 change little."""

    cfg: float = Field(default=7.0, ge=0, le=100)
    """Guidance scale: how closely a picture follows its prompt; 1 and below is no guidance."""

    sampler: Annotated[str, AfterValidator(validate_sampler)] = "DPM++ 2M"
    """Sampler by its A1111 name, such as `Euler a` or `DPM++ 2M Karras`."""

    clip_skip: int = Field(default=1, ge=1, le=100)
    """The layer of text that is read, counted back from the one that the base was trained with, which is 1 (of SDXL its
    last but one)."""

    seed: int = Field(default=1, ge=0, lt=2**63)
    """Picture i is drawn from the noise of seed + i."""

    width: int | None = Field(default=None, ge=8, le=8192)
    """Width in pixels; the base model's own size if left out."""

    height: int | None = Field(default=None, ge=8, le=8192)
    """Height in pixels; the base model's own size if left out."""
