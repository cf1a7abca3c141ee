"""Estimates of a run: by a measurement, or else by the pace of earlier runs. Needs no torch."""

import statistics
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.config import TrainConfig
from sdlora.data.concepts import image_sets
from sdlora.errors import SdloraError
from sdlora.events import StepDone
from sdlora.filesystem.stat_cache import StatCache
from sdlora.jobs.measurement import Measurement, cached_measurement, counted_examples, step_settings
from sdlora.storage.run_folder import Run
from sdlora.training.profiling import count_views


class RunEstimate(NamedTuple):
    """Time and memory that a run will take. ``seconds`` and ``memory`` (bytes) are None where they are unknown."""

    steps: int
    pictures: int
    seconds: float | None = None
    memory: int | None = None
    measured: "Measurement | None" = None
    """None where ``seconds`` are those of earlier runs with these settings."""


def estimate_run(config: TrainConfig, data_dir: Path, done: int = 0) -> RunEstimate:
    """Estimate ``config`` from step ``done`` on, by a measurement or else by earlier runs in ``data_dir``.

    Raises DatasetError for images that cannot be used, ModelError for a base that does not exist.
    """
    concepts, examples = config.all_concepts, counted_examples(config)
    steps = config.train.planned_steps(image_sets(concepts, examples))
    left = steps - done
    found = cached_measurement(config, data_dir)
    if found is not None:
        train = found.as_chosen(config).train
        views = count_views(concepts, examples)
        phases = found.seconds_by_phase(concepts, config.prior, train, config.sample, views, left)
        return RunEstimate(steps, len(examples), sum(phases.values()), found.memory, found)
    pace = _pace(config, data_dir)
    return RunEstimate(steps, len(examples), None if pace is None else pace * left)


def _pace(config: TrainConfig, data_dir: Path) -> float | None:
    """Return the seconds of a step in the newest run with steps like those of ``config``; None if there is none."""
    wanted = (step_settings(config), config.train.gradient_accumulation)
    for run in Run.all(data_dir):
        if _steps.get(partial(_steps_of, run), str(run.config_file)) == wanted:
            with suppress(OSError):
                seconds = _seconds.get(partial(_median_duration, run), str(run.journal))
                if seconds is not None:
                    return seconds
    return None


_steps: StatCache[Any] = StatCache()
"""Settings of each run that decide what a step takes."""
_seconds: StatCache[float | None] = StatCache()
"""Seconds of each run's steps."""


def _steps_of(run: Run) -> Any:
    """Return what ``_pace`` compares; None for a run of another version, say."""
    try:
        config = TrainConfig.load(run.config_file)
    except SdloraError:
        return None
    return step_settings(config), config.train.gradient_accumulation


def _median_duration(run: Run) -> float | None:
    seconds = [event.seconds for event in run.events() if isinstance(event, StepDone)]
    return statistics.median(seconds) if seconds else None
