"""A real resume from each corrupted file of a run: the bits of an undisturbed run, or one sentence.

``python -m tests.support.corrupted_runs FOLDER`` works in ``FOLDER``, and appends the outcome of each case to
``FOLDER/outcomes.jsonl``; started anew, it goes on from there. A refused resume must leave all as it was, and give the
right bits once the file is as it was again.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.api.training import extend_run, find_run, resume_run, run_failure
from sdlora.checkpoint import newest_step
from sdlora.config import TrainConfig
from sdlora.errors import SdloraError
from sdlora.events import Notice
from sdlora.filesystem.writing import TEMPORARY
from sdlora.jobs import launch, training_worker
from sdlora.storage.run_folder import Run
from sdlora.training.run_paths import CONFIG
from tests.support.fork_server import ForkServer

WORKER, SELF = "sdlora.jobs.training_worker", "tests.support.corrupted_runs"
KILLED = -9
STEPS, LONGER = 4, 6
NAME = "mine"
VARYING = re.compile(r"[0-9a-f]{6,}|(?<=seed)[0-9]+|(?<=/)[0-9a-f]{2}(?=/)")
"""Parts of paths that differ between files of one kind."""
WRITTEN_ANYWAY = ("journal.jsonl", "run.log", "run.lock")
"""Files in which a refused resume may say why."""

Corruption = Callable[[Path, Path], object]
"""Damages the file at a path; the other path is one of the same kind, if there is one."""


def flipped(share: float) -> Corruption:
    """Flip one bit of the byte at that share of the file's length."""

    def flip(path: Path, other: Path) -> None:
        content = bytearray(path.read_bytes())
        if content:
            content[min(len(content) - 1, int(share * len(content)))] ^= 1
        path.write_bytes(content)

    return flip


def replaced(make: Callable[[bytes], bytes]) -> Corruption:
    return lambda path, other: path.write_bytes(make(path.read_bytes()))


def folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


