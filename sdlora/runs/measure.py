"""The process that measures a run: ``python -m sdlora.runs.measure DATA_DIR CONFIG.toml RESULT.json``.

It holds the device's lock meanwhile, and ends with the exit code of what went wrong; ``sdlora.runs.estimates`` is the
parent's side.
"""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from sdlora.config import TrainConfig
from sdlora.errors import SdloraError
from sdlora.events import ignore
from sdlora.files import write_atomic
from sdlora.runs.folder import device_lock, hold
from sdlora.training.output import RunPaths


def main() -> int:
    data_dir, config_file, result = map(Path, sys.argv[1:])
    try:
        from sdlora.generation.device import choose_device
        from sdlora.training.estimate import measure
        from sdlora.training.job import Job

        config = TrainConfig.load(config_file)
        device = choose_device(config.train.device)
        with hold(device_lock(data_dir, device), f"the device {device}"):
            job = Job(
                **dict(config), output=RunPaths(result.parent), cache=data_dir / "cache", on_event=ignore,
                should_stop=lambda: False,
            )  # fmt: skip
            write_atomic(result, json.dumps(asdict(measure(job))))
        return 0
    except Exception as error:
        return _tell(error)


def _tell(error: Exception) -> int:
    """Say on standard error what went wrong; the last line is for a person. Returns the exit code."""
    from sdlora.runs.worker import translate

    known = error if isinstance(error, SdloraError) else translate(error)
    if known is None:
        traceback.print_exc()
    message = " ".join(str(known or f"{type(error).__name__}: {error}").split())
    print(f"error: {message}", file=sys.stderr)
    return known.exit_code if known else 1


if __name__ == "__main__":
    sys.exit(main())
