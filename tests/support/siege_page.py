"""A page without a browser, for ``tests.support.kill_siege``: it serves the queue, and its visitors use the folder.

``main`` takes ROOT PAGE ADDRESS SEED VARIANT ..., and runs until it is killed. The processes that it starts are forked
by the server at ADDRESS. Each of its visitors, two threads, writes down in ``ROOT/ledger/NAME.jsonl`` what it begins to
do and how that ends, and goes on from there when the page starts anew. Nothing has the same name twice.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from sdlora.api.adapter_jobs import ToolJob, bake_job, import_adapters, merge_job
from sdlora.api.editing import EditSettings
from sdlora.api.generation import GenerationRequest, InferenceClient, images_folder, newest_images, trash_image
from sdlora.api.training import Run, TrainingQueue, prepare_run
from sdlora.config import TrainConfig
from sdlora.data.projects import Project
from sdlora.errors import FileError, SdloraError
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.inference import inference_client
from sdlora.jobs import job_process, launch
from sdlora.jobs.tool_process import export_job
from sdlora.storage.library import Library
from tests.support.folder_siege import pause_before_acts, token_of_image, write_token_image
from tests.support.fork_server import ForkedProcess, fork
from tests.support.tiny_models import write_tiny_adapter

VISITORS = ("trains", "makes")
"""Operations of each visitor of a page."""
TICK_SECONDS = 0.1
PAUSE_SHARE, LONGEST_PAUSE = 0.5, 0.08
"""Share and length of pauses before a page changes something: so kills strike between two changes."""
COMMON: dict[str, Any] = {
    "data.trigger": "sks", "adapter.rank": 2, "train.batch_size": 2, "train.learning_rate": 1e-2, "train.device": "cpu",
    "train.steps": 12, "checkpoint.every": 3, "sample.every": 0,
}  # fmt: skip
PREVIEWS: dict[str, Any] = {
    "sample.every": 6, "sample.prompts": ["a red house"], "sample.steps": 1, "sample.width": 64, "sample.height": 64,
}  # fmt: skip
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "previews": {**PREVIEWS, "adapter.dropout": 0.2, "data.flip": True},
    "often": {"checkpoint.every": 1, "checkpoint.keep": 1, "train.steps": 8},
}
"""Settings of the trained runs, which are called VISITOR-VARIANT; there is also VISITOR-doomed, which is deleted."""
DOOMED = "doomed"
ENDED_EARLY = ("new", "stopped", "failed", "interrupted")


def siege_config(root: Path, variant: str) -> TrainConfig:
    """Return the settings of the trained run called VISITOR-``variant``."""
    own = {"model.base": str(root / "base"), "data.folder": str(root / "pictures")}
    return TrainConfig.parse({}, variant, COMMON | own | VARIANTS.get(variant, {}))


@dataclass
class Item:
    """A thing that a visitor made, or wanted to."""

    kind: str
    places: set[str]
    """Its possible places, by what its visitor was told: ``here``, in the ``trash``, or ``nowhere``."""


@dataclass
class Ledger:
    """Acts of one visitor, in order: lines of JSON."""

    path: Path
    items: dict[str, Item] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Each with ``do``, ``item``, ``begun``, and unless it was just cut off ``end`` and ``ended``."""

    def __post_init__(self) -> None:
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            self._take(json.loads(line))

    def go_on(self) -> None:
        """Write down that the last step was cut off, if it was."""
        if self.steps and "end" not in self.steps[-1]:
            self._write({"end": "killed", "ended": time.time()})

    @contextmanager
    def step(self, do: str, item: str, kind: str = "") -> Iterator[None]:
        """Write down that the block begins and how it ends. A refusal ends the block, and no more."""
        self._write({"do": do, "item": item, "kind": kind, "begun": time.time()})
        end = {"end": "done", "message": ""}
        try:
            yield
        except SdloraError as error:
            end = {"end": "refused", "message": str(error)}
        except Exception:
            end = {"end": "bug", "message": traceback.format_exc()}
        self._write({**end, "ended": time.time()})

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "do" in line:
            self.steps.append(line)
            self._begin(line)
        else:
            self.steps[-1] |= line
            self._end(self.steps[-1])

    def _begin(self, step: dict[str, Any]) -> None:
        item = self.items.setdefault(step["item"], Item(step["kind"], {"nowhere"}))
        step["before"] = {*item.places}
        item.places |= {{"make": "here", "delete": "trash", "restore": "here"}.get(step["do"], next(iter(item.places)))}

    def _end(self, step: dict[str, Any]) -> None:
        item, place = self.items[step["item"]], {"make": "here", "delete": "trash", "restore": "here"}.get(step["do"])
        if place and step["end"] == "done":
            item.places = {place}
        elif place and step["end"] == "refused" and not (step["do"] == "make" and item.kind in ("image", "file")):
            item.places = step["before"]  # Those may be saved by a process that is killed before it says so.


