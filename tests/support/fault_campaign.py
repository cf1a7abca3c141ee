"""A fault of the file system at every call of every operation: one sentence, nothing lost, and it can be done again.

``python -m tests.support.fault_campaign FOLDER [NAME ...]`` works in ``FOLDER``, and appends the outcome of each case
to ``FOLDER/outcomes.jsonl``; started anew, it goes on from there. Each operation is first done undisturbed, and its
calls are counted; then one of them fails, or all from that one on.
"""

import hashlib
import json
import random
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.events import Notice, RunFailed
from sdlora.storage.run_folder import Run
from tests.support.fault_operations import OPERATIONS, RUN, build_root
from tests.support.file_faults import ERRORS, Call, FileFault, build_shim
from tests.support.fork_server import ForkServer
from tests.support.run_outcome import run_outcome

TRAIN, RESUME = "train", "resume"
"""The operations that train a run, in the worker's own process: from its beginning, and from a checkpoint."""
TRAININGS = (TRAIN, RESUME)
CHANGING = re.compile(r"\d{8}-\d{6}|(?<=/\.history/)\d+")
"""A time, or the number of a step, in a folder's name."""
SAME_SECOND = re.compile(r"(?<=/trash/)(TIME-[^/]+?)-\d+(?=/)")
"""A number behind what was moved to the trash in the second of a failed attempt, of which a note is left."""
VARYING = re.compile(r"[0-9a-f]{6,}|[0-9]+")
"""Parts of paths that differ although the same line of code makes them."""
IGNORED = re.compile(r"\.lock$|/locks/|^/data/cache/|/run\.log$|^/in/")
"""Files that hold nothing which could be lost."""

Snapshot = dict[str, str]
"""Digests of files, by their paths."""


class Case(NamedTuple):
    """One fault of one operation."""

    operation: str
    error: str
    at: int
    lasting: bool

    @property
    def key(self) -> str:
        return f"{self.operation} {self.error} {self.at} {'from then on' if self.lasting else 'once'}"


