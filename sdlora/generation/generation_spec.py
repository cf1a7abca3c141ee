"""One picture to be made, with all that decides it, and which pictures can be made at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from sdlora.adapters.state import Scale
from sdlora.errors import ConfigError
from sdlora.families.base import Family
from sdlora.generation import lora_tags
from sdlora.generation.samplers import canonical_sampler, require_zero_snr_support


@dataclass(frozen=True)
class PromptSeed:
    """One picture to be made: ``prompt`` without adapter tags."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class SamplingParams:
    """What all pictures of a request share. Sizes are in pixels; ``cfg`` of 1 or less is no guidance."""

    negative: str
    steps: int
    cfg: float
    sampler: str
    width: int
    height: int
    clip_skip: int = 1
    """The layer of text that is read, counted back from the one that the base was trained with, which is 1."""

    @classmethod
    def checked(
        cls,
        family: Family,
        negative: str,
        steps: int,
        cfg: float,
        width: int | None,
        height: int | None,
        sampler: str,
        clip_skip: int,
    ) -> "SamplingParams":
        """A recipe that ``family`` can follow; sizes are its own where None. Raises ConfigError, naming the value."""
        if steps < 1:
            raise ConfigError(f"steps = {steps}: give 1 or more")
        if not 0 <= cfg <= 100:
            raise ConfigError(f"cfg = {cfg}: give 0 to 100")
        if not 1 <= clip_skip <= family.text_layers:
            raise ConfigError(f"clip_skip = {clip_skip}: give 1 to {family.text_layers}, this model's text layers")
        step = family.size_step
        sizes = {"width": width or family.native_size, "height": height or family.native_size}
        for name, size in sizes.items():
            if size < step or size % step:
                near = max(step, round(size / step) * step)
                raise ConfigError(f"{name} = {size}: this model makes multiples of {step}; take {near}")
        if negative and lora_tags.parse_lora_tags(negative).scales:
            raise ConfigError("negative: adapters are named in the prompt; move the <lora:...> tag there")
        require_zero_snr_support(sampler, family.scheduler_config)
        return cls(negative, steps, cfg, canonical_sampler(sampler), clip_skip=clip_skip, **sizes)


@dataclass(frozen=True)
class ImageSpec:
    """One picture: what to draw and how, the scales of its adapters, and what its file will tell."""

    sample: PromptSeed
    params: SamplingParams
    scales: dict[str, Scale]
    infotext_prompt: str
    """Its prompt, with the tags of its adapters."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further settings for its A1111 text."""

    @property
    def active(self) -> dict[str, Scale]:
        """The scales of the adapters that take part."""
        return {name: scale for name, scale in self.scales.items() if scale != 0}


def batch_together(drawings: Sequence[ImageSpec], places: Iterable[int], size: int) -> list[int]:
    """The first of ``places`` and those after it, up to ``size``, that can be made with it in one batch.

    Other scales of the same adapters can; an adapter that only some use would cost all of them its share.
    """

    def kind(place: int) -> tuple[SamplingParams, set[str]]:
        return drawings[place].params, set(drawings[place].active)

    places = list(places)
    return list(islice((place for place in places if kind(place) == kind(places[0])), size))
