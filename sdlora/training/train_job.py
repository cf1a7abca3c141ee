"""A run's job: its sections, its output paths, its listeners, and the check whether to stop."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdlora.adapters import Adapter
from sdlora.checkpoint import Checkpoint
from sdlora.data.concepts import run_concepts
from sdlora.data.settings import Concept, Data
from sdlora.events import Notice, OnEvent, ignore
from sdlora.families.base import Family
from sdlora.families.settings import Model
from sdlora.generation.settings import Prior, Sample
from sdlora.optim import Optimizer, Schedule
from sdlora.section import Section
from sdlora.training.run_paths import RunPaths
from sdlora.training.settings import Loss, Monitor, Train


def nothing(family: Family) -> None:
    """Between two steps there is nothing to do."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training run. ``cache`` is the folder that runs share; ``should_stop`` is asked at every micro-batch.

    ``between_steps`` may use the model, and must leave it as it was.
    """

    model: Model
    data: Data
    prior: Prior
    adapter: Adapter
    train: Train
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    checkpoint: Checkpoint
    sample: Sample
    monitor: Monitor
    concepts: tuple[Concept, ...] = ()
    output: RunPaths
    cache: Path
    on_event: OnEvent = ignore
    should_stop: Callable[[], bool] = lambda: False
    between_steps: Callable[[Family], None] = nothing

    @cached_property
    def all_concepts(self) -> tuple[Concept, ...]:
        """The concepts of the run, with all their settings."""
        return run_concepts(self.data, self.prior, self.concepts)

    def settings(self) -> dict[str, Any]:
        """Return the settings of all sections as JSON has them, by section."""
        sections = {name: value for name, value in vars(self).items() if isinstance(value, Section)}
        found: dict[str, Any] = {name: section.model_dump(mode="json") for name, section in sections.items()}
        own = [concept.model_dump(mode="json") for concept in self.concepts]
        return {**found, "concepts": own} if own else found

    def notice(self, *messages: str) -> None:
        """Tell what is worth knowing and stops nothing."""
        for message in messages:
            self.on_event(Notice(message=message))