def snapshot(root: Path) -> Snapshot:
    """Return the digests of what is in ``root``, times left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = "/" + path.relative_to(root).as_posix()
        if path.is_file() and not IGNORED.search(name):
            found[SAME_SECOND.sub(r"\1", CHANGING.sub("TIME", name))] = _digest(path)
    return found


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "queued":
        content = b"queued" * content.isdigit()
    elif path.name == "item.json":
        content = re.sub(rb'"deleted": [0-9.]+', b"", content)
    elif path.suffix == ".zip" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = repr([(entry.filename, entry.CRC) for entry in archive.infolist()]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


class Campaign:
    """Cases in one folder, by one fork server."""

    def __init__(self, folder: Path, server: ForkServer, base: Path):
        self.server, self.root, self.template = server, folder / "case", folder / "template"
        self.log, self.trace = folder / "log", folder / "trace"
        self._whole: dict[str, tuple[Any, list[Call]]] = {}
        if not self.template.exists():
            shutil.rmtree(self.root, ignore_errors=True)
            build_root(self.root, base).rename(self.template)
        self.before = snapshot(self.template)

    def fresh(self, operation: str) -> None:
        """Put the folder back as ``operation`` finds it."""
        template = self.template
        if operation == RESUME:
            template = self.template.with_name("interrupted")
            if not template.exists():
                self.fresh(TRAIN)
                self.perform(TRAIN, failpoint="checkpoint.saved:2")
                self.root.rename(template)
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(template, self.root, symlinks=True)
        self.log.unlink(missing_ok=True)

    def perform(self, operation: str, error: str = "", at: int = 0, lasting: bool = False, failpoint: str = "") -> int:
        """Do ``operation`` with a fault, and return its exit code; without one its calls are traced."""
        self.trace.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        fault = FileFault(str(self.root), str(self.trace), error, at, lasting)
        if operation in TRAININGS:
            arguments = ("sdlora.jobs.training_worker", [str(self.run.folder)])
        else:
            arguments = ("tests.support.fault_operations", [operation, str(self.root)])
        return self.server.start(*arguments, self.log, file_fault=fault, failpoint=failpoint).wait()

    @property
    def run(self) -> Run:
        return Run(self.root / "data" / "runs" / RUN)

    def result(self, operation: str) -> Any:
        """Return what the operation has made by now."""
        if operation not in TRAININGS:
            return snapshot(self.root)
        return run_outcome(self.run)

    def whole(self, operation: str) -> tuple[Any, list[Call]]:
        """Return what comes of ``operation`` undisturbed, and its calls."""
        if operation not in self._whole:
            self.fresh(operation)
            code = self.perform(operation)
            assert code == 0, self.log.read_text()
            self._whole[operation] = self.result(operation), FileFault("", str(self.trace)).calls()
        return self._whole[operation]

    def cases(self, operation: str, every: bool) -> Iterator[Case]:
        """Yield cases of ``operation``: each call, or one of each kind of place."""
        _, calls = self.whole(operation)
        for error, kinds in ERRORS.items():
            places = set()
            for at, call in enumerate((call for call in calls if call.kind & kinds), 1):
                place = call.name, call.kind, VARYING.sub("#", call.path)
                new = place not in places
                places.add(place)
                if every or new:
                    yield Case(operation, error, at, lasting=False)
                if new and error != "EMFILE":
                    yield Case(operation, error, at, lasting=True)

    def outcome(self, case: Case) -> dict[str, Any]:
        """Let the fault come, look at what is left, and try again without it."""
        begun = time.monotonic()
        wanted, _ = self.whole(case.operation)
        self.fresh(case.operation)
        code = self.perform(*case)
        struck = FileFault("", str(self.trace)).calls() if self.trace.exists() else []
        problems = [*self._sentence(case, code), *self._kept(case, code, wanted)]
        printed = self.log.read_text()[-3000:]
        if code or case.operation in TRAININGS:
            problems += [f"tried again: {line}" for line in self._tried_again(case, wanted)]
        return {
            "case": case.key, "call": list(struck[0]) if struck else None, "code": code,
            "told": re.findall(r"(?:error|remark): (.*)", printed)[:2] or self._journal_end(case),
            "problems": problems, "printed": printed if problems else "", "seconds": round(time.monotonic() - begun, 2),
        }  # fmt: skip

    def _journal_end(self, case: Case) -> list[str]:
        if case.operation not in TRAININGS or not self.run.journal.exists():
            return []
        return [event.message for event in self.run.events() if isinstance(event, RunFailed | Notice)][:3]

    def _sentence(self, case: Case, code: int) -> Iterator[str]:
        """Yield what is wrong with how the operation ended."""
        printed = self.log.read_text() if self.log.exists() else ""
        sentences = [line for line in printed.splitlines() if line.startswith("error: ")]
        if case.operation in TRAININGS:
            events = self.run.events() if self.run.journal.exists() else []
            failed = [event.message for event in events if isinstance(event, RunFailed)]
            sentences = failed or sentences
        elif "Traceback" in printed:
            yield "a traceback"
        if code == 0:
            if sentences:
                yield f"success, and {sentences}"
        elif code in (1, -9) or code > 9 or len(sentences) != 1 or "(a bug" in sentences[0]:
            yield f"code {code} with {sentences}"

    def _kept(self, case: Case, code: int, wanted: Any) -> Iterator[str]:
        """Yield what is lost, or is not as before and not as it should become; and what is missing after a success."""
        operation = case.operation
        if code == 0 and "remark: " not in self.log.read_text():
            yield from (f"success, and {line}" for line in self._differences(operation, wanted))
        if operation in TRAININGS:
            return
        found = snapshot(self.root)
        for path, digest in found.items():
            if "/.tmp-" in path:
                if not case.lasting and not self._cannot_unlink(case):
                    yield f"left over: {path}"
            elif digest not in (*wanted.values(), *self.before.values()) and not path.endswith("step.json"):
                yield f"neither old nor new: {path}"
        for path, old in self.before.items():
            if path in wanted and path not in found:
                yield f"gone: {path}"
            elif old in wanted.values() and old not in found.values():
                yield f"lost: {path}"

    def _tried_again(self, case: Case, wanted: Any) -> Iterator[str]:
        """Do the operation again without a fault, and yield what is wrong then."""
        operation = case.operation
        code = self.perform(operation)
        told = self.log.read_text()
        if code and not re.search(DONE.get(operation, "$."), told):
            yield f"code {code}: {told[-800:]}"
        if operation in TRAININGS:
            yield from self._differences(operation, wanted)
        else:
            found = snapshot(self.root)
            for path, digest in wanted.items():
                if not path.endswith("step.json") and digest not in found.values():
                    yield f"missing: {path}"
            for path, digest in found.items():
                known = (*wanted.values(), *self.before.values())
                if "/.tmp-" not in path and not path.endswith("step.json") and digest not in known:
                    yield f"odd: {path}"
            more = sum("/.tmp-" not in path for path in found) - len(wanted)
            if more < 0 or (more and not case.lasting):
                yield f"{more} files more: {sorted(found.keys() - wanted.keys())}"

    def _cannot_unlink(self, case: Case) -> bool:
        struck = FileFault("", str(self.trace)).calls() if self.trace.exists() else []
        clearing = ("unlink", "unlinkat", "rmdir", "opendir", "open")
        return bool(struck) and struck[0].name in clearing and "/.tmp-" in struck[0].path

    def _differences(self, operation: str, wanted: Any) -> Iterator[str]:
        found = self.result(operation)
        if operation in TRAININGS:
            no_preview = any("no preview" in event.message for event in self.run.events() if isinstance(event, Notice))
            for name in wanted:
                if wanted[name] != found[name] and not (no_preview and name in ("previews", "told")):
                    yield f"{name}: {found[name]} for {wanted[name]}"
            return
        for path in sorted(wanted.keys() | found.keys()):
            rest = path.endswith("step.json") or (path.endswith("item.json") and path not in wanted)  # Listed no more.
            if wanted.get(path) != found.get(path) and "/.tmp-" not in path and not rest:
                yield f"{path}: {found.get(path)} for {wanted.get(path)}"


DONE = {
    "make_adapter": "No such file", "delete_adapter": "no such adapter", "delete_run": "no such run",
    "delete_project": "has nothing in it", "delete_image": "is not there any more", "restore": "StopIteration",
    "export": "exists already", "export_folder": "exists already", "queue_cancel": "does not wait",
}  # fmt: skip
"""Words by which an operation that is done already is refused."""


def main() -> None:
    from tests.support.tiny_models import write_tiny_sd1

    folder, chosen = Path(sys.argv[1]).resolve(), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    if not base.exists():
        write_tiny_sd1(base)
    outcomes = folder / "outcomes.jsonl"
    done = {json.loads(line)["case"] for line in outcomes.read_text().splitlines()} if outcomes.exists() else set()
    server = ForkServer(build_shim(folder))
    assert server.has_file_faults, "there is no C compiler here"
    campaign = Campaign(folder, server, base)
    with open(outcomes, "a") as file:
        for operation in chosen or [*OPERATIONS, *TRAININGS]:
            cases = [*campaign.cases(operation, every=operation not in TRAININGS)]
            for case in random.Random(0).sample(cases, len(cases)):  # So that half of them tell of all.
                if case.key not in done:
                    print(json.dumps(campaign.outcome(case)), file=file, flush=True)
    server.close()


if __name__ == "__main__":
    main()
