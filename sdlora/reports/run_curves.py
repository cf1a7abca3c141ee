"""Curves of a run over its steps, read from its journal in bounded memory."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sdlora.events import Event, Measured, RunFinished, RunStarted, RunStopped, SampleReady, StepDone
from sdlora.signals import SMOOTHING, loss_ratio, read_pictures
from sdlora.storage.journal import tail_events

MOST_POINTS = 200
"""A curve is thinned to this many points when it has twice as many."""
LARGEST_VALUE = 1e30
"""Values beyond it come from a damaged journal."""
MOST_PROMPTS = 1000
"""Prompts of previews that are remembered."""


class CurveKind(NamedTuple):
    """Name and smoothing of a curve."""

    title: str
    smoothing: float = 0.0


CURVES = {
    "loss": CurveKind("loss, smoothed", SMOOTHING),
    "loss_ratio_train": CurveKind("loss ratio, trained pictures"),
    "loss_ratio_held_out": CurveKind("loss ratio, held-out pictures"),
    "learning_rate": CurveKind("learning rate"),
    "gradient_norm": CurveKind("gradient norm, smoothed", SMOOTHING),
}
"""Curves by their names in a JSON report."""


@dataclass
class Curve:
    """Values over ascending steps, of which evenly spaced ones and the newest are kept."""

    smoothing: float = 0.0
    newest: tuple[int, float] | None = None
    _kept: list[tuple[int, float]] = field(default_factory=list)
    _stride: int = 1
    _count: int = 0

    def add(self, step: int, value: float) -> None:
        """Add a value. Non-finite or huge ones, and steps that are not new, are left out."""
        if not math.isfinite(value) or abs(value) > LARGEST_VALUE or step < 0:
            return
        if self.newest is not None:
            if step <= self.newest[0]:
                return
            value = self.smoothing * self.newest[1] + (1 - self.smoothing) * value
        self.newest = step, value
        if self._count % self._stride == 0:
            self._kept.append(self.newest)
        self._count += 1
        if len(self._kept) >= 2 * MOST_POINTS:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def rewind(self, step: int) -> None:
        """Forget what is beyond ``step``: a resumed run does those steps again."""
        if self.newest is not None and self.newest[0] > step:
            self._kept = [point for point in self._kept if point[0] <= step]
            self._count = len(self._kept) * self._stride
            self.newest = self._kept[-1] if self._kept else None

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and values, at most ``2 * MOST_POINTS``."""
        return self._kept if self.newest is None or self._kept[-1] == self.newest else [*self._kept, self.newest]


@dataclass
class RunCurves:
    """Curves and figures of a run according to its journal."""

    journal: Path
    curves: dict[str, Curve] = field(
        default_factory=lambda: {name: Curve(kind.smoothing) for name, kind in CURVES.items()}
    )
    started: RunStarted | None = None
    step: int = 0
    steps: int = 0
    """Number of steps that are planned."""
    step_seconds: float = 0.0
    """Seconds of all steps together, repeated ones too."""
    counted_steps: int = 0
    """Number of steps in ``step_seconds``."""
    prompts: dict[int, str] = field(default_factory=dict)
    """Prompts of the previews, by their index."""
    _offset: int = 0

    def refresh(self) -> "RunCurves":
        """Read the new events of the journal. Raises FileError if it cannot be read."""
        for event, offset in tail_events(self.journal, self._offset):
            self._offset = offset
            self._apply(event)
        return self

    def _apply(self, event: Event) -> None:
        match event:
            case StepDone():
                self.step, self.steps = event.step, event.steps
                self.curves["loss"].add(event.step, event.loss)
                self.curves["learning_rate"].add(event.step, event.learning_rate)
                if event.gradient_norm:  # Journals of earlier versions have 0.
                    self.curves["gradient_norm"].add(event.step, event.gradient_norm)
                if 0 <= event.seconds < LARGEST_VALUE:
                    self.step_seconds += event.seconds
                    self.counted_steps += 1
            case Measured():
                pictures = read_pictures(event.pictures)
                for name, held_out in (("loss_ratio_train", False), ("loss_ratio_held_out", True)):
                    if (ratio := loss_ratio(pictures, held_out)) is not None:
                        self.curves[name].add(event.step, ratio)
            case RunStarted():
                self.started, self.step, self.steps = event, event.step, event.steps
                for curve in self.curves.values():
                    curve.rewind(event.step)
            case SampleReady():
                if len(self.prompts) < MOST_PROMPTS:
                    self.prompts[event.index] = event.prompt
            case RunStopped() | RunFinished():
                self.step = event.step
