"""One image to be generated, with everything that decides it, and which images can be generated at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self, TypeVar

from sdlora.adapters.state import Scale
from sdlora.errors import ConfigError
from sdlora.families.base import Family
from sdlora.formats import lora_tags
from sdlora.generation.samplers import require_sampler_support
from sdlora.generation.settings import ImageSettings, SamplingSettings

S = TypeVar("S", bound=SamplingSettings)


@dataclass(frozen=True)
class PromptSeed:
    """Parts in which images of one batch may differ: ``prompt``, without adapter tags, and ``seed``."""

    prompt: str
    seed: int


def with_generation_defaults(settings: S, family: Family, **others: Any) -> S:
    """Return ``settings`` with those of ``Family.generation_defaults``, and ``others``, that nobody, and no preset, has
    set.
    """
    unset = {
        name for name, field in type(settings).model_fields.items()
        if name not in settings.model_fields_set and getattr(settings, name) == field.default
    }  # fmt: skip
    return settings.model_copy(
        update={name: value for name, value in {**family.generation_defaults, **others}.items() if name in unset}
    )


class SamplingParams(ImageSettings):
    """Settings that all images of a batch share: image settings that a family can follow, with the size in pixels."""

    width: int
    height: int

    @classmethod
    def resolve(cls, family: Family, settings: SamplingSettings, **changes: Any) -> Self:
        """Return ``settings`` with ``changes`` for ``family``, at its native size and with its defaults if unset.

        Raises ConfigError naming the setting, its value and the nearest one that works.
        """
        settings = with_generation_defaults(settings, family)
        given = {name: getattr(settings, name) for name in cls.model_fields if name in type(settings).model_fields}
        sizes = dict.fromkeys(("width", "height"), family.native_size)
        params = cls.checked(**sizes | {name: value for name, value in (given | changes).items() if value is not None})
        if params.clip_skip > family.text_layers:
            limit = family.text_layers
            raise ConfigError(f"clip_skip = {params.clip_skip}: give 1 to {limit}, this model's text layers")
        step = family.size_step
        for name, size in (("width", params.width), ("height", params.height)):
            if size < step or size % step:
                near = max(step, round(size / step) * step)
                raise ConfigError(f"{name} = {size}: this model makes multiples of {step}; take {near}")
        if params.negative and lora_tags.parse_lora_tags(params.negative).scales:
            raise ConfigError("negative: adapters are named in the prompt; move the <lora:...> tag there")
        require_sampler_support(params.sampler, family.process)
        return params


@dataclass(frozen=True)
class ImageSpec:
    """One image: its prompt, seed and parameters, the scales of its adapters, and what its infotext holds besides."""

    sample: PromptSeed
    params: SamplingParams
    scales: dict[str, Scale]
    infotext_prompt: str
    """Its prompt, with the tags of its adapters."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further settings of its infotext."""

    @property
    def active(self) -> dict[str, Scale]:
        """Scales of the adapters that are on."""
        return {name: scale for name, scale in self.scales.items() if scale != 0}


def batch_together(specs: Sequence[ImageSpec], positions: Iterable[int], size: int) -> list[int]:
    """Return the first of ``positions`` in ``specs`` and later ones, up to ``size``, that can share its batch.

    Other scales of the same adapters can; an adapter that only some use would cost all of them its share.
    """

    def kind(position: int) -> tuple[SamplingParams, set[str]]:
        return specs[position].params, set(specs[position].active)

    positions = list(positions)
    return list(islice((position for position in positions if kind(position) == kind(positions[0])), size))
