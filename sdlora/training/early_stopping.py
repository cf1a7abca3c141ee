"""Ending a run before its last step, by the loss ratios that it measures on fixed noise; off unless asked for.

A decision is a function of the measured ratios alone, as the journal has them. They are saved with each resumable
state, so a resumed run decides what an uninterrupted one does. Front ends may import this: no torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdlora.data.dataset import Example
from sdlora.errors import ConfigError
from sdlora.events import Measured, StoppedEarly
from sdlora.optim import Schedule
from sdlora.signals import loss_ratio, read_pictures
from sdlora.training.settings import Stop, Train

if TYPE_CHECKING:
    from sdlora.training.measured_images import MeasuringPlan

SPANS = 4
"""Least number of spans of ``train.stop_patience`` measurements in a run that may stop early."""


@dataclass
class EarlyStopping:
    """The measured loss ratios of a run, as far as a decision needs them, and the decision."""

    rule: Stop = "never"
    patience: int = 1
    tolerance: float = 0.0
    begin: int = 0
    """First step whose measurement counts: until the end of a warmup the rate is too low to learn much."""
    ratios: dict[int, float] = field(default_factory=dict)
    """Ratio by step: the last ``patience`` ones, and the lowest before them."""
    decision: StoppedEarly | None = None

    @classmethod
    def for_run(cls, train: Train, schedule: Schedule) -> "EarlyStopping":
        """Return what ``train`` asks for, before any measurement."""
        return cls(train.stop, train.stop_patience, train.stop_tolerance, schedule.warmup_steps)

    @property
    def is_on(self) -> bool:
        """Whether measurements may end the run."""
        return self.rule != "never"

    def add(self, event: Measured, steps: int) -> None:
        """Take up a measurement of a run of ``steps``, and set ``decision`` if the run ends by it."""
        ratio = loss_ratio(read_pictures(event.pictures), held_out=self.rule == "held_out")
        if not self.is_on or ratio is None or event.step < self.begin or event.step == steps:
            return
        self.ratios[event.step] = ratio
        earlier, last = self._split()
        if earlier:
            best = min(earlier, key=lambda step: self.ratios[step])
            self.ratios = {step: self.ratios[step] for step in (best, *last)}
            if self._agree(self.ratios[best], [self.ratios[step] for step in last]):
                self.decision = StoppedEarly(
                    step=event.step,
                    steps=steps,
                    rule=self.rule,
                    tolerance=self.tolerance,
                    best_step=best,
                    best=self.ratios[best],
                    ratios=[[step, self.ratios[step]] for step in last],
                )

    def _split(self) -> tuple[list[int], list[int]]:
        """Return the steps of the last ``patience`` measurements, and before them those of the earlier ones."""
        steps = sorted(self.ratios)
        return steps[: -self.patience], steps[-self.patience :]

    def _agree(self, best: float, last: Sequence[float]) -> bool:
        """Return whether the ``last`` ratios say stop: none fell below the ``best`` before, or all rose above it."""
        if self.rule == "plateau":
            return min(last) >= best - self.tolerance
        return min(last) > best + self.tolerance

    def to_values(self) -> dict[str, Any]:
        """Return what a resume needs, as JSON has it; nothing for a run that does not stop early."""
        ratios = [[step, self.ratios[step]] for step in sorted(self.ratios)]
        return {"stopping": {"rule": self.rule, "ratios": ratios}} if self.is_on else {}

    def restore(self, values: Any) -> None:
        """Put back what ``to_values`` returned; nothing if that was by another rule.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        saved = values.get("stopping")
        if saved is None or saved["rule"] != self.rule:
            return
        for step, ratio in saved["ratios"]:
            if type(step) is not int or type(ratio) is not float or not math.isfinite(ratio):
                raise ValueError("a measured ratio is no number")
            self.ratios[step] = ratio


def least_measurements(train: Train) -> int:
    """Return the least number of measurements between first and last step of a run that may stop early; 0 of others."""
    return 0 if train.stop == "never" else SPANS * train.stop_patience


def require_held_out(train: Train, held_out: Sequence[Example]) -> None:
    """Raise ConfigError if a run is to stop by held-out images, and there are none."""
    if train.stop == "held_out" and not held_out:
        raise ConfigError(
            "train.stop = held_out: no picture is held out, as there is no second one to train on; add pictures, or "
            "give data.validation_folder"
        )


def stopping_notices(train: Train, schedule: Schedule, plan: "MeasuringPlan", steps: int) -> Iterator[str]:
    """A sentence on what measuring for ``train.stop`` costs, or why it never decides, and one on a rate that decays."""
    if train.stop == "never":
        return
    count = len(plan.steps_before(steps, schedule.warmup_steps))
    if count <= train.stop_patience:
        yield (
            f"train.stop = {train.stop} never decides in {steps} steps: it takes more than {train.stop_patience} "
            f"measurements, and there are {count}; lower monitor.every or train.stop_patience"
        )
        return
    cost = plan.share(steps, train.batch_size * train.gradient_accumulation)
    yield (
        f"this run stops early if {train.stop_patience} measurements in a row say so; it measures every {plan.every} "
        f"steps, about {cost:.0%} of its work"
    )
    if schedule.name != "constant":
        yield (
            f"train.stop: a {schedule.name} rate is still high where a run stops early; take schedule.name = constant, "
            "or train again with as many steps"
        )
