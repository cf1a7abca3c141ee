"""From seeds and prompts to images: one batch through diffusers' sampling loop, and the decoder after it.

An image depends on its own prompt and seed alone. Its noise comes from a generator of its own, on the CPU and in
float32, so that a seed means the same noise on any device; prompts are encoded, and latents decoded, one by one.
A batch shares the denoiser, whose sums a larger batch may round differently (1e-6 on a CPU).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from PIL import Image

from sdlora.errors import NonFiniteError
from sdlora.families.base import Conditioning, Family
from sdlora.generation.generation_spec import PromptSeed, SamplingParams
from sdlora.generation.prompt_encoding import apply_token_weights, prompt_chunks
from sdlora.generation.samplers import make_scheduler


@contextmanager
def eval_mode(family: Family) -> Iterator[None]:
    """Set evaluation mode and disable gradients; afterwards restore every module's mode."""
    modules = [module for model in family.modules.values() for module in model.modules()]
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
    samples: Sequence[PromptSeed],
    params: SamplingParams,
    on_step: Callable[[float], object],
    set_scales: Callable[[Sequence[int]], object] = lambda positions: None,
) -> list[Image.Image]:
    """Return the images of ``samples``, made in one batch where their prompts have equally many chunks.

    ``on_step`` gets the share done, 0 to 1, after each step, and may raise to end it. ``set_scales(positions)`` sets
    the adapters' scales for the samples at ``positions``: each alone before its prompts are encoded, then those of a
    batch. Prompt and negative prompt are padded to equally many chunks, with empty ones.
    Raises NonFiniteError if latents are not finite.
    """
    by_length: dict[int, list[int]] = {}
    encoded: list[list[Conditioning]] = []
    for position, sample in enumerate(samples):
        set_scales([position])
        encoded.append(_encode_prompts(family, sample.prompt, params))
        by_length.setdefault(encoded[position][0].text.shape[1], []).append(position)
    finished: dict[int, Image.Image] = {}
    for positions in by_length.values():

        def step(share: float, before: int = len(finished), size: int = len(positions)) -> object:
            return on_step((before + share * size) / len(samples))

        set_scales(positions)
        batch = [samples[position] for position in positions]
        images = _sample_batch(family, batch, [encoded[position] for position in positions], params, step)
        finished |= zip(positions, images, strict=True)
    return [finished[position] for position in range(len(samples))]


def _encode_prompts(family: Family, prompt: str, params: SamplingParams) -> list[Conditioning]:
    """Encode the prompt and, with guidance, the negative prompt: each (1, N, D), equally long.

    The pooled output of a text is its first chunk's.
    """
    texts = [prompt, params.negative] if params.cfg > 1 else [prompt]
    encoded = [_encode(family, text, params.clip_skip) for text in texts]
    length = max(map(len, encoded))
    padding = _encode(family, "", params.clip_skip) if length > 1 else []
    return [
        replace(chunks[0], text=torch.cat([chunk.text for chunk in (chunks + padding * length)[:length]], dim=1))
        for chunks in encoded
    ]


def _sample_batch(
    family: Family,
    samples: Sequence[PromptSeed],
    encoded: Sequence[Sequence[Conditioning]],
    params: SamplingParams,
    on_step: Callable[[float], object],
) -> list[Image.Image]:
    """Return the images of one batch; ``encoded`` are its prompts by ``_encode_prompts``, all equally long."""
    conditional, *unconditional = (Conditioning.cat(texts) for texts in zip(*encoded, strict=True))
    pipeline = family.pipeline(make_scheduler(params.sampler, family.process))
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(sample.seed) for sample in samples]
    latents: torch.Tensor = pipeline(
        **family.pipeline_kwargs(conditional, unconditional[0] if unconditional else None),
        latents=_noise(family, params, generators),
        generator=generators,
        num_inference_steps=params.steps,
        guidance_scale=params.cfg,
        width=params.width,
        height=params.height,
        output_type="latent",
        callback_on_step_end=lambda pipe, index, _, state: on_step((index + 1) / pipe.num_timesteps) or state,
        callback_on_step_end_tensor_inputs=[],
    ).images
    if not latents.isfinite().all():
        raise NonFiniteError(
            "the image came out as NaN; lower the adapters' scales, the weights in the prompt or the CFG scale, "
            "or take precision fp32"
        )
    return [to_image(family.decode(latent)) for latent in latents.split(1)]


def _encode(family: Family, text: str, clip_skip: int) -> list[Conditioning]:
    """Encode each chunk of ``text`` for the denoiser, in its precision: each (1, L, D), on its own."""
    chunks = prompt_chunks(family, text)
    encoded = (family.encode_text(family.build_input_ids(chunk.tokens), clip_skip) for chunk in chunks)
    return [
        replace(read, text=apply_token_weights(read.text, chunk.weights)).to(family.dtype)
        for read, chunk in zip(encoded, chunks, strict=True)
    ]


def _noise(family: Family, params: SamplingParams, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Return standard normal latents, on the denoiser's device and in its precision."""
    height, width = params.height // family.latent_factor, params.width // family.latent_factor
    shape = (1, family.latent_channels, height, width)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(family.device, family.dtype)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """Return the image of (1, 3, H, W) pixels in [-1, 1]."""
    levels = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
