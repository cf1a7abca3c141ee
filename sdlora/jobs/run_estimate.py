"""What a run will take: measured in a process of its own and kept by what decides it; else as earlier runs took.

Nothing here imports torch: a front end asks, ``sdlora.jobs.profile_worker`` measures.
"""

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.config import TrainConfig, explicit_settings
from sdlora.data.dataset import load_dataset
from sdlora.data.settings import Data
from sdlora.errors import SdloraError
from sdlora.events import StepDone
from sdlora.families.base_models import locate_base
from sdlora.jobs.memory_savings import with_settings
from sdlora.storage.run_folder import Run
from sdlora.training.profiling import RunProfile, count_class_images

CODE = 3
"""Raised whenever a change of the program makes steps take other times or bytes: what was measured before is void."""
FREE_SECONDS = 600.0
"""So long what a card had free is taken for what it has: then what was chosen for it is measured anew."""


class RunEstimate(NamedTuple):
    """What a run will take. ``seconds`` and ``memory`` (bytes) are None where nobody knows yet."""

    steps: int
    pictures: int
    seconds: float | None = None
    memory: int | None = None
    measured: "Measurement | None" = None
    """None where ``seconds`` are those of earlier runs with these settings."""


@dataclass(frozen=True, kw_only=True)
class Measurement(RunProfile):
    """What was measured, and what was counted beside it (docs/memory.md)."""

    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Settings that ``train.memory`` asked for; it was measured with them."""
    told: Sequence[str] = ()
    counted: int = 0
    """Bytes of a device that the run needs, counted."""
    rungs: Sequence[Mapping[str, Any]] | None = None
    """Further ways to need less, one upon the other: ``changes``, what it then ``needs`` in bytes, ``costs``. None
    where nobody has asked for them."""

    def as_chosen(self, config: TrainConfig) -> TrainConfig:
        """``config`` as it was measured."""
        return with_settings(config, self.chosen)


def estimate_run(config: TrainConfig, data_dir: Path, done: int = 0) -> RunEstimate:
    """What ``config`` will take from step ``done`` on, by what was measured or else by earlier runs in ``data_dir``.

    Raises DatasetError for pictures that cannot be used, ModelError for a base that is not there.
    """
    sizes = _sizes(config.data.folder)
    steps = config.train.planned_steps(config.data.kind, len(sizes))
    left = steps - done
    found = cached_measurement(config, data_dir)
    if found is not None:
        train = found.as_chosen(config).train
        seconds = found.seconds(config.data, config.prior, train, config.sample, len(sizes), left)
        return RunEstimate(steps, len(sizes), seconds, found.memory, found)
    pace = _pace(config, data_dir)
    return RunEstimate(steps, len(sizes), None if pace is None else pace * left)


def cached_measurement(config: TrainConfig, data_dir: Path) -> Measurement | None:
    """What was measured for such a run on this machine before."""
    try:
        result = measurement_file(config, data_dir)
        found = Measurement(**json.loads(result.read_text(encoding="utf-8")))
        old = time.time() - result.stat().st_mtime > FREE_SECONDS
    except (OSError, ValueError, TypeError):
        return None
    return None if old and config.train.memory == "auto" and found.device != "cpu" else found


def measurement_file(config: TrainConfig, data_dir: Path) -> Path:
    """Where the measurement of ``config`` is kept: called by all that decides it."""
    sizes = sorted(set(_sizes(config.data.folder)))
    sample = config.sample.model_dump(include={"cfg", "sampler", "width", "height"})
    draws = bool(config.sample.every and config.sample.prompts) or count_class_images(config.prior) > 0
    what = {**_step(config), "sizes": sizes, "sample": sample if draws else None, "torch": version("torch")}
    what |= {"base": _weights(config.model.base), "machine": platform.node(), "memory": draws}
    return data_dir / "cache" / "estimates" / f"{_digest(what)}.json"


def _step(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide how long a micro-batch takes, and what it needs."""
    names = {"batch_size", "precision", "gradient_checkpointing", "device", "offload", "memory"}
    hand = sorted(explicit_settings(config)) if config.train.memory is not None else []
    text = config.adapter.text_encoder and config.train.text_encoder_learning_rate != 0
    return {
        "model": config.model.model_dump(),
        "code": CODE,
        "data": config.data.model_dump(include={"resolution", "buckets", "shuffle_captions", "caption_dropout"}),
        "prior": config.prior.target if config.prior.weight else None,
        "adapter": {**config.adapter.model_dump(exclude={"init", "text_encoder", "alpha"}), "text": text},
        "train": config.train.model_dump(include=names),
        "optimizer": config.optimizer.name,
        "given": hand,
    }


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _weights(base: str) -> list[tuple[str, int, int]]:
    """A base's files of weights with their sizes and times, which change as it does; a hub id's name stands for it."""
    source = locate_base(base)
    place = Path(source.location)
    files = {"folder": sorted(place.rglob("*.safetensors")), "file": [place]}.get(source.kind, [])
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _sizes(folder: Path) -> tuple[tuple[int, int], ...]:
    """The sizes in pixels of the pictures to train on, read anew only where the folder changed."""
    entries = sorted((entry.path, entry.stat().st_mtime_ns) for entry in _files(folder))
    return _read_sizes(folder, _digest({"files": entries}))


def _files(folder: Path) -> list["os.DirEntry[str]"]:
    """Files of a data folder and of the folders directly in it; none where there is no folder."""
    with suppress(OSError), os.scandir(folder) as found:
        entries = list(found)
        inner = [file for entry in entries if entry.is_dir() for file in os.scandir(entry.path)]
        return [entry for entry in (*entries, *inner) if entry.is_file()]
    return []


@lru_cache(maxsize=32)
def _read_sizes(folder: Path, stamp: str) -> tuple[tuple[int, int], ...]:
    return tuple((size.width, size.height) for size in (e.size for e in load_dataset(Data(folder=folder)).examples))


def _pace(config: TrainConfig, data_dir: Path) -> float | None:
    """Seconds a step in the newest earlier run whose steps were like those of ``config``; None if there is none."""
    wanted = (_step(config), config.train.gradient_accumulation)
    for run in Run.all(data_dir):
        with suppress(SdloraError, OSError):  # One of another version, say: then it tells nothing.
            known = _known(run.config_file, run.config_file.stat().st_mtime_ns)
            if (_step(known), known.train.gradient_accumulation) == wanted and run.journal.exists():
                seconds = _durations(run.journal, run.journal.stat().st_size)
                if seconds is not None:
                    return seconds
    return None


@lru_cache(maxsize=256)
def _known(config_file: Path, stamp: int) -> TrainConfig:
    return TrainConfig.load(config_file)


@lru_cache(maxsize=256)
def _durations(journal: Path, size: int) -> float | None:
    seconds = [event.seconds for event in Run(journal.parent).events() if isinstance(event, StepDone)]
    return statistics.median(seconds) if seconds else None
