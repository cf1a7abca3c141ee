"""Runs killed again and again, at random, for as long as it is told: each must end as if nothing had happened.

``python -m tools.soak --kills 200 --data-dir DIR --json``. A short run of a tiny model is trained by real processes.
Each is killed (``kill -9``) at a random moment or a random fault point, or now and then asked to stop, and the next one
goes on; after some kills the run may end, and all that it has made is compared with what an uninterrupted run with its
settings makes: weights, previews, losses, states. Then the next run begins, with other settings.

Interrupted, it goes on where it was when it is started again with the same DIR. Exit code 1 if any run differed.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.report import command, machine, rounded, versions
from sdlora import failpoints
from sdlora.config import TrainConfig
from sdlora.events import RunStopped
from sdlora.filesystem.writing import write_atomic
from sdlora.storage.run_folder import Run
from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.run_outcome import run_outcome
from tests.support.tiny_models import write_tiny_sd1

WORKER = "sdlora.jobs.training_worker"
POINTS = [name for name in failpoints.POINTS if not name.startswith("run.")]
COUNTS = (1, 1, 1, 2, 3, 5, 8, 13, 21)
"""Passings of a failpoint after which a process is killed."""
MOST_KILLS = 12
"""Largest number of kills of one run."""
SHARES = {"point": 0.5, "moment": 0.4, "stop": 0.1}
"""Shares of processes killed at a failpoint, killed at a random moment, and stopped by SIGTERM."""
COMMON: dict[str, Any] = {
    "data.trigger": "sks", "adapter.rank": 2, "train.batch_size": 2, "train.learning_rate": 1e-2, "train.device": "cpu",
    "train.steps": 40, "checkpoint.every": 2, "sample.every": 10, "sample.prompts": ["a red house", "a blue cat"],
    "sample.steps": 1, "sample.width": 64, "sample.height": 64,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every step, one state": {"checkpoint.every": 1, "checkpoint.keep": 1},
    "all that varies": {
        "adapter.dropout": 0.2, "data.flip": True, "data.caption_dropout": 0.3, "data.shuffle_captions": True,
        "loss.noise_offset": 0.05, "train.gradient_accumulation": 2, "train.steps": 24,
    },
    "class pictures": {
        "prior.weight": 0.5, "prior.class_prompt": "a house", "prior.count": 3, "prior.steps": 1, "train.steps": 24,
    },
    "frozen text": {"train.text_encoder_learning_rate": 0.0, "schedule.name": "cosine"},
    "prodigy, saved seldom": {"optimizer.name": "prodigy", "train.learning_rate": 1.0, "checkpoint.every": 5},
}  # fmt: skip


@dataclass
class Tally:
    """Progress so far, in the soak's folder, so that an interrupted soak resumes."""

    seed: int
    kills: int = 0
    stops: int = 0
    runs: int = 0
    """Number of runs that have ended and were compared."""
    seconds: float = 0.0
    points: dict[str, int] = field(default_factory=dict)
    """Kills by fault point; the others came at a moment."""
    mismatches: list[dict[str, Any]] = field(default_factory=list)
    attempt: int = 0
    """Processes of the run at hand so far."""