class Visitor:
    """One thread of a page."""

    def __init__(self, page: "Page", name: str):
        self.page, self.root, self.data_dir = page, page.root, page.data_dir
        self.name = name
        self.ledger = Ledger(page.root / "ledger" / f"{name}.jsonl")
        self.ledger.go_on()
        self.random = random.Random(f"{page.seed}-{name}-{len(self.ledger.steps)}")
        self.own = page.root / "own" / name
        self.own.mkdir(parents=True, exist_ok=True)
        self.project = Project(self.data_dir, name)

    def train(self) -> bool:
        """Do the next thing for the runs; return whether there is nothing left to do."""
        states = {variant: self._advance(f"{self.name}-{variant}", variant) for variant in self.page.variants}
        self._doom(f"{self.name}-{DOOMED}")
        return {*states.values()} == {"finished"}

    def _advance(self, name: str, variant: str) -> str:
        run = Run(self.data_dir / "runs" / name)
        if not run.config_file.is_file():
            with self.ledger.step("make", name, "run"):
                prepare_run(siege_config(self.root, variant), name, self.data_dir)
            return "new"
        state = self.page.queue.state(run)
        if state in ENDED_EARLY:
            with self.ledger.step("add", name):
                self.page.queue.add(run)
        elif state == "queued" and self.random.random() < 0.01:
            with self.ledger.step("move", name):
                self.page.queue.move(run, self.random.choice(("up", "down", "first")))
        return state

    def _doom(self, name: str) -> None:
        run = Run(self.data_dir / "runs" / name)
        if not any(step["item"] == name and step["do"] == "delete" for step in self.ledger.steps):
            if self._advance(name, "plain") in ("new", "queued") and self.random.random() < 0.9:
                return
            with self.ledger.step("stop", name):
                self.page.queue.stop(run)
        if run.config_file.is_file():
            with self.ledger.step("delete", name):
                self.page.library.delete_run(name)

    def make(self) -> None:
        """Make something new, or delete or bring back something that this visitor made."""
        do = (
            self.import_adapter, self.merge, self.export, self.bake, self.generate, self.upload, self.draft,
            self.delete, self.delete, self.delete, self.restore, self.restore,
        )  # fmt: skip
        self.random.choice(do)()

    def _new(self, kind: str) -> str:
        return f"{self.name}-{kind}{len(self.ledger.steps)}"

    def _source(self, name: str) -> Path:
        return write_tiny_adapter(self.own / f"{name}.safetensors", ss_output_name=name)

    def import_adapter(self) -> None:
        source = self._source(name := self._new("import"))
        with self.ledger.step("make", name, "adapter"):
            for result in import_adapters(self.page.library, [source]):
                if not result.name:
                    raise FileError(result.check.refusal)

    def merge(self) -> None:
        sources = [(each, self._source(each), 0.5) for each in ("one", "other")]
        with self.ledger.step("make", name := self._new("merge"), "adapter"):
            merge_job(self.page.library, sources, EditSettings(), name).finish()

    def export(self) -> None:
        source = self._source("exported")
        name = self._new("export")
        format, suffix = self.random.choice((("peft", "zip"), ("diffusers", "safetensors")))
        self._finish(name, "file", export_job(source, self.root / "made" / f"{name}.{suffix}", format))

    def bake(self) -> None:
        name = self._new("bake")
        output = self.data_dir / "models" / f"{name}{self.random.choice(('', '.zip'))}"
        trained = self.root / "undisturbed" / self.page.variants[0] / "runs" / "run" / "adapter.safetensors"
        adapters = [("trained", trained, 1.0)]
        self._finish(name, "file", bake_job(str(self.root / "base"), adapters, output))

    def _finish(self, name: str, kind: str, job: ToolJob) -> None:
        with self.ledger.step("make", name, kind):
            job.finish()

    def generate(self) -> None:
        size = {"width": 64, "height": 64, "steps": 1}
        request = GenerationRequest(prompt=self._new("image"), base=str(self.root / "base"), **size)
        with self.ledger.step("make", request.prompt, "image"):
            status = self.page.inference.submit(request)
            while not status.ended:
                time.sleep(0.02)
                status = self.page.inference.status(status.number) or status
            if status.state != "done":
                raise FileError(status.message)

    def upload(self) -> None:
        name = self._new("upload")
        files = [write_token_image(self.own / f"{name}.png", name), self.own / f"{name}.txt"]
        files[1].write_text(name)
        with self.ledger.step("make", name, "upload"):
            added = self.project.add(files)
            if added.images != 1:
                raise FileError(str(added.remarks))

    def draft(self) -> None:
        with self.ledger.step("make", name := self._new("draft"), "run"):
            prepare_run(siege_config(self.root, "plain"), name, self.data_dir)

    def delete(self) -> None:
        names = [name for name, item in self.ledger.items.items() if "here" in item.places and item.kind != "file"]
        if not names:
            return
        name = self.random.choice(names)
        kind = self.ledger.items[name].kind
        images = [path for path in self._images(kind) if token_of_image(path).partition("\n")[0] == name]
        if kind in ("image", "upload") and not images:
            return
        with self.ledger.step("delete", name):
            match kind:
                case "run":
                    self.page.library.delete_run(name)
                case "adapter":
                    self.page.library.delete_adapter(name)
                case "image":
                    trash_image(self.data_dir, images[0].name)
                case "upload":
                    self.project.remove(images[0])

    def _images(self, kind: str) -> list[Path]:
        return {"image": newest_images(images_folder(self.data_dir)), "upload": self.project.images()}.get(kind, [])

    def restore(self) -> None:
        gone = [name for name, item in self.ledger.items.items() if "trash" in item.places]
        name = self.random.choice([*gone, ""])
        if name and self.ledger.items[name].kind == "upload":
            self._undo()
        for item in self.page.library.trash.items():
            if name and name_in_trash(item.folder) == name:
                with self.ledger.step("restore", name):
                    self.page.library.undo(item.folder.name)
                return

    def _undo(self) -> None:
        """Bring back what was removed last; nobody can choose another one."""
        if newest := self.project.history.newest():
            folders = (*self.project.history.steps_folder.glob("*"), self.project.folder)
            image = next(folder / newest.files[0] for folder in folders if (folder / newest.files[0]).exists())
            with self.ledger.step("restore", token_of_image(image)):
                self.project.undo()


