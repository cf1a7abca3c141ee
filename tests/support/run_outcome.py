"""All that a run has made, in a form that equals that of another run exactly if nothing was lost or changed."""

import hashlib
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sdlora import checkpoint
from sdlora.events import CheckpointSaved, RunStarted, SampleReady, StepDone
from sdlora.filesystem.writing import TEMPORARY
from sdlora.storage.run_folder import Run


def model_hash(path: Path) -> str:
    """Return the hash of a file's weights, from its header."""
    with safe_open(path, "pt") as file:
        return file.metadata()["sshs_model_hash"]


def run_outcome(run: Run) -> dict[str, Any]:
    """Hashes of adapters and previews, the states' steps, every loss that any process told of, what was announced.

    What a process left half written is in it too, so that it equals no clean run's.
    """
    events = run.events()
    adapters = [run.adapter, *sorted(run.checkpoints.glob("*.safetensors"))]
    pictures = sorted(run.samples.glob("*.png"))
    states = [path for path in sorted(run.states.iterdir()) if checkpoint.is_verified(path)]
    return {
        "state": run.state,
        "adapters": {path.name: model_hash(path) for path in adapters},
        "previews": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures},
        "states": [path.name for path in states],
        "losses": sorted({(event.step, event.loss) for event in events if isinstance(event, StepDone)}),
        "told": {
            "previews": sorted({event.path for event in events if isinstance(event, SampleReady)}),
            "saved": sorted({event.step for event in events if isinstance(event, CheckpointSaved | RunStarted)} - {0}),
        },
        "card": run.adapter.with_suffix(".json").is_file(),
        "leftovers": sorted(str(path) for path in run.folder.rglob(f"{TEMPORARY}*")),
    }
