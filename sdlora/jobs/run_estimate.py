"""Estimates of a run: by a measurement, or else by the pace of earlier runs. Needs no torch."""

import statistics
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sdlora.config import TrainConfig
from sdlora.errors import SdloraError
from sdlora.events import StepDone
from sdlora.jobs.measurement import Measurement, cached_measurement, image_sizes, step_settings
from sdlora.storage.run_folder import Run


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
    sizes = image_sizes(config.data.folder)
    steps = config.train.planned_steps(config.data.kind, len(sizes))
    left = steps - done
    found = cached_measurement(config, data_dir)
    if found is not None:
        train = found.as_chosen(config).train
        phases = found.seconds_by_phase(config.data, config.prior, train, config.sample, len(sizes), left)
        return RunEstimate(steps, len(sizes), sum(phases.values()), found.memory, found)
    pace = _pace(config, data_dir)
    return RunEstimate(steps, len(sizes), None if pace is None else pace * left)


def _pace(config: TrainConfig, data_dir: Path) -> float | None:
    """Return the seconds of a step in the newest run with steps like those of ``config``; None if there is none."""
    wanted = (step_settings(config), config.train.gradient_accumulation)
    for run in Run.all(data_dir):
        with suppress(SdloraError, OSError):  # One of another version, say.
            earlier = _load(run.config_file, run.config_file.stat().st_mtime_ns)
            if (step_settings(earlier), earlier.train.gradient_accumulation) == wanted and run.journal.exists():
                seconds = _median_duration(run.journal, run.journal.stat().st_size)
                if seconds is not None:
                    return seconds
    return None


@lru_cache(maxsize=256)
def _load(config_file: Path, stamp: int) -> TrainConfig:
    return TrainConfig.load(config_file)


@lru_cache(maxsize=256)
def _median_duration(journal: Path, size: int) -> float | None:
    seconds = [event.seconds for event in Run(journal.parent).events() if isinstance(event, StepDone)]
    return statistics.median(seconds) if seconds else None
