"""Figures of an evaluation, and the measures that they are of. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from sdlora.evaluation.settings import Scale, Step

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
"""A value that can be shown and sent: JSON has no others, and a cell no room for more digits."""
Better = Literal["high", "low"]


@dataclass(frozen=True)
class Figure:
    """One measure of one adapter at one scale, never alone."""

    value: Number
    base: Number | None = None
    """The base's own value for the same prompts and seeds."""
    training: Number | None = None
    """The training images' own value, each against the others; None where there is none."""
    share: Number | None = None
    """The value between what its measure names as 0 and 1; None where the two cannot be told apart."""


class Measure(NamedTuple):
    """Title of a measure, the better end of its share, and the meaning of 0 and 1."""

    title: str
    better: Better
    meaning: str


MEASURES: Mapping[str, Measure] = {
    "look": Measure("look", "high", "0 the base, 1 as the training pictures are among themselves"),
    "prompts": Measure(
        "prompts kept", "high", "0 any prompt as well, 1 as the base, or the training pictures if those are read worse"
    ),
    "spill": Measure("spill", "low", "without the trigger: 0 the base, 1 as the training pictures"),
    "drift": Measure("drift", "low", "other things: 0 the base's pictures, 1 as if something else had been asked for"),
    "nearest": Measure("nearest picture", "low", "0 as near as training pictures are to one another, 1 the same"),
    "copies": Measure(
        "copies", "low", "asked for by training captions: 0 as near to their pictures as the base's, 1 the same details"
    ),
    "diversity": Measure("diversity", "high", "0 one picture a prompt, 1 as different as the base's"),
}
"""Measures of an evaluation, by their names in its file."""


@dataclass(frozen=True)
class Candidate:
    """One checkpoint at one scale, and its figures."""

    checkpoint: str
    """Name of its file in the run's folder."""
    step: Step
    scale: Scale
    figures: Mapping[str, Figure] = field(default_factory=dict)
    nearest: str = ""
    """Name of the training image that most of its images are nearest to."""
    copied: str = ""
    """Name of the training image that it comes nearest to when asked for by captions; empty where none was asked."""

    def share(self, measure: str) -> float | None:
        """Return the share of a measure; None if it was not taken."""
        figure = self.figures.get(measure)
        return None if figure is None else figure.share
