"""Steps a second of 1, 2 and 4 processes that train together: ``python -m benchmarks.scale_out --json``.

Every process has one thread and the same batch, as on a machine with a device each, so N processes see N times the
pictures a step. More processes than cores share them: what N processes can reach at most is cores / N of their number.
"""

import argparse
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.plot import Bar, bars
from benchmarks.report import add_options, between, columns, machine, result, rounded, spread, tell
from sdlora.api.training import start_run
from sdlora.config import TrainConfig
from sdlora.events import Event, StepDone
from sdlora.filesystem.paths import as_path

PICTURES = Path(__file__).parents[1] / "sample_data" / "stained-glass"
WARM = 5
"""Steps before the clock starts."""


class Pace:
    """Listens to a run: its steps a second after the warm-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.step > WARM:
            self.seconds.append(event.seconds)

    @property
    def steps_per_second(self) -> float:
        return len(self.seconds) / sum(self.seconds)


def run(processes: int, options: argparse.Namespace, folder: Path) -> float:
    """Train from the start in so many processes; steps a second."""
    config = TrainConfig.parse(
        {},
        "benchmark",
        {
            "model.base": options.model, "data.folder": str(options.folder), "data.trigger": "ohwx",
            "train.device": "cpu", "train.steps": WARM + options.steps, "train.batch_size": options.batch_size,
            "checkpoint.every": 0, "sample.every": 0,
        },
    )  # fmt: skip
    pace = Pace()
    training = start_run(config, f"of-{processes}", folder, processes)
    if code := training.wait(pace):
        raise SystemExit(f"{processes} processes ended with {code}: {training.complaint()}")
    return pace.steps_per_second


def measure(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = "1"
    rates: dict[int, list[float]] = {processes: [] for processes in options.processes}
    for turn in range(options.turns):
        for processes, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                found.append(run(processes, options, Path(folder)))
        print(f"turn {turn + 1}:", {n: rounded(found[-1]) for n, found in rates.items()}, file=sys.stderr)
    cores, first = machine()["cores"], options.processes[0]
    rows = []
    for processes, found in rates.items():
        shares = [rate / alone for rate, alone in zip(found, rates[first], strict=True)]
        rows.append({
            "processes": processes,
            "steps_per_second": spread(found),
            "pictures_per_second": rounded(spread(found)["median"] * processes * options.batch_size),
            "efficiency": spread(shares),
            "most_possible": rounded(min(1.0, cores / processes)),
        })  # fmt: skip
    config = {
        "model": Path(options.model).name, "batch_size": options.batch_size, "steps": options.steps,
        "turns": options.turns, "threads_each": 1, "backend": "gloo",
    }  # fmt: skip
    return result("scale_out", words, config, cores=cores, rows=rows)


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--folder", type=as_path, default=PICTURES, help="the pictures (sample_data/stained-glass)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="the first is what all are held to")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures a step in each process (4)")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each run (40)")
    parser.add_argument("--turns", type=int, default=3, help="runs of each number of processes (3)")
    add_options(parser)
    return parser.parse_args(words)


def table(found: dict[str, Any]) -> list[str]:
    head: list[object] = [
        "processes",
        "steps/s",
        "pictures/s",
        "efficiency",
        f"most possible on {found['cores']} cores",
    ]
    rows = [head]
    for row in found["rows"]:
        figures = [between(row["steps_per_second"]), row["pictures_per_second"], between(row["efficiency"])]
        rows.append([row["processes"], *figures, row["most_possible"]])
    return columns(rows)


def chart(found: dict[str, Any]) -> Image.Image:
    rows = [
        Bar(f"{row['processes']} processes", row["efficiency"]["median"], row["efficiency"]["quartiles"],
            floor=row["most_possible"])
        for row in found["rows"]
    ]  # fmt: skip
    return bars(f"Efficiency of processes with a thread each, on {found['cores']} cores", "of 1", rows)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    with redirect_stdout(sys.stderr):
        found = measure(options, words)
    tell(options, found, table(found), chart(found))


if __name__ == "__main__":
    main()
