"""The adapter methods side by side on the bundled model: ``python -m benchmarks.methods``.

Each trains ``pocket-style`` with its own rank and rate and is asked for the held-out prompts, as ``benchmarks.quality``
does. Rows that the JSON file has already are not measured again, so that a stopped measurement goes on.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.quality import style
from benchmarks.report import command, machine, rounded, versions
from sdlora.evaluation.fidelity import Clip

RESULTS = Path(__file__).parent / "results" / "methods.json"
TRIALS = {
    "lora, rank 16": ("--adapter.method", "lora"),
    "dora, rank 16": ("--adapter.method", "dora"),
    "loha, rank 8": ("--adapter.method", "loha", "--adapter.rank", "8"),
    "lokr, rank 8": ("--adapter.method", "lokr", "--adapter.rank", "8"),
    "ia3": ("--adapter.method", "ia3"),
    "ia3, ten times the rate": (
        "--adapter.method", "ia3", "--train.learning_rate", "1e-2", "--train.text_encoder_learning_rate", "2e-3",
    ),
}  # fmt: skip
"""Settings of each run, over the preset's."""


def trial(name: str) -> dict[str, Any]:
    """The figures of one row: share of the way to the style (CLIP-I), what is kept of CLIP-T, seconds, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        figures, _ = style(Clip(), Path(folder), *TRIALS[name])
    kept = ("share_of_gap", "clip_t_kept", "train_seconds", "adapter_bytes")
    return {**{key: rounded(figures[key]) for key in kept}, "flags": " ".join(TRIALS[name])}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS)
    path = parser.parse_args(arguments).json
    found = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    for name in (name for name in TRIALS if name not in found):
        found[name] = {**trial(name), "load": machine()["load"]}
        report = {
            "command": command("benchmarks.methods", arguments), "machine": machine(), "versions": versions(),
            "seeds": 1, "rows": found,
        }  # fmt: skip
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(name, found[name], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