CORRUPTIONS: dict[str, Corruption] = {
    "missing": lambda path, other: path.unlink(),
    "empty": replaced(lambda content: b""),
    "cut at half": replaced(lambda content: content[: len(content) // 2]),
    "cut by a byte": replaced(lambda content: content[:-1]),
    "a bit at its start": flipped(0),
    "a bit in its middle": flipped(0.5),
    "a bit at its end": flipped(1),
    "zeros": replaced(lambda content: bytes(len(content))),
    "another's content": lambda path, other: path.write_bytes(other.read_bytes()),
    "a folder": folder,
    "a link to nothing": dangling,
    "unreadable": lambda path, other: path.chmod(0),
}


class Case(NamedTuple):
    """One corruption of one file of a run that was interrupted, or has finished."""

    state: str
    file: str
    corruption: str

    @property
    def key(self) -> str:
        return f"{self.state}: {self.kind} {self.corruption}"

    @property
    def kind(self) -> str:
        """The file, or what all files of its kind in a cache have in common."""
        return VARYING.sub("#", self.file) if "cache/" in self.file else self.file


def tensors(path: Path) -> str:
    """Return the digest of the bytes of a safetensors file behind its header."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()[:16]


def left(root: Path) -> dict[str, Any]:
    """Return all that is in ``root``, but for what a refused resume may write."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        if path.name in WRITTEN_ANYWAY or path.suffix == ".lock" or "cache" in path.parts or "locks" in path.parts:
            continue
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
            if path.name == CONFIG:  # A run that is to be longer is so when it is resumed again.
                content = re.sub(rb"(?m)^steps = \d+$", b"", content)
            found[str(path)] = hashlib.sha256(content).hexdigest()[:16]
        else:
            found[str(path)] = "a folder"
    return found


class Campaign:
    """Cases in one folder, by one fork server."""

    def __init__(self, folder: Path, server: ForkServer, states: Sequence[str] = ("interrupted", "finished")):
        self.folder, self.server = folder, server
        self.root, self.log = folder / "case", folder / "log"
        self.right: dict[str, str] = {}
        """Digests of the adapters of undisturbed runs."""
        self.mended: set[str] = set()
        """Files that were mended after a refusal, and the run resumed: once is enough."""
        for state in states:
            template, prepare = folder / state, {"interrupted": self._interrupt, "finished": self._finish}[state]
            if not template.exists():
                shutil.rmtree(self.root, ignore_errors=True)
                prepare(self._begin())
                self.root.rename(template)
            self.fresh(state)
            assert self.resume(state) == 0, self.log.read_text()
            self.right[state] = tensors(self.run.adapter)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def run(self) -> Run:
        return Run(self.data / "runs" / NAME)

    def _begin(self) -> Run:
        """Make a run that has not started, on a base and images of its own."""
        from tests.support.images import noise_image
        from tests.support.tiny_models import write_tiny_sd1

        images = self.root / "images"
        images.mkdir(parents=True)
        for number in range(3):
            noise_image(64, 64 + 32 * (number // 2), seed=number).save(images / f"{number}.png")
            (images / f"{number}.txt").write_text(f"a red house {number}")
        settings = {
            "model.base": str(write_tiny_sd1(self.root / "base")), "data.folder": str(images), "data.trigger": "sks",
            "data.flip": True, "adapter.rank": 2, "adapter.text_encoder": False, "adapter.dropout": 0.2,
            "train.steps": STEPS, "train.device": "cpu", "train.batch_size": 1, "train.learning_rate": 1e-2,
            "checkpoint.every": 1, "sample.every": 2, "sample.prompts": ["a red house"], "sample.steps": 1,
            "sample.width": 64, "sample.height": 64,
            "prior.weight": 0.5, "prior.class_prompt": "a house", "prior.count": 2, "prior.steps": 1,
        }  # fmt: skip
        return Run.create(self.data / "runs", NAME, TrainConfig.parse({}, "test", settings))

    def _interrupt(self, run: Run) -> None:
        code = self.server.start(WORKER, [str(run.folder)], self.log, failpoint="checkpoint.saved:2").wait()
        assert code == KILLED, self.log.read_text()

    def _finish(self, run: Run) -> None:
        assert self.server.start(WORKER, [str(run.folder)], self.log).wait() == 0, self.log.read_text()

    def fresh(self, state: str) -> None:
        """Put the folder back as it was."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.folder / state, self.root, symlinks=True)

    def resume(self, state: str, mended: bool = False) -> int:
        """Resume the run, a finished one to be longer, and return the exit code; a ``mended`` one may be so already."""
        self.log.unlink(missing_ok=True)
        is_longer = mended and self.run.config.train.steps == LONGER
        arguments = [str(self.data), *([str(LONGER)] if state == "finished" and not is_longer else [])]
        return self.server.start(SELF, arguments, self.log, unprivileged=True).wait()

    def cases(self) -> Iterator[Case]:
        """Yield each corruption of one file of each kind."""
        for state in self.right:
            kinds = set()
            for path in sorted((self.folder / state).rglob("*")):
                file = path.relative_to(self.folder / state).as_posix()
                own = [Case(state, file, corruption) for corruption in CORRUPTIONS]
                again = state == "finished" and file.startswith(("base/", "images/"))
                if path.is_file() and own[0].kind not in kinds and not again:
                    kinds.add(own[0].kind)
                    yield from own

    def outcome(self, case: Case) -> dict[str, Any]:
        begun = time.monotonic()
        self.fresh(case.state)
        path = self.root / case.file
        kept = path.read_bytes()
        CORRUPTIONS[case.corruption](path, self._another(case))
        before, reached = left(self.root), newest_step(self.run.states)
        code = self.resume(case.state)
        printed = self.log.read_text()
        sentences = [line for line in printed.splitlines() if line.startswith("error: ")]
        problems = []
        events = self.run.events() if self.run.journal.is_file() and os.access(self.run.journal, os.R_OK) else []
        notices = [event.message for event in events if isinstance(event, Notice)]
        if code == 0:
            if tensors(self.run.adapter) != self.right[case.state]:
                problems.append("other bits")
        else:
            if code in (1, -9) or code > 9 or len(sentences) != 1 or "(a bug" in printed:
                problems.append(f"code {code} with {sentences}")
            after = left(self.root)
            changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
            if newest_step(self.run.states) <= reached:  # It did not get any further before it failed.
                problems += [f"changed by a refused resume: {name}" for name in changed]
            self._mend(path, kept)
            if case.file in self.mended:
                pass
            elif self.resume(case.state, mended=True) != 0:
                problems.append(f"refused when mended: {self.log.read_text()[-500:]}")
            elif tensors(self.run.adapter) != self.right[case.state]:
                problems.append("other bits when mended")
            self.mended.add(case.file)
        problems += [f"left over: {path}" for path in self.root.rglob(f"{TEMPORARY}*")]
        return {
            "case": case.key, "code": code, "told": [line.removeprefix("error: ") for line in sentences],
            "notices": notices[-4:], "problems": problems, "printed": printed[-3000:] if problems else "",
            "seconds": round(time.monotonic() - begun, 2),
        }  # fmt: skip

    def _another(self, case: Case) -> Path:
        """Return another file of the same kind, or of another kind where there is none."""
        path = self.root / case.file
        same = (other for other in sorted(self.root.rglob(f"*{path.suffix}")) if other.is_file() and other != path)
        alike = sorted(same, key=lambda other: -_likeness(other, path))
        return next(iter(alike), self.run.config_file)

    @staticmethod
    def _mend(path: Path, content: bytes) -> None:
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(content)
        path.chmod(0o666)


def _likeness(one: Path, other: Path) -> int:
    """Return how many parts of two paths are the same, a file's own name most of all."""
    same = sum(a == b for a, b in zip(one.parts, other.parts, strict=False))
    return 2 * same + 20 * (VARYING.sub("#", one.name) == VARYING.sub("#", other.name))


@dataclass
class WorkedHere:
    """Stands for a run's process; the work is done in this one."""

    code: int = 0

    def poll(self) -> int:
        return self.code

    wait = poll


def main(arguments: Sequence[str] = ()) -> int:
    """Resume the run as ``sdlora resume`` does, all in this process."""
    data_dir, *longer = sys.argv[1:]
    process = WorkedHere()
    setattr(launch, "spawn_python", lambda *arguments, **options: process)  # noqa: B010 - for this process alone
    try:
        run = find_run(NAME, Path(data_dir))
        training = extend_run(run, int(longer[0])) if longer else resume_run(run)
        output = os.dup(1)
        with open(run.log, "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = ["", str(run.folder)]
        process.code = training_worker.main()
        sys.stdout.flush()
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = training.wait()
        if code:
            raise run_failure(training, code)
    except SdloraError as error:
        print(f"error: {error}")
        return error.exit_code
    return 0


def campaign() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = folder / "outcomes.jsonl"
    done = {json.loads(line)["case"] for line in outcomes.read_text().splitlines()} if outcomes.exists() else set()
    server = ForkServer()
    work = Campaign(folder, server)
    with open(outcomes, "a") as file:
        for case in work.cases():
            if case.key not in done:
                print(json.dumps(work.outcome(case)), file=file, flush=True)
    server.close()


if __name__ == "__main__":
    campaign()
