"""Computation of images by a loaded model: decoding in tiles, offloading of components, and the attention backend.

Offloading uses accelerate's hooks, as diffusers' ``enable_model_cpu_offload`` does: a component is moved to the device
when it is called, and back for the next one. diffusers attaches them through a pipeline; here they are attached
directly, since prompts are encoded and latents decoded outside of one.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sdlora.errors import ConfigError, missing_package
from sdlora.families.base import Family
from sdlora.formatting import format_bytes
from sdlora.generation import memory
from sdlora.generation.settings import Engine


def require_supported(engine: Engine, device: torch.device) -> None:
    """Raise ConfigError for what ``device`` does not support, or a library that is not installed."""
    if engine.offload == "model" and device.type == "cpu":
        raise ConfigError("offload = model: the model is on the CPU already; take none, or a graphics card")
    if engine.attention == "xformers":
        if importlib.util.find_spec("xformers") is None:
            raise missing_package("attention = xformers:", "xformers", "sdpa")
        if device.type != "cuda":
            raise ConfigError(f"attention = xformers: works on CUDA alone, and this is {device}; take sdpa")


class Runtime:
    """A family on ``device``, set up as ``engine`` says."""

    def __init__(self, family: Family, device: torch.device, engine: Engine):
        """Set up ``family``, which is on ``device``, or on the CPU where the engine offloads. Raises ConfigError."""
        self.family = family
        self.device = device
        self.engine = Engine()
        self._hooks: list[Any] = []
        self.use(engine)

    def use(self, engine: Engine) -> None:
        """Switch to ``engine``; the weights stay loaded.

        Raises ConfigError for what this machine does not support; then nothing changes.
        """
        require_supported(engine, self.device)
        if engine.attention != self.engine.attention:
            _attend(self.family.denoiser_module, engine.attention)
        if engine.offload != self.engine.offload:
            if engine.offload == "model":
                self._offload_components()
            else:
                self._keep_on_device()
        self.engine = engine

    @property
    def memory_hint(self) -> str:
        """Remedy for too little memory beside a smaller size, as the end of a sentence."""
        more = self.engine.offload == "none" and self.device.type != "cpu"
        return ", or offload = model" if more else ""

    @contextmanager
    def generating(self, width: int, height: int) -> Iterator[None]:
        """Decode images of ``width`` x ``height`` pixels in tiles where needed; afterwards offload all components.

        Warns where `auto` chooses tiles.
        """
        vae: Any = self.family.vae
        before = vae.use_tiling
        vae.use_tiling = self._tiles(width, height)
        try:
            yield
        finally:
            vae.use_tiling = before
            for hook in self._hooks:
                hook.offload()

    def _tiles(self, width: int, height: int) -> bool:
        """Return whether images of that size are decoded in tiles."""
        side = self.family.tile_size
        if self.engine.vae_tiling != "auto" or max(width, height) <= side:
            return self.engine.vae_tiling == "on"
        needed, free = self.family.decode_bytes(width, height) + memory.RESERVE, memory.free_bytes(self.device)
        if needed > free:
            sizes = f"{format_bytes(needed)} would be needed and {format_bytes(free)} are free"
            warnings.warn(
                f"a picture of {width}x{height} is decoded in tiles of {side} pixels, which may show faintly: {sizes}; "
                "take a smaller size, or vae_tiling = off to try it whole",
                stacklevel=1,
            )
        return needed > free

    def _offload_components(self) -> None:
        """Load components onto the device when they run, in this order: text encoders, denoiser, VAE."""
        from accelerate import cpu_offload_with_hook

        before = None
        for part in (*self.family.text_encoders.values(), self.family.denoiser_module, self.family.vae):
            _, before = cpu_offload_with_hook(part, self.device, before)
            self._hooks.append(before)

    def _keep_on_device(self) -> None:
        """Move all components to the device for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.family.to(self.device)


def _attend(denoiser: Any, attention: str) -> None:
    """Switch the denoiser's attention. diffusers' ``set_attention_backend`` passes over those of Stable Diffusion.

    Raises ConfigError if xformers does not work here; then PyTorch's own is back.
    """
    if attention == "sdpa":
        denoiser.disable_xformers_memory_efficient_attention()
        return
    try:
        denoiser.enable_xformers_memory_efficient_attention()
    except Exception as error:  # It tries its kernels, built for one version of torch, and each fails in its own way.
        denoiser.disable_xformers_memory_efficient_attention()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"attention = xformers: does not work here ({reason}); take sdpa") from error
