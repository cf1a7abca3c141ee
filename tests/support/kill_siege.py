"""Kill pages, trainings, tools and the inference process at random moments, and look whether anything is lost.

``python -m tests.support.kill_siege ROOT --kills 500 --seed 1``. Two pages serve one data folder, ``ROOT/data``; their
visitors (``tests.support.siege_page``) queue runs and use the folder in every way. In each round some processes are
killed, and the pages start anew; then all is let come to its end, and looked at. Each round is a line of
``ROOT/outcomes.jsonl``, from which the program goes on when it is started again. What a faulty round has left stays in
``ROOT-faulty``. Exit code 1 if there was one.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora.jobs.training_queue import TrainingQueue
from sdlora.storage.run_folder import Run
from tests.support.fork_server import ForkedProcess, ForkServer, RunningProcess
from tests.support.run_outcome import run_outcome
from tests.support.siege_findings import find_faults, is_trained, ledgers
from tests.support.siege_page import VARIANTS, siege_config
from tests.support.tiny_models import write_tiny_sd1

WORKER, TOOL, INFERENCE = (
    "sdlora.jobs.training_worker", "sdlora.jobs.tool_process", "sdlora.inference.inference_worker"
)  # fmt: skip
PAGES = ("A", "B")
KINDS: dict[str, tuple[float, tuple[str, ...]]] = {
    "page": (0.25, ("page",)),
    "both pages": (0.1, PAGES),
    "worker": (0.2, (WORKER,)),
    "starting worker": (0.1, (WORKER,)),
    "tool": (0.15, (TOOL,)),
    "inference": (0.05, (INFERENCE,)),
    "page and worker": (0.1, ("page", WORKER)),
    "everything": (0.05, (*PAGES, WORKER, TOOL, INFERENCE)),
}
"""Kinds of kills: their share, and whom they end."""
KILLS_A_ROUND = 10
LONGEST_ROUND = 180.0
"""Seconds in which all runs of a round have to end after the last kill."""


class Siege:
    """The folder of a siege, its pages, and its rounds."""

    def __init__(self, root: Path, seed: int, server: ForkServer, variants: Sequence[str] = tuple(VARIANTS)):
        self.root, self.seed, self.server, self.variants = root.resolve(), seed, server, variants
        self.data_dir = self.root / "data"
        self.file = self.root / "outcomes.jsonl"
        self.pages: dict[str, ForkedProcess] = {}
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / "pictures").exists():
            write_tiny_sd1(self.root / "base")
            (self.root / "pictures").mkdir()
            for index in range(6):
                picture = Image.linear_gradient("L").resize((64, 64)).rotate(40 * index).convert("RGB")
                picture.save(self.root / "pictures" / f"{index}.png")
                (self.root / "pictures" / f"{index}.txt").write_text(f"a red house, on grass, {index}")

    def outcomes(self) -> list[dict[str, Any]]:
        """Return the rounds so far."""
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def undisturbed(self, variant: str) -> dict[str, Any]:
        """Return the outcome of an undisturbed run."""
        file = self.root / "undisturbed" / f"{variant}.json"
        if not file.is_file():
            run = Run.create(self.root / "undisturbed" / variant / "runs", "run", siege_config(self.root, variant))
            assert self.server.start(WORKER, [str(run.folder)], run.log).wait() == 0, run.log.read_text()
            file.write_text(json.dumps(run_outcome(run)))
        return dict(json.loads(file.read_text()))

    def until(self, kills: int) -> None:
        """Do rounds until there were so many kills."""
        while (done := sum(sum(outcome["kills"].values()) for outcome in self.outcomes())) < kills:
            outcome = self.round(len(self.outcomes()), min(KILLS_A_ROUND, kills - done))
            with open(self.file, "a") as file:
                file.write(json.dumps(outcome) + "\n")

    def round(self, number: int, kills: int) -> dict[str, Any]:
        """Do one round with so many ``kills``, and return what came of it."""
        begun, chance = time.monotonic(), random.Random(f"{self.seed}/{number}")
        self._clear()
        expected = {variant: self.undisturbed(variant) for variant in self.variants}
        done: Counter[str] = Counter()
        faults: list[str] = []
        try:
            self._start_pages(f"{self.seed}-{number}")
            for _ in range(kills):
                time.sleep(chance.uniform(0.05, 1.2))
                done[self._kill(chance)] += 1
                time.sleep(chance.uniform(0, 0.3))
                self._start_pages(f"{self.seed}-{number}")
            (self.root / "quiet").touch()
            if not self._wait_for(self._is_done, LONGEST_ROUND):
                faults.append("the runs have not come to their end")
        finally:
            self._end_all()
        faults += find_faults(self.root, expected)
        if faults:
            shutil.copytree(self.root, self.root.with_name(f"{self.root.name}-faulty") / f"{number:03d}", symlinks=True)
        steps = Counter(
            f"{step['do']} {step.get('end', 'killed')}" for each in ledgers(self.root) for step in each.steps
        )
        return {
            "round": number, "kills": dict(done), "faults": faults, "steps": dict(sorted(steps.items())),
            "runs": len(self._trained()), "seconds": round(time.monotonic() - begun, 1),
        }  # fmt: skip

    def _clear(self) -> None:
        for name in ("data", "ledger", "own", "made", "logs"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir()
        (self.root / "quiet").unlink(missing_ok=True)

    def _start_pages(self, seed: str) -> None:
        for name in PAGES:
            if name not in self.pages or self.pages[name].poll() is not None:
                arguments = [str(self.root), name, self.server.address, seed, *self.variants]
                self.pages[name] = self.server.start("tests.support.siege_page", arguments, self.root / "logs" / name)

    def _kill(self, chance: random.Random) -> str:
        """Kill processes; return the kind. Where none of a kind comes, a page is killed."""
        kind = chance.choices([*KINDS], [share for share, _ in KINDS.values()])[0]
        page = chance.choice(PAGES)
        wanted = [page if name == "page" else name for name in KINDS[kind][1]]
        if kind == "starting worker":
            before = {process.pid for process in self._running([WORKER])}
            self._wait_for(lambda: any(process.pid not in before for process in self._running([WORKER])), 3)
        elif wanted[-1] not in PAGES:
            self._wait_for(lambda: bool(self._running(wanted[-1:])), 3)
        time.sleep(chance.uniform(0, 0.3 if kind == "starting worker" else 1.0))
        victims = self._running(wanted)
        if not victims:
            kind, victims = "page", self._running([page])
        for process in victims:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        for started in self.pages.values():
            if started.pid in {process.pid for process in victims}:
                started.wait()  # Else it would be taken for alive, and not be started again.
        return kind

    def _running(self, names: Sequence[str]) -> list[RunningProcess]:
        """Return the siege's own processes of these modules, or pages of these names."""
        pages = {self.pages[name].pid for name in names if name in self.pages}
        own = [process for process in self.server.running() if str(self.root) in " ".join(process.arguments)]
        tools = [process for process in self.server.running() if process.module == TOOL]
        return [process for process in (*own, *tools) if process.module in names or process.pid in pages]

    def _is_done(self) -> bool:
        """Return whether all runs have finished, and nothing else is under way."""
        trained = self._trained()
        waits = TrainingQueue(self.data_dir).waiting()
        acting = any(each.steps and "end" not in each.steps[-1] for each in ledgers(self.root))
        if self._running([WORKER, TOOL]) or waits or acting:
            return False
        return len(trained) == len(PAGES) * len(self.variants) and all(run.state == "finished" for run in trained)

    def _trained(self) -> list[Run]:
        return [run for run in Run.all(self.data_dir) if is_trained(run.name)]

    def _wait_for(self, happens: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not happens():
            if time.monotonic() > end:
                return False
            time.sleep(0.02 if seconds < 10 else 0.3)
        return True

    def _end_all(self) -> None:
        """End the pages, and what they have started."""
        for name in PAGES:
            self.pages.pop(name).kill()
        self._wait_for(lambda: not self._running([INFERENCE, TOOL]), 10)
        for process in self._running([WORKER, INFERENCE, TOOL]):
            os.kill(process.pid, signal.SIGKILL)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("root", type=Path, help="its folder")
    parser.add_argument("--kills", type=int, default=500, help="how many in all (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of a new siege (default: 0)")
    flags = parser.parse_args(arguments)
    server = ForkServer()
    try:
        siege = Siege(flags.root, flags.seed, server)
        siege.until(flags.kills)
    finally:
        server.close()
    outcomes = siege.outcomes()
    kills = sum((Counter(outcome["kills"]) for outcome in outcomes), Counter[str]())
    faulty = [outcome["round"] for outcome in outcomes if outcome["faults"]]
    print(
        json.dumps(
            {"kills": kills, "rounds": len(outcomes), "runs": sum(o["runs"] for o in outcomes), "faulty": faulty}
        )
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
