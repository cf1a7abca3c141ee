"""Short runs in this very process."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from sdlora.config import TrainConfig
from sdlora.events import Event, StepDone
from sdlora.families.base import Family
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob, nothing
from sdlora.training.trainer import train


def train_job(config: TrainConfig, folder: Path) -> TrainJob:
    """A run in ``folder / "run"`` that reports nothing."""
    return TrainJob(**dict(config), output=RunPaths(folder / "run"), cache=folder / "cache")


def train_in_process(
    config: TrainConfig,
    folder: Path,
    stop_after: int | None = None,
    between_steps: Callable[[Family], None] = nothing,
) -> tuple[bool, list[Event], RunPaths]:
    """Train in this process, ``stop_after`` steps at most; whether it finished, what it told, where it wrote."""
    events: list[Event] = []
    output = RunPaths(folder)
    for path in (output.samples, output.checkpoints):
        path.mkdir(parents=True, exist_ok=True)

    def should_stop() -> bool:
        return stop_after is not None and sum(type(event) is StepDone for event in events) >= stop_after

    cache = folder.parent / "cache"
    listeners = {"on_event": events.append, "should_stop": should_stop, "between_steps": between_steps}
    return train(TrainJob(**dict(config), output=output, cache=cache, **listeners)), events, output


def events_of(kind, events):
    return [event for event in events if type(event) is kind]


def assert_equal_files(one, other):
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def max_file_difference(one, other):
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max((a[key].float() - b[key].float()).abs().max().item() for key in a)


STEPS = 6
"""Steps of the short runs that ``configure`` describes."""
