"""From seeds and prompts to pictures: one batch through diffusers' sampling loop, and the decoder after it.

A picture depends on its own prompt and seed alone. Its noise comes from a generator of its own, on the CPU and in
float32, so that a seed means the same noise on any device; prompts are encoded, and latents decoded, one by one.
What a batch shares is the UNet, whose sums a larger batch may round differently (1e-6 on a CPU).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sdlora.errors import NonFiniteError
from sdlora.families.base import Family
from sdlora.generation.samplers import make_scheduler

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Picture:
    """One picture to be made: ``prompt`` without adapter tags."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Recipe:
    """What all pictures of a request share. Sizes are in pixels; ``cfg`` of 1 or less is no guidance."""

    negative: str
    steps: int
    cfg: float
    sampler: str
    width: int
    height: int


@contextmanager
def at_rest(family: Family) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards every module is in the mode that it was in."""
    modules = [module for model in (*family.models.values(), family.vae) for module in model.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def draw(
    family: Family, pictures: Sequence[Picture], recipe: Recipe, on_step: Callable[[float], object]
) -> "list[Image.Image]":
    """Make ``pictures`` in one batch. ``on_step`` gets the part done, 0 to 1, after each step, and may raise to end it.

    Warns of prompts that are cut. Raises NonFiniteError if a picture's latents are not numbers.
    """
    pipeline = family.pipeline(make_scheduler(recipe.sampler, family.scheduler_config))
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(picture.seed) for picture in pictures]
    texts = {recipe.negative, *(picture.prompt for picture in pictures)}
    read = {text: _encode(family, pipeline.tokenizer, text) for text in sorted(texts)}
    latents: torch.Tensor = pipeline(
        prompt_embeds=torch.cat([read[picture.prompt] for picture in pictures]),
        negative_prompt_embeds=torch.cat([read[recipe.negative]] * len(pictures)) if recipe.cfg > 1 else None,
        latents=_noise(family, recipe, generators),
        generator=generators,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.cfg,
        width=recipe.width,
        height=recipe.height,
        output_type="latent",
        callback_on_step_end=lambda pipe, index, _, state: on_step((index + 1) / pipe.num_timesteps) or state,
        callback_on_step_end_tensor_inputs=[],
    ).images
    if not latents.isfinite().all():
        raise NonFiniteError(
            "the picture came out as NaN; lower the adapters' scales or the CFG scale, or take precision fp32"
        )
    return [_to_image(decode(family.vae, latent)) for latent in latents.split(1)]


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W) in about [-1, 1], float32, of scaled ``latents``.

    Some decoders overflow in half precision, which shows as black pictures: those are decoded again in float32.
    """
    latents, dtype = latents / vae.config.scaling_factor, vae.dtype
    pixels: torch.Tensor = vae.decode(latents.to(dtype), return_dict=False)[0].float()
    if dtype == torch.float32 or pixels.isfinite().all():
        return pixels
    try:
        return vae.to(torch.float32).decode(latents.float(), return_dict=False)[0]
    finally:
        vae.to(dtype)  # Widened weights narrow again to the same bits.


def _encode(family: Family, tokenizer: Any, text: str) -> torch.Tensor:
    """(1, L, D): what the UNet reads of ``text``, in the UNet's precision. Warns if ``text`` is too long to be read."""
    ids = family.tokenize([text])
    whole, length = tokenizer(text, verbose=False).input_ids, ids.shape[1]
    if len(whole) > length:
        lost = tokenizer.decode(whole[length - 1 : -1])
        warnings.warn(f"prompt: {len(whole)} tokens, of which {length} are read; left out: {lost!r}", stacklevel=3)
    unet: Any = family.models["unet"]
    return family.encode_text(ids).text.to(unet.dtype)


def _noise(family: Family, recipe: Recipe, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """(B, C, H / factor, W / factor) standard normal, on the family's device and in its UNet's precision."""
    unet: Any = family.models["unet"]
    height, width = recipe.height // family.latent_factor, recipe.width // family.latent_factor
    shape = (1, unet.config.in_channels, height, width)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(family.device, unet.dtype)


def _to_image(pixels: torch.Tensor) -> "Image.Image":
    """The picture of (1, 3, H, W) pixels in [-1, 1]."""
    from PIL import Image

    levels = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
