"""One picture to be made, with all that decides it, and which pictures can be made at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from sdlora.adapters.base import Scale
from sdlora.generation.sampling import PromptSeed, SamplingParams


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
