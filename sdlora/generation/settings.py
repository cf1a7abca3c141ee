"""Settings of an image, declared once.

Commands, endpoints, the page's fields, grids, previews and class images derive their settings from these sections.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sdlora.data.settings import ClassImageSettings
from sdlora.errors import ConfigError
from sdlora.generation.samplers import canonical_sampler
from sdlora.section import Section

LARGEST_SEED = 2**53 - 1
"""Largest seed that a browser's numbers keep exactly; larger ones became others on their way through the page."""


def validate_sampler(name: str) -> str:
    """Return ``name`` as the table of samplers spells it. Raises ValueError, naming near ones, if it is unknown."""
    try:
        return canonical_sampler(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None


Steps = Annotated[int, Field(ge=1, le=1000)]
Sampler = Annotated[str, AfterValidator(validate_sampler)]


class SamplingSettings(Section):
    """Settings of sampling latents. Class images take these alone: their size and text layer follow the training."""

    negative: str = ""
    """Negative prompt: what to keep out of the image."""

    steps: Steps = 25
    """Sampling steps: more take longer, and beyond some 30 change little."""

    cfg: float = Field(default=7.0, ge=0, le=100)
    """Guidance scale: how closely an image follows its prompt; 1 and below is no guidance."""

    sampler: Sampler = "DPM++ 2M"
    """Sampler by its A1111 name, such as `Euler a` or `DPM++ 2M Karras`."""


class ImageSettings(SamplingSettings):
    """Everything that decides an image beside base, adapters, prompt and seed."""

    clip_skip: int = Field(default=1, ge=1, le=100)
    """Text-encoder layer that is read, counted back from the one that the base was trained with, which is 1 (for SDXL
    the last but one)."""

    width: int | None = Field(default=None, ge=8, le=8192)
    """Width in pixels; the base model's own size if left out."""

    height: int | None = Field(default=None, ge=8, le=8192)
    """Height in pixels; the base model's own size if left out."""


class GenerationSettings(ImageSettings):
    """Everything that decides an image beside base and adapters."""

    prompt: str = ""
    """Prompt of the image; `<lora:NAME:0.8>` sets an adapter's scale, `(word:1.2)` a weight."""

    seed: int = Field(default=-1, ge=-1, le=LARGEST_SEED)
    """Seed of the noise; -1 picks a random one."""


class PreviewSchedule(Section):
    """Choice of the previews that a run makes, and when."""

    every: int = Field(default=100, ge=0)
    """Steps between two previews; 0 makes none."""

    prompts: tuple[str, ...] = Field(default=(), max_length=100)
    """Prompts of the previews: one picture each. Empty makes none. `(word:1.2)` weights words."""

    seed: int = Field(default=1, ge=0, le=LARGEST_SEED)
    """Image i starts from the noise of seed + i, at every step of the training the same."""


class Sample(ImageSettings, PreviewSchedule):
    """Images generated with the adapter while it trains, from step 0 on, always from the same noise."""

    steps: Steps = 20
    """Sampling steps: fewer than for single images, as every preview takes its time from the training."""


class Prior(SamplingSettings, ClassImageSettings):
    """Prior preservation: class images that keep the base's idea of the class (DreamBooth, arXiv:2208.12242)."""

    sampler: Sampler = "DDIM"
    """Sampler of the class images, by its A1111 name. They are cached by it: DDIM keeps those of earlier runs valid."""


class Engine(Section):
    """Computation of images: what it costs, and next to nothing of what they show."""

    vae_tiling: Literal["auto", "on", "off"] = "auto"
    """Decode large images in overlapping tiles: less memory, faint traces. `auto`: where memory is too short."""

    offload: Literal["none", "model"] = "none"
    """`model`: text encoders, denoiser and VAE are on the graphics card only while they run; slower, with less of its
    memory."""

    attention: Literal["sdpa", "xformers"] = "sdpa"
    """PyTorch's own attention, or that of xformers, where it is installed."""