class Soak:
    """The folder of a soak: a base, pictures, references, and the run at hand."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.file = folder / "tally.json"
        self.tally = Tally(**json.loads(self.file.read_text())) if self.file.is_file() else Tally(seed)
        self.fork_server = ForkServer()
        self.base, self.pictures = folder / "base", folder / "pictures"
        if not self.file.is_file():
            write_tiny_sd1(self.base)
            self.pictures.mkdir(parents=True, exist_ok=True)
            for index in range(6):
                shape = (64, 64) if index % 3 else (96, 48)
                picture = Image.linear_gradient("L").resize(shape).rotate(40 * index).convert("RGB")
                picture.save(self.pictures / f"{index}.png")
                (self.pictures / f"{index}.txt").write_text(f"a red house, on grass, {index}")
        self.keep()

    def keep(self) -> None:
        write_atomic(self.file, json.dumps(asdict(self.tally)))

    def until(self, kills: int, seconds: float) -> None:
        """Go on until there were so many ``kills`` and the run at hand has ended, or ``seconds`` are over."""
        end = time.monotonic() + seconds
        for _ in self.processes(kills):
            if time.monotonic() > end:
                return

    def processes(self, kills: int) -> Iterator[None]:
        """Run after run; yields after each process."""
        while self.tally.kills < kills:
            name = [*SETTINGS][self.tally.runs % len(SETTINGS)]
            expected = self.reference(name)
            data_dir = self.folder / f"{self.tally.runs:04d}"
            run = self.run(name, data_dir)
            begun = time.monotonic()
            while not self.process(run, expected["seconds"]):
                self.tally.seconds, begun = self.tally.seconds + time.monotonic() - begun, time.monotonic()
                self.keep()
                yield
            self.tally.seconds += time.monotonic() - begun
            self.compare(name, run, expected)
            self.tally.runs, self.tally.attempt = self.tally.runs + 1, 0
            self.keep()
            if not self.tally.mismatches or self.tally.mismatches[-1]["run"] != str(data_dir):
                shutil.rmtree(data_dir)
            yield

    def run(self, name: str, data_dir: Path) -> Run:
        """The run at hand: as a soak that was interrupted left it, or a new one."""
        found = Run.all(data_dir)
        if found:
            return found[0]
        own = {"model.base": str(self.base), "data.folder": str(self.pictures)}
        return Run.create(data_dir / "runs", "run", TrainConfig.parse({}, name, COMMON | own | SETTINGS[name]))

    def reference(self, name: str) -> dict[str, Any]:
        """Return the outcome of an uninterrupted run, and its seconds."""
        file = self.folder / "references" / f"{name}.json"
        if not file.is_file():
            with_cache = self.folder / "references" / name
            shutil.rmtree(with_cache, ignore_errors=True)
            run = self.run(name, with_cache)
            begun = time.monotonic()
            code = self.start(run).wait()
            if code:
                raise SystemExit(f"{name}: exit code {code}; see {run.log}")
            made = {"seconds": time.monotonic() - begun, "outcome": run_outcome(run)}
            write_atomic(file, json.dumps(made))
        return dict(json.loads(file.read_text()))

    def start(self, run: Run, fault: str = "") -> ForkedProcess:
        return self.fork_server.start(WORKER, [str(run.folder)], run.log, failpoint=fault)

    def process(self, run: Run, longest: float) -> bool:
        """One process of ``run``, and what befalls it, by the seed. Whether the run has ended."""
        tally = self.tally
        chance = random.Random(f"{tally.seed}/{tally.runs}/{tally.attempt}")
        tally.attempt += 1
        what = chance.choices([*SHARES], [*SHARES.values()])[0] if tally.attempt <= MOST_KILLS else "nothing"
        point = chance.choice(POINTS) if what == "point" else ""
        process = self.start(run, f"{point}:{chance.choice(COUNTS)}" if point else "")
        blow = threading.Timer(
            chance.uniform(0, longest / 2), process.send, [signal.SIGTERM if what == "stop" else signal.SIGKILL]
        )
        if what in ("moment", "stop"):
            blow.start()
        code = process.wait()
        if blow.is_alive():
            blow.cancel()
            blow.join()
        if code == -signal.SIGKILL:
            tally.kills += 1
            if point:
                tally.points[point] = tally.points.get(point, 0) + 1
        elif what == "stop" and code in (143, -signal.SIGTERM):
            tally.stops += 1
        elif code:
            tally.mismatches.append({"run": str(run.data_dir), "exit_code": code, "attempt": tally.attempt})
            return True
        return code == 0

    def compare(self, name: str, run: Run, expected: dict[str, Any]) -> None:
        made, wanted = json.loads(json.dumps(run_outcome(run))), expected["outcome"]
        stops = {event.step for event in run.events() if isinstance(event, RunStopped)}
        for step in stops - {*wanted["told"]["saved"]}:
            made["adapters"].pop(run.checkpoint(step).name, None)  # A stop saves one more.
            made["told"]["saved"] = [saved for saved in made["told"]["saved"] if saved != step]
        odd = [what for what in wanted if made[what] != wanted[what]]
        if odd:
            self.tally.mismatches.append({"run": str(run.data_dir), "settings": name, "odd": odd})


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200, help="how many in all, at least (default: 200)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop sooner, to go on another time")
    parser.add_argument("--seed", type=int, default=0, help="of a new soak (default: 0)")
    parser.add_argument("--data-dir", type=Path, required=True, help="its folder; what differed stays there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args(arguments)
    soak = Soak(flags.data_dir.resolve(), flags.seed)
    try:
        soak.until(flags.kills, flags.seconds)
    finally:
        soak.keep()
        soak.fork_server.close()
    tally = soak.tally
    return {
        "benchmark": "soak",
        "command": command("tools.soak", arguments),
        "config": {"model": "tiny random SD 1.x", "settings": [*SETTINGS], "shares": SHARES, "seed": tally.seed},
        "kills": tally.kills,
        "kills_at_points": dict(sorted(tally.points.items())),
        "kills_at_moments": tally.kills - sum(tally.points.values()),
        "stops": tally.stops,
        "runs": tally.runs,
        "mismatches": tally.mismatches,
        "seconds": rounded(tally.seconds),
        "machine": machine(),
        "versions": versions(),
    }


if __name__ == "__main__":
    found = main(sys.argv[1:])
    print(json.dumps(found) if "--json" in sys.argv else json.dumps(found, indent=2))
    sys.exit(1 if found["mismatches"] else 0)
