"""Pictures in a row through the page's drawing process: whether its memory grows.

``python -m benchmarks.creation_drift --json``. Requests go one after the other through ``InferenceClient``, as the
page's do, to the bundled model at its own 128 pixels; few steps, as it is the requests that could leave something
behind.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

from benchmarks.report import command, machine, rounded, versions
from sdlora.api.generation import GenerationRequest, InferenceClient

WARM, AROUND = 20, 5
"""Pictures after which the memory is called settled, and over how many each of the two readings is averaged."""
LOOK_SECONDS = 0.02


def generate(creator: InferenceClient, pictures: int, steps: int) -> tuple[list[float], list[float]]:
    """The drawing process's memory in MiB after each picture, and the seconds that each took."""
    memory, seconds = [], []
    for number in range(pictures):
        began = time.monotonic()
        ticket = creator.submit(GenerationRequest(prompt="a red house on grass", seed=number, steps=steps))
        while not ticket.ended:
            time.sleep(LOOK_SECONDS)
            ticket = creator.status(ticket.number) or ticket
        if ticket.state != "done":
            raise SystemExit(f"picture {number}: {ticket.message}")
        seconds.append(time.monotonic() - began)
        [process] = (
            child for child in psutil.Process().children() if "sdlora.inference.inference_worker" in child.cmdline()
        )
        memory.append(process.memory_info().rss / 2**20)
    return memory, seconds


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=200, help="in a row (default: 200)")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps of each (default: 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        creator = InferenceClient(Path(folder), "cpu")
        try:
            memory, seconds = generate(creator, flags.pictures, flags.steps)
        finally:
            creator.close()
    before, after = mean(memory[WARM : WARM + AROUND]), mean(memory[-AROUND:])
    return {
        "benchmark": "creation_drift",
        "command": command("benchmarks.creation_drift", arguments),
        "config": {"model": "pocket", "pixels": 128, "pictures": flags.pictures, "steps": flags.steps},
        "drift_percent": rounded(100 * (after - before) / before, 3),
        "mib_after_20": rounded(before, 5),
        "mib_after_all": rounded(after, 5),
        "mib_every_20": [rounded(value, 5) for value in memory[::20]],
        "mib_highest": rounded(max(memory), 5),
        "seconds_a_picture": rounded(median(seconds)),
        "machine": machine(),
        "versions": versions(),
    }


if __name__ == "__main__":
    found = main(sys.argv[1:])
    print(json.dumps(found) if "--json" in sys.argv else json.dumps(found, indent=2))
