"""The studio: images generated with a base model and its mixed adapters, in batches that memory allows."""

import json
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from sdlora.adapters import attach
from sdlora.adapters.state import Scale
from sdlora.errors import ConfigError, OutOfMemoryError
from sdlora.events import OnProgress, unwatched
from sdlora.families.base import Family
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.formats import lora_tags
from sdlora.generation.adapted_model import AdaptedModel
from sdlora.generation.device import choose_device, choose_dtype
from sdlora.generation.generation_spec import (
    ImageSpec,
    PromptSeed,
    SamplingParams,
    batch_together,
    with_generation_defaults,
)
from sdlora.generation.infotext import BASE_OVERRIDES, Parameters, format_parameters, params_to_infotext
from sdlora.generation.runtime import Runtime, require_supported
from sdlora.generation.sampling import eval_mode, sample_images
from sdlora.generation.settings import Engine, GenerationSettings, ImageSettings, SamplingSettings

POCKET, DEFAULT_ENGINE, DEFAULT_SETTINGS = Model(), Engine(), ImageSettings()
BATCH_PIXELS = 8 * 512 * 512
"""Pixels of the first batch on CUDA."""


class _Stopped(Exception):
    """The caller asked for a stop: leaves the sampling loop."""


class Studio(AdaptedModel):
    """A base model with adapters, ready to generate images."""

    def __init__(
        self,
        base: str | Model = "pocket",
        device: str = "auto",
        precision: str = "auto",
        engine: Engine = DEFAULT_ENGINE,
    ):
        """Load ``base``: `pocket`, a folder, a file or a hub id, or a ``Model`` with further settings of the base.

        Raises ModelError, ConfigError, DeviceError.
        """
        chosen = choose_device(device)
        dtype = choose_dtype(precision, chosen)
        require_supported(engine, chosen)
        model = base if isinstance(base, Model) else Model(base=base)
        family = load_family(model, dtype).to(chosen if engine.offload == "none" else "cpu", dtype)
        family.modules.open()  # All are needed, and what memory does not hold is told now.
        super().__init__(family, model)
        self.runtime = Runtime(family, chosen, engine)

    @classmethod
    def from_family(cls, family: Family, model: Model = POCKET, engine: Engine = DEFAULT_ENGINE) -> "Studio":
        """Return a studio over a ``model`` that is loaded, and perhaps in training: its own adapter stays active.

        ``generate`` leaves modes, gradients, adapters and the global random state as it found them.
        """
        studio = cls.__new__(cls)
        AdaptedModel.__init__(studio, family, model)
        studio.runtime = Runtime(family, family.device, engine)
        return studio

    def generate(
        self,
        prompt: str | Sequence[str],
        settings: SamplingSettings = DEFAULT_SETTINGS,
        *,
        count: int = 1,
        on_progress: OnProgress = unwatched,
        should_stop: Callable[[], bool] = lambda: False,
        batch: int | None = None,
        **changes: Any,
    ) -> list[Image.Image]:
        """Return ``count`` images of each prompt, prompt by prompt; image i starts from the noise of the seed + i.

        ``settings`` and, before them, ``changes`` are by the names of ``GenerationSettings``: ``seed=1, steps=30``.
        Each image holds its A1111 parameters in ``info["parameters"]``, with its real seed where the seed is -1.
        ``<lora:name:0.8>`` in a prompt goes before the adapter's own scale, ``(word:1.2)`` weighs words, and a prompt
        may be of any length (``generation.prompt_weighting``). ``batch``, ``on_progress`` and ``should_stop`` are those
        of ``generate_specs``. Raises ConfigError for a bad value or an unknown adapter, OutOfMemoryError,
        NonFiniteError.
        """
        if count < 1:
            raise ConfigError(f"count = {count}: give 1 or more")
        one = GenerationSettings.from_section(with_generation_defaults(settings, self.family), **changes)
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        specs = self._image_specs([text for text in texts for _ in range(count)], one)
        finished: dict[int, Image.Image] = {}
        self.generate_specs(specs, finished.__setitem__, on_progress, should_stop, batch)
        return [finished[position] for position in sorted(finished)]

    def image_spec(
        self,
        settings: GenerationSettings,
        scales: Mapping[str, Scale] = MappingProxyType({}),
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> ImageSpec:
        """Return one image for ``generate_specs``: ``scales`` go before the adapters' own, the prompt's before both.

        ``notes`` go into its infotext. Raises what ``generate`` raises of its values.
        """
        [spec] = self._image_specs([settings.prompt], settings, scales, notes)
        return spec

    def generate_specs(
        self,
        specs: Sequence[ImageSpec],
        on_image: Callable[[int, Image.Image], object],
        on_progress: OnProgress = unwatched,
        should_stop: Callable[[], bool] = lambda: False,
        batch: int | None = None,
    ) -> None:
        """Generate any images; ``on_image`` gets each with its position in ``specs`` as soon as it is finished.

        Those of equal parameters and the same adapters, at whatever scales, are made up to ``batch`` at once: by
        default 8 of 512 x 512 px on CUDA (half as many, and again, where memory does not suffice), elsewhere 1, which
        is no slower there and keeps an image the same to the bit whatever its companions. Equal specs are made once.
        ``on_progress`` gets sampling steps, over all images. ``should_stop`` is called after each step; once it
        returns true, what is not finished is left out. Warns of adapters that were trained with another prediction type
        or noise schedule, where ``model`` leaves it open. Raises OutOfMemoryError, NonFiniteError.
        """
        for name in dict.fromkeys(name for spec in specs for name in spec.active):
            if mismatch := self.loaded(name).mismatch:
                warnings.warn(mismatch, stacklevel=2)
        equal: dict[str, list[int]] = {}
        for position, spec in enumerate(specs):
            equal.setdefault(repr((spec.sample, spec.params, spec.active)), []).append(position)
        todo = {positions[0]: positions for positions in equal.values()}
        total = sum(spec.params.steps for spec in specs)
        done = 0

        def on_step(steps: int, part: float) -> None:
            on_progress(done + round(part * steps), total)
            if should_stop():
                raise _Stopped

        while todo:
            together = batch_together(specs, todo, batch or self._batch_size(specs[next(iter(todo))].params))
            steps = sum(specs[position].params.steps for first in together for position in todo[first])
            try:
                images = self._generate_batch([specs[position] for position in together], partial(on_step, steps))
            except _Stopped:
                return
            except torch.OutOfMemoryError:
                batch = self._smaller_batch(specs[together[0]].params, len(together))
                continue
            done += steps
            for image, positions in zip(images, map(todo.pop, together), strict=True):
                for position in positions:
                    own = image if position == positions[0] else image.copy()
                    own.info["parameters"] = self._infotext(specs[position])
                    on_image(position, own)

    def _generate_batch(self, specs: Sequence[ImageSpec], on_step: Callable[[float], object]) -> list[Image.Image]:
        """Generate one batch of ``specs`` with equal parameters."""

        before: Sequence[Mapping[str, Scale]] = [{}]

        def set_scales(positions: Iterable[int]) -> None:
            nonlocal before
            samples = [specs[position].active for position in positions]
            samples = samples[:1] if all(scales == samples[0] for scales in samples) else samples
            if samples != before and self._uses_scales:
                attach.set_scales(self.family.models, *samples)
                before = samples

        params = specs[0].params
        unscaled = attach.temporary_scales(self.family.models, {}) if self._uses_scales else nullcontext()
        with eval_mode(self.family), self.runtime.generating(params.width, params.height), unscaled:
            return sample_images(self.family, [spec.sample for spec in specs], params, on_step, set_scales)

    def _batch_size(self, params: SamplingParams) -> int:
        """Return how many images of ``params`` the first batch holds."""
        on_card = self.runtime.device.type == "cuda"
        return max(1, BATCH_PIXELS // (params.width * params.height)) if on_card else 1

    def _smaller_batch(self, params: SamplingParams, size: int) -> int:
        """Return half of a batch's ``size`` that did not fit. Raises OutOfMemoryError where it was one image."""
        if size < 2:
            remedy = f"take a smaller size{self.runtime.memory_hint}"
            raise OutOfMemoryError(
                f"too little memory for an image of {params.width}x{params.height}; {remedy}"
            ) from None
        return size // 2

    def _image_specs(
        self,
        texts: Sequence[str],
        settings: GenerationSettings,
        set_scales: Mapping[str, Scale] = MappingProxyType({}),
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> list[ImageSpec]:
        """Return a spec for each of ``texts``, with seeds one after the other; ``set_scales`` override the adapters'.

        Raises ConfigError for settings that the family cannot follow, a bad tag, or an adapter that is not loaded.
        """
        params = SamplingParams.resolve(self.family, settings)
        first = secrets.randbelow(2**32) if settings.seed == -1 else settings.seed
        specs: list[ImageSpec] = []
        for text in texts:
            plain, tagged = lora_tags.parse_lora_tags(text)
            if tagged:
                self._require_unfused()
            named = {name: self._scale_by_component(name, scale) for name, scale in tagged.items()}
            scales = {**self.adapters, **set_scales, **named}  # In the order of loading: sums round by their order.
            sliders = {name: scale for name, scale in scales.items() if name not in named and scale}
            tags = [lora_tags.lora_tag(name, scale) for name, scale in sliders.items() if isinstance(scale, float)]
            sample = PromptSeed(plain, first + len(specs))
            specs.append(ImageSpec(sample, params, scales, " ".join([text, *tags]), notes))
        return specs

    def _scale_by_component(self, name: str, scale: Scale) -> Scale:
        """Return a prompt's ``scale`` for the components that adapter ``name`` adapts."""
        components = self.loaded(name).components
        if isinstance(scale, Mapping):
            denoiser = self.family.denoiser
            return {part: scale[lora_tags.DENOISER if part == denoiser else lora_tags.TEXT] for part in components}
        return scale

    def _infotext(self, spec: ImageSpec) -> str:
        """Return an image's infotext. Scales by part, which few tags can hold, are ``Adapter scales`` as JSON."""
        hashes = {name: self.loaded(name).hash for name in spec.active}
        by_part = {name: dict(scale) for name, scale in spec.scales.items() if isinstance(scale, Mapping)}
        base = {
            "Model hash": self.family.fingerprint[:10],
            "Model": Path(self.family.source).name.removesuffix(".safetensors"),
            **{BASE_OVERRIDES[name]: value for name, value in self.base_overrides.items()},
        }
        settings = params_to_infotext(spec.params, spec.sample.seed, base)
        if any(hashes.values()):
            settings["Lora hashes"] = ", ".join(f"{name}: {digest}" for name, digest in hashes.items() if digest)
        if by_part:
            settings["Adapter scales"] = json.dumps(by_part)
        return format_parameters(Parameters(spec.infotext_prompt, spec.params.negative, {**settings, **spec.notes}))
