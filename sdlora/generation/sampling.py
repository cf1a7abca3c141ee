"""From seeds and prompts to pictures: one batch through diffusers' sampling loop, and the decoder after it.

A picture depends on its own prompt and seed alone. Its noise comes from a generator of its own, on the CPU and in
float32, so that a seed means the same noise on any device; prompts are encoded, and latents decoded, one by one.
A batch shares the denoiser, whose sums a larger batch may round differently (1e-6 on a CPU).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sdlora.errors import NonFiniteError
from sdlora.families.base import Conditioning, Family
from sdlora.generation import prompt_weighting
from sdlora.generation.samplers import make_scheduler

if TYPE_CHECKING:
    from PIL import Image
from sdlora.generation.generation_spec import PromptSeed, SamplingParams


@contextmanager
def eval_mode(family: Family) -> Iterator[None]:
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


def sample_images(
    family: Family,
    pictures: Sequence[PromptSeed],
    recipe: SamplingParams,
    on_step: Callable[[float], object],
    mix: Callable[[Sequence[int]], object] = lambda places: None,
) -> "list[Image.Image]":
    """Make ``pictures``, in one batch where their texts have equally many parts.

    ``on_step`` gets the part done, 0 to 1, after each step, and may raise to end it. ``mix(places)`` puts the adapters
    at the scales of the pictures at ``places``: of each alone before its texts are encoded, then of those that the
    denoiser is given. Prompt and negative prompt are padded to equally many parts, with empty ones.
    Raises NonFiniteError if a picture's latents are not numbers.
    """
    alike: dict[int, list[int]] = {}
    read: list[list[Conditioning]] = []
    for place, picture in enumerate(pictures):
        mix([place])
        read.append(_encode_prompts(family, picture.prompt, recipe))
        alike.setdefault(read[place][0].text.shape[1], []).append(place)
    drawn: dict[int, Image.Image] = {}
    for places in alike.values():

        def step(part: float, before: int = len(drawn), of: int = len(places)) -> object:
            return on_step((before + part * of) / len(pictures))

        mix(places)
        images = _sample_batch(
            family, [pictures[place] for place in places], [read[place] for place in places], recipe, step
        )
        drawn |= zip(places, images, strict=True)
    return [drawn[place] for place in range(len(pictures))]


def _encode_prompts(family: Family, prompt: str, recipe: SamplingParams) -> list[Conditioning]:
    """The prompt and, where there is guidance, the negative prompt, encoded (1, N, D), both as long.

    What stands for a text as a whole is its first part's.
    """
    texts = [prompt, recipe.negative] if recipe.cfg > 1 else [prompt]
    read = [_encode(family, text, recipe.clip_skip) for text in texts]
    length = max(map(len, read))
    blank = _encode(family, "", recipe.clip_skip) if length > 1 else []
    return [
        replace(parts[0], text=torch.cat([part.text for part in (parts + blank * length)[:length]], dim=1))
        for parts in read
    ]


def _sample_batch(
    family: Family,
    pictures: Sequence[PromptSeed],
    read: Sequence[Sequence[Conditioning]],
    recipe: SamplingParams,
    on_step: Callable[[float], object],
) -> "list[Image.Image]":
    """One batch of ``pictures``, whose texts ``read`` (see ``_encode_prompts``) are all as long."""
    wanted, *unwanted = (Conditioning.cat(texts) for texts in zip(*read, strict=True))
    pipeline = family.pipeline(make_scheduler(recipe.sampler, family.process))
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(picture.seed) for picture in pictures]
    latents: torch.Tensor = pipeline(
        **family.pipeline_kwargs(wanted, unwanted[0] if unwanted else None),
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
            "the picture came out as NaN; lower the adapters' scales, the weights in the prompt or the CFG scale, "
            "or take precision fp32"
        )
    return [_to_image(family.decode(latent)) for latent in latents.split(1)]


def _encode(family: Family, text: str, clip_skip: int) -> list[Conditioning]:
    """Encode each part of ``text`` for the denoiser, in its precision: each (1, L, D), on its own."""
    room = family.build_input_ids([]).shape[1] - 2
    parts = prompt_weighting.split_chunks(prompt_weighting.parse_weights(text), family.bare_token_ids, room)
    encoded = (family.encode_text(family.build_input_ids(part.tokens), clip_skip) for part in parts)
    return [
        replace(read, text=apply_token_weights(read.text, part.weights)).to(family.dtype)
        for read, part in zip(encoded, parts, strict=True)
    ]


def apply_token_weights(vectors: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Encoded tokens ``vectors`` (1, L, D), each times its weight, and then all by one number that restores their mean.

    The "Original" emphasis of stable-diffusion-webui (modules/sd_emphasis.py). ``weights`` begin at the second token.
    Where the new mean is no average of the old ones, as with vectors whose means have no common sign, the ratio of the
    means says nothing, and the vectors are only weighted.
    """
    if all(weight == 1 for weight in weights):
        return vectors
    each = torch.ones(vectors.shape[1], device=vectors.device)
    each[1 : 1 + len(weights)] = torch.tensor(weights, device=vectors.device)
    full = vectors.float() * each[:, None]
    change = float(full.mean() / vectors.float().mean())
    restored = full / change if change and min(1, *weights) <= change <= max(1, *weights) else full
    return restored.to(vectors.dtype)


def _noise(family: Family, recipe: SamplingParams, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Return standard normal latents, on the denoiser's device and in its precision."""
    height, width = recipe.height // family.latent_factor, recipe.width // family.latent_factor
    shape = (1, family.latent_channels, height, width)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(family.device, family.dtype)


def _to_image(pixels: torch.Tensor) -> "Image.Image":
    """The picture of (1, 3, H, W) pixels in [-1, 1]."""
    from PIL import Image

    levels = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
