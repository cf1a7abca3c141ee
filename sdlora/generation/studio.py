"""The studio: a base model, any number of adapters mixed by their scales, and pictures made with them."""

import hashlib
import json
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from sdlora.adapters import attach
from sdlora.adapters.fused import FusedAdapters, fuse
from sdlora.adapters.state import AdapterState, Scale
from sdlora.errors import ConfigError, MismatchError, OutOfMemoryError
from sdlora.events import OnProgress
from sdlora.families.base import Family
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.formats.header_summary import FAMILY_NAMES
from sdlora.formats.infer_base import infer_family, schedule_mismatch
from sdlora.formatting import did_you_mean
from sdlora.generation import lora_tags as prompts
from sdlora.generation.device import choose_device, choose_dtype
from sdlora.generation.generation_spec import ImageSpec, PromptSeed, SamplingParams, batch_together
from sdlora.generation.infotext import SAID_OF_BASE, Parameters, format_parameters
from sdlora.generation.runtime import Runtime, require_supported
from sdlora.generation.samplers import split_sampler
from sdlora.generation.sampling import eval_mode, sample_images
from sdlora.generation.settings import Engine

if TYPE_CHECKING:
    from PIL import Image


POCKET, USUAL = Model(), Engine()
BATCH_PIXELS = 8 * 512 * 512
"""What is made at once on CUDA at first, in pixels."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in the studio: its scale, the start of its file's hash, and the components that it adapts."""

    scale: Scale
    hash: str
    components: frozenset[str]
    mismatch: str
    """A sentence on what it was trained with and the base is not drawn with; usually empty."""


class _Stopped(Exception):
    """The caller asked for a stop: leaves the sampling loop."""