def name_in_trash(folder: Path) -> str:
    """Return the name of what is in an item of the trash; empty if that cannot be said."""
    first = folder / "0"
    if token := token_of_image(first).partition("\n")[0]:
        return token
    with suppress(SdloraError, OSError, KeyError):
        return read_metadata(first)["ss_output_name"]
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((folder / "item.json").read_text())["name"])
    return ""


class Page:
    """One page over the data folder ``ROOT/data``."""

    def __init__(self, root: Path, name: str, seed: str, variants: Sequence[str]):
        self.root, self.data_dir, self.name, self.seed, self.variants = root, root / "data", name, seed, variants
        self.library, self.queue = Library(self.data_dir), TrainingQueue(self.data_dir)
        self.inference = InferenceClient(self.data_dir, "cpu")

    def serve(self) -> None:
        """Do what a page does at its start; then let its visitors do as they like until there is ``ROOT/quiet``."""
        self.library.trash.forget_old()
        self.queue.watch(TICK_SECONDS)
        threads = [threading.Thread(target=self._visit, args=(what,)) for what in VISITORS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while True:
            time.sleep(1)

    def _visit(self, what: str) -> None:
        visitor = Visitor(self, f"{self.name}-{what}")
        try:
            while what == "makes" and not (self.root / "quiet").exists():
                visitor.make()
            while what == "trains" and not (visitor.train() and (self.root / "quiet").exists()):
                time.sleep(0.05)
        except Exception:
            traceback.print_exc()
            raise


class ForkedPopen(ForkedProcess):
    """A forked process in the place of one that a page started, with its ends of pipes."""

    stdin: IO[bytes] | None = None
    stdout: IO[bytes] | None = None


def spawn(
    address: str, arguments: Sequence[str], *, stdin: Any, stdout: Any, stderr: Any,
    besides: Mapping[str, str] | None = None,
) -> ForkedPopen:  # fmt: skip
    """Fork what ``python ARGUMENTS`` would be, in the place of ``python_process.spawn_python``."""
    ours: list[IO[bytes] | None] = []
    theirs, opened = [], []
    for number, stream in enumerate((stdin, stdout, stderr)):
        end: IO[bytes] | None = None
        if stream == subprocess.PIPE:
            read, write = os.pipe()
            handle, mine = (read, write) if number == 0 else (write, read)
            end = os.fdopen(mine, "wb" if number == 0 else "rb")
            opened.append(handle)
        elif stream == subprocess.DEVNULL:
            opened.append(handle := os.open(os.devnull, os.O_RDWR))
        else:
            handle = stream.fileno()
        theirs.append(handle)
        ours.append(end)
    pauses = random.randrange(1, 1 << 30)
    forked = fork(address, arguments[1], arguments[2:], theirs, pauses=pauses, environment=besides)
    for handle in opened:
        os.close(handle)
    forked.__class__ = ForkedPopen
    assert isinstance(forked, ForkedPopen)
    forked.stdin, forked.stdout, _ = ours
    return forked


def fork_all(address: str) -> None:
    """Let all processes of this one be forked by the server at ``address``."""
    spawn_python = partial(spawn, address)
    launch.spawn_python = inference_client.spawn_python = spawn_python  # type: ignore[assignment]

    def popen(command: Sequence[str], env: Mapping[str, str], **streams: Any) -> ForkedPopen:
        return spawn_python(command[1:], **streams)

    job_process.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=popen, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL
    )


def main() -> None:
    root, name, address, seed, *variants = sys.argv[1:]
    fork_all(address)
    pause_before_acts(random.randrange(1 << 30), PAUSE_SHARE, LONGEST_PAUSE)
    Page(Path(root), name, seed, variants).serve()
