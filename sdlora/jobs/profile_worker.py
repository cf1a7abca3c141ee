"""The process that measures a run: ``python -m sdlora.jobs.profile_worker DATA_DIR CONFIG.toml RESULT.json``.

It holds the device's lock meanwhile, and ends with the exit code of what went wrong; ``sdlora.jobs.run_estimate`` is
the parent's side.
"""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.config import TrainConfig, all_settings, explicit_settings, value_of
from sdlora.errors import SdloraError
from sdlora.events import Event, Progress
from sdlora.filesystem.writing import write_atomic
from sdlora.jobs import memory_savings
from sdlora.jobs.fit_to_memory import SETTLED, MemoryCounter, fit_to_memory
from sdlora.jobs.profiler import PHASE
from sdlora.storage.locks import device_lock, hold_lock
from sdlora.training.run_paths import RunPaths

if TYPE_CHECKING:
    import torch


def main() -> int:
    data_dir, config_file, result = map(Path, sys.argv[1:4])
    try:
        from sdlora.generation.device import choose_device
        from sdlora.training.profiling import profile_run
        from sdlora.training.train_job import TrainJob

        config = TrainConfig.load(config_file)
        device = choose_device(config.train.device)
        with hold_lock(device_lock(data_dir, device), f"the device {device}"):
            chosen, told = fit_to_memory(config, device, _phase)
            job = TrainJob(
                **dict(chosen), output=RunPaths(result.parent), cache=data_dir / "cache", on_event=_phase,
                should_stop=lambda: False,
            )  # fmt: skip
            found = asdict(profile_run(job))
            rungs = _ladder(config, chosen, device) if "rungs" in sys.argv[4:] else {}
            write_atomic(result, json.dumps(found | rungs | {"chosen": _chosen(config, chosen), "told": told}))
        return 0
    except Exception as error:
        return _tell(error)


def _phase(event: Event) -> None:
    """Tell the parent, who reads the log, what is being done."""
    if isinstance(event, Progress):
        print(f"{PHASE}{event.phase}", flush=True)


def _ladder(asked: TrainConfig, chosen: TrainConfig, device: "torch.device") -> dict[str, Any]:
    """What the run takes as it was ``chosen``, counted; and what it would with each further rung."""
    _phase(Progress(phase="counting what less memory would take", done=0, total=1))
    counter = MemoryCounter(chosen, device)
    hand = explicit_settings(asked) if asked.train.memory else ()
    rungs = [step._asdict() for step in memory_savings.remaining_savings(chosen, counter.needs, counter.on_card, hand)]
    return {"counted": counter.needs(chosen), "rungs": rungs}


def _chosen(asked: TrainConfig, chosen: TrainConfig) -> dict[str, Any]:
    """The settings in which they differ, but for the wish itself."""
    pairs = {s.name: (value_of(asked, s), value_of(chosen, s)) for s in all_settings() if s.name not in SETTLED}
    return {name: after for name, (before, after) in pairs.items() if before != after}


def _tell(error: Exception) -> int:
    """Say on standard error what went wrong; the last line is for a person. Returns the exit code."""
    from sdlora.jobs.training_worker import translate_error

    known = error if isinstance(error, SdloraError) else translate_error(error)
    if known is None:
        traceback.print_exc()
    message = " ".join(str(known or f"{type(error).__name__}: {error}").split())
    print(f"error: {message}", file=sys.stderr)
    return known.exit_code if known else 1


if __name__ == "__main__":
    sys.exit(main())