class Studio:
    """A base model with adapters, ready to make pictures."""

    def __init__(
        self,
        base: str | Model = "pocket",
        device: str = "auto",
        precision: str = "auto",
        engine: Engine = USUAL,
    ):
        """Load ``base``: `pocket`, a folder, a file or a hub id; a ``Model`` says more of it.

        Raises ModelError, ConfigError, DeviceError.
        """
        place = choose_device(device)
        dtype = choose_dtype(precision, place)
        require_supported(engine, place)
        model = base if isinstance(base, Model) else Model(base=base)
        family = load_family(model).to(place if engine.offload == "none" else "cpu", dtype)
        self._open(model, Runtime(family, place, engine))

    @classmethod
    def from_family(cls, family: Family, model: Model = POCKET, engine: Engine = USUAL) -> "Studio":
        """A studio over a ``model`` that is loaded, and perhaps in training: what is attached to it stays active.

        ``generate`` leaves modes, gradients, adapters and the global random state as it found them.
        """
        studio = cls.__new__(cls)
        studio._open(model, Runtime(family, family.device, engine))
        return studio

    def _open(self, model: Model, machine: Runtime) -> None:
        self.family = machine.family
        self.runtime = machine
        self.model = model
        self._adapters: dict[str, LoadedAdapter] = {}
        self._fused: FusedAdapters | None = None

    @property
    def adapters(self) -> dict[str, Scale]:
        """The scales of the adapters loaded, by name."""
        return {name: adapter.scale for name, adapter in self._adapters.items()}

    def add_adapter(self, name: str, adapter: str | Path | AdapterState, scale: Scale = 1.0) -> None:
        """Load ``adapter`` under ``name``. The base stays where it is.

        Raises ConfigError for a name that is taken or cannot stand in a prompt, FormatError for a bad file,
        MismatchError for an adapter of another base; then nothing is loaded.
        """
        self._require_unfused()
        if name in self._adapters:
            raise ConfigError(f"an adapter {name!r} is already loaded; remove it or take another name")
        if not name.strip() or set(name) & set('<>:,"\n'):
            raise ConfigError(f'{name!r}: adapter names go into prompts: take one without < > : , " and line breaks')
        state, digest = (adapter, "") if isinstance(adapter, AdapterState) else _read(Path(adapter))
        self._load(state, name)
        components = frozenset(path.split(".")[0] for path in state.modules)
        odd = schedule_mismatch(name, state.metadata, self.family.scheduler_config, self._base_overrides)
        self._adapters[name] = LoadedAdapter(1.0, state.metadata.get("sshs_model_hash", digest)[:12], components, odd)
        try:
            self.set_scale(name, scale)
        except ConfigError:
            self.remove_adapter(name)
            raise

    def _load(self, state: AdapterState, name: str) -> None:
        """Put an adapter into the models. Raises MismatchError, by the families' names where they differ."""
        try:
            attach.load_state(self.family.models, state, name)
        except MismatchError as error:
            theirs, ours = infer_family(state), self.family.name
            if not theirs or theirs == ours:
                raise
            kinds = f"is for {FAMILY_NAMES[theirs]}, the base is {FAMILY_NAMES[ours]}"
            raise MismatchError(f"{name}: {kinds}; {error}") from None

    def set_scale(self, name: str, scale: Scale) -> None:
        """Change an adapter's scale: a number, or numbers by part (``{"unet.up_blocks": 0.5}``). 0 is off."""
        self._require_unfused()
        known = self._known(name)
        with attach.temporary_scales(self.family.models, {name: scale}):  # Refuses what it cannot apply.
            self._adapters[name] = replace(known, scale=scale if isinstance(scale, Mapping) else float(scale))

    def remove_adapter(self, name: str) -> None:
        """Take an adapter out of the model."""
        self._require_unfused()
        self._known(name)
        attach.remove_adapter(self.family.models, name)
        del self._adapters[name]

    def fuse(self) -> None:
        """Fold all adapters at their scales into the weights: no cost per step. They cannot change until ``unfuse``."""
        self._require_unfused()
        self._fused = fuse(self.family.models, self.adapters)

    def unfuse(self) -> None:
        """Put the base's own weights back, bit for bit."""
        if self._fused is not None:
            self._fused.restore()
            self._fused = None

    def generate(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        steps: int = 25,
        cfg: float = 7.0,
        seed: int = -1,
        width: int | None = None,
        height: int | None = None,
        count: int = 1,
        sampler: str = "DPM++ 2M",
        on_progress: OnProgress | None = None,
        should_stop: Callable[[], bool] | None = None,
        batch: int | None = None,
        clip_skip: int = 1,
    ) -> "list[Image.Image]":
        """``count`` pictures of each prompt, prompt by prompt; picture i is drawn from the noise of ``seed`` + i.

        Each holds its A1111 parameters in ``info["parameters"]``, with its real seed where ``seed`` is -1.
        ``<lora:name:0.8>`` in a prompt goes before the adapter's own scale, ``(word:1.2)`` weighs words, and a prompt
        may be of any length (``generation.attention``); ``clip_skip`` 2 reads the text encoder's last layer but one.
        Sizes are in pixels, the model's own if None. ``batch``, ``on_progress`` and ``should_stop`` are ``draw``'s.
        Raises ConfigError for a bad value or an unknown adapter, OutOfMemoryError, NonFiniteError.
        """
        recipe = SamplingParams.checked(self.family, negative, steps, cfg, width, height, sampler, clip_skip)
        drawings = self._image_specs([prompt] if isinstance(prompt, str) else list(prompt), count, seed, recipe)
        finished: dict[int, Image.Image] = {}
        self.generate_specs(drawings, finished.__setitem__, on_progress, should_stop, batch)
        return [finished[place] for place in sorted(finished)]

    def image_spec(
        self,
        prompt: str,
        negative: str = "",
        steps: int = 25,
        cfg: float = 7.0,
        seed: int = -1,
        width: int | None = None,
        height: int | None = None,
        sampler: str = "DPM++ 2M",
        clip_skip: int = 1,
        scales: Mapping[str, Scale] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> ImageSpec:
        """One picture for ``draw``, checked: ``scales`` go before the adapters' own, and the prompt's before both.

        ``notes`` go into its A1111 text. Raises what ``generate`` raises of its values.
        """
        recipe = SamplingParams.checked(self.family, negative, steps, cfg, width, height, sampler, clip_skip)
        [drawing] = self._image_specs([prompt], 1, seed, recipe, scales or {})
        return replace(drawing, notes=notes or {})

    def generate_specs(
        self,
        drawings: Sequence[ImageSpec],
        on_picture: "Callable[[int, Image.Image], object]",
        on_progress: OnProgress | None = None,
        should_stop: Callable[[], bool] | None = None,
        batch: int | None = None,
    ) -> None:
        """Make any pictures; ``on_picture`` gets each with its place in ``drawings`` as soon as it is finished.

        Those of one recipe and the same adapters, at whatever scales, are made up to ``batch`` at once: by default 8
        of 512 x 512 px on CUDA (half as many, and again, where memory does not suffice), elsewhere 1, which is no
        slower there and makes a picture the same to the bit whatever its companions. What is asked for twice is made
        once. ``on_progress`` is told sampling steps, over all pictures. ``should_stop`` is asked after each; once it
        returns true, what is not finished is left out. Warns of adapters that were trained with another prediction type
        or noise schedule, where ``model`` leaves it open. Raises OutOfMemoryError, NonFiniteError.
        """
        for name in dict.fromkeys(name for drawing in drawings for name in drawing.active):
            if odd := self._adapters[name].mismatch:
                warnings.warn(odd, stacklevel=2)
        twins: dict[str, list[int]] = {}
        for place, drawing in enumerate(drawings):
            twins.setdefault(repr((drawing.sample, drawing.params, drawing.active)), []).append(place)
        todo = {places[0]: places for places in twins.values()}
        total = sum(drawing.params.steps for drawing in drawings)
        done = 0

        def on_step(steps: int, part: float) -> None:
            if on_progress is not None:
                on_progress(done + round(part * steps), total)
            if should_stop is not None and should_stop():
                raise _Stopped

        while todo:
            together = batch_together(drawings, todo, batch or self._batch_size(drawings[next(iter(todo))].params))
            steps = sum(drawings[place].params.steps for first in together for place in todo[first])
            try:
                images = self._generate_batch([drawings[place] for place in together], partial(on_step, steps))
            except _Stopped:
                return
            except torch.OutOfMemoryError:
                recipe, batch = drawings[together[0]].params, len(together) // 2
                if not batch:
                    size = f"{recipe.width}x{recipe.height}"
                    remedy = f"take a smaller size{self.runtime.memory_hint}"
                    raise OutOfMemoryError(f"too little memory for a picture of {size}; {remedy}") from None
                continue
            done += steps
            for image, places in zip(images, map(todo.pop, together), strict=True):
                for place in places:
                    own = image if place == places[0] else image.copy()
                    own.info["parameters"] = self._parameters(drawings[place])
                    on_picture(place, own)

    def _generate_batch(self, drawings: Sequence[ImageSpec], on_step: Callable[[float], object]) -> "list[Image.Image]":
        """The pictures of one batch of ``drawings`` with equal recipes."""

        before: Sequence[Mapping[str, Scale]] = [{}]

        def mix(places: Iterable[int]) -> None:
            nonlocal before
            samples = [drawings[place].active for place in places]
            samples = samples[:1] if all(scales == samples[0] for scales in samples) else samples
            if samples != before and self._uses_adapters:
                attach.set_scales(self.family.models, *samples)
                before = samples

        recipe = drawings[0].params
        unscaled = attach.temporary_scales(self.family.models, {}) if self._uses_adapters else nullcontext()
        with eval_mode(self.family), self.runtime.generating(recipe.width, recipe.height), unscaled:
            return sample_images(self.family, [one.sample for one in drawings], recipe, on_step, mix)

    def _batch_size(self, recipe: SamplingParams) -> int:
        """How many pictures of ``recipe`` are made at once at first."""
        on_card = self.runtime.device.type == "cuda"
        return max(1, BATCH_PIXELS // (recipe.width * recipe.height)) if on_card else 1

    def _image_specs(
        self,
        texts: Sequence[str],
        count: int,
        seed: int,
        recipe: SamplingParams,
        set_scales: Mapping[str, Scale] = MappingProxyType({}),
    ) -> list[ImageSpec]:
        """A drawing a picture; ``set_scales`` go before the adapters' own.

        Raises ConfigError for a bad count, seed or tag, or an adapter that is not loaded.
        """
        if count < 1:
            raise ConfigError(f"count = {count}: give 1 or more")
        if not -1 <= seed < 2**63:
            raise ConfigError(f"seed = {seed}: give -1 for a random one, or 0 to {2**63 - 1}")
        first = secrets.randbelow(2**32) if seed == -1 else seed
        drawings: list[ImageSpec] = []
        for text in (text for text in texts for _ in range(count)):
            plain, asked = prompts.parse_lora_tags(text)
            if asked:
                self._require_unfused()
            named = {name: self._served(name, scale) for name, scale in asked.items()}
            scales = {**self.adapters, **set_scales, **named}  # In the order of loading: sums round by their order.
            sliders = {name: scale for name, scale in scales.items() if name not in named and scale}
            tags = [prompts.lora_tag(name, scale) for name, scale in sliders.items() if isinstance(scale, float)]
            picture = PromptSeed(plain, first + len(drawings))
            drawings.append(ImageSpec(picture, recipe, scales, " ".join([text, *tags])))
        return drawings

    def _served(self, name: str, scale: Scale) -> Scale:
        """A prompt's ``scale`` for the components that adapter ``name`` adapts."""
        components = self._known(name).components
        if isinstance(scale, Mapping):
            return {part: scale["unet" if part == "unet" else "text_encoder"] for part in components}
        return scale

    @property
    def _uses_adapters(self) -> bool:
        """Whether adapters are set to scales at all. Without any of its own, a studio changes none."""
        return self._fused is None and bool(self._adapters)

    @property
    def _base_overrides(self) -> dict[str, str]:
        """What was said of the base, by the names of ``Model``'s settings."""
        return {name: said for name in SAID_OF_BASE if (said := getattr(self.model, name)) != "auto"}

    def _parameters(self, drawing: ImageSpec) -> str:
        """The A1111 text of a picture. Scales by part, which few tags can hold, stand in ``Adapter scales`` as JSON."""
        recipe = drawing.params
        sampler, schedule = split_sampler(recipe.sampler)
        active = {name: self._adapters[name].hash for name in drawing.active}
        by_part = {name: dict(scale) for name, scale in drawing.scales.items() if isinstance(scale, Mapping)}
        settings = {
            "Steps": str(recipe.steps),
            "Sampler": sampler,
            "Schedule type": schedule,
            "CFG scale": f"{recipe.cfg:g}",
            "Seed": str(drawing.sample.seed),
            "Size": f"{recipe.width}x{recipe.height}",
            "Model hash": self.family.fingerprint[:10],
            "Model": Path(self.family.source).name.removesuffix(".safetensors"),
        }
        settings |= {SAID_OF_BASE[name]: value for name, value in self._base_overrides.items()}
        if recipe.clip_skip > 1:
            settings["Clip skip"] = str(recipe.clip_skip)
        if any(active.values()):
            settings["Lora hashes"] = ", ".join(f"{name}: {digest}" for name, digest in active.items() if digest)
        if by_part:
            settings["Adapter scales"] = json.dumps(by_part)
        return format_parameters(Parameters(drawing.infotext_prompt, recipe.negative, {**settings, **drawing.notes}))

    def _known(self, name: str) -> LoadedAdapter:
        if name not in self._adapters:
            hint = did_you_mean(name, self._adapters, f"loaded: {', '.join(self._adapters) or 'none'}")
            raise ConfigError(f"no adapter {name!r} is loaded; {hint}")
        return self._adapters[name]

    def _require_unfused(self) -> None:
        if self._fused is not None:
            raise ConfigError("the adapters are fused into the weights; call unfuse() first")


def _read(path: Path) -> tuple[AdapterState, str]:
    """The adapter in a file, and the SHA-256 of what follows its header, by which A1111 knows it; a folder has none."""
    from sdlora.formats import read_adapter

    state = read_adapter(path)
    if path.is_dir():
        return state, ""
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return state, hashlib.file_digest(file, "sha256").hexdigest()
