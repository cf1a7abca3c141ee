"""The process that profiles a run: ``python -m sdlora.jobs.profile_worker DATA_DIR CONFIG.toml RESULT.json [savings]``.

It locks the device meanwhile, reports events on its output, and ends with the exit code of what went wrong;
``sdlora.jobs.profiler`` is the parent's side.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.config import TrainConfig, all_settings, explicit_settings, value_of
from sdlora.events import Event, OnEvent, Progress
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.writing import write_atomic
from sdlora.jobs import memory_savings
from sdlora.jobs.fit_to_memory import SETTLED, MemoryCounter, fit_to_memory
from sdlora.jobs.job_process import run_job
from sdlora.jobs.training_worker import translate_error
from sdlora.storage.device_lock import device_lock
from sdlora.training.profiling import profile_run
from sdlora.training.run_paths import RunPaths

if TYPE_CHECKING:
    import torch


def main() -> int:
    data_dir, config_file, result = map(Path, sys.argv[1:4])
    with_savings = "savings" in sys.argv[4:]

    def report(event: Event) -> None:
        print(event.to_json(), flush=True)

    return run_job(lambda: _profile(data_dir, config_file, result, with_savings, report), report, translate_error)


def _profile(data_dir: Path, config_file: Path, result: Path, with_savings: bool, report: OnEvent) -> None:
    """Measure the run of ``config_file``, and write the ``Measurement`` to ``result``."""
    from sdlora.generation.device import choose_device
    from sdlora.training.train_job import TrainJob

    config = TrainConfig.load(config_file)
    device = choose_device(config.train.device)
    with hold_lock(device_lock(data_dir, device), f"the device {device}"):
        fitted, notices = fit_to_memory(config, device, report)
        job = TrainJob(**dict(fitted), output=RunPaths(result.parent), cache=data_dir / "cache", on_event=report)
        values = asdict(profile_run(job)) | {"chosen": _differences(config, fitted), "told": notices}
        if with_savings:
            report(Progress(phase="counting what less memory would take"))
            values |= _further_savings(config, fitted, device)
        write_atomic(result, json.dumps(values))


def _further_savings(config: TrainConfig, fitted: TrainConfig, device: "torch.device") -> dict[str, Any]:
    """Return the bytes that the ``fitted`` run takes, counted, and those with each further memory saving."""
    counter = MemoryCounter(fitted, device)
    by_hand = explicit_settings(config) if config.train.memory else ()
    savings = memory_savings.remaining_savings(fitted, counter.needs, counter.on_card, by_hand)
    return {"counted": counter.needs(fitted), "rungs": [saving._asdict() for saving in savings]}


def _differences(config: TrainConfig, fitted: TrainConfig) -> dict[str, Any]:
    """Return the settings that ``train.memory`` changed."""
    pairs = {s.name: (value_of(config, s), value_of(fitted, s)) for s in all_settings() if s.name not in SETTLED}
    return {name: after for name, (before, after) in pairs.items() if before != after}


if __name__ == "__main__":
    sys.exit(main())
