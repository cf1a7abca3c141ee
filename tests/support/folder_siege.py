"""Operations that change a data folder, from many threads and processes at once.

``python -m tests.support.folder_siege DATA_DIR SEED ROUNDS``: two threads do random operations, with a pause now and
then before the system acts, so that what was looked at is old by then. Each image, adapter and run has a token that is
nowhere else. What a thread was told to be kept is printed at the end, and ``find_tokens`` says what is there.
"""

import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sdlora.api.grids import AxisSpec, begin_grid
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import SdloraError
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.generation.images import save_images
from sdlora.inference.generation_request import GenerationRequest
from sdlora.jobs.training_queue import TrainingQueue
from sdlora.storage import gallery
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from tests.support.tiny_models import write_tiny_adapter

THREADS, PROJECTS = 2, 6
ACTS = ("replace", "rename", "link", "mkdir", "unlink", "rmdir")
"""Calls of the system before which a pause may come."""
PAUSE_SHARE, LONGEST_PAUSE = 0.2, 0.02


def pause_before_acts(seed: int, share: float = PAUSE_SHARE, longest: float = LONGEST_PAUSE) -> None:
    """Let a ``share`` of the system's calls that change something wait, at random, for up to ``longest`` seconds."""
    rng = random.Random(seed)

    def slow(act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if rng.random() < share:
            time.sleep(rng.uniform(0, longest))
        return act(*args, **kwargs)

    for name in ACTS:
        setattr(os, name, partial(slow, getattr(os, name)))


class Visitor:
    """One thread: takes things into the folder, and changes, deletes and brings back whatever is there."""

    def __init__(self, data_dir: Path, name: str):
        self.data_dir, self.name = data_dir, name
        self.random = random.Random(name)
        self.own = data_dir.parent / name
        self.own.mkdir()
        self.library, self.queue = Library(data_dir), TrainingQueue(data_dir)
        self.kept: list[str] = []
        """Tokens of all that this thread was told to be kept."""

    @property
    def project(self) -> Project:
        """One of few projects, which all visitors share."""
        return Project(self.data_dir, f"shared-{self.random.randrange(PROJECTS)}")

    def round(self) -> None:
        """Take one thing in, and then do something to what is there; that may be gone by now."""
        take = self.random.choice((self.add_images, self.import_adapter, self.make_adapter, self.generate, self.begin))
        self.kept += take()
        changes = (
            self.remove_images, self.undo, self.edit_caption, self.recaption, self.describe, self.delete_adapter,
            self.delete_image, self.delete_run, self.wait_in_queue, self.undo, self.undo, self.undo,
        )  # fmt: skip  # Undone more often than done: beyond 100 steps, a project forgets what it removed.
        change = self.random.choice(changes)
        try:
            change()
        except SdloraError as error:
            print(f"{change.__name__}: {error}", file=sys.stderr)

    def records(self) -> list[Any]:
        """Return what the siege prints of this thread, as JSON."""
        return self.kept

    def token(self, kind: str) -> str:
        return f"token-{kind}-{self.name}-{self.random.getrandbits(64):x}"

    def add_images(self) -> list[str]:
        tokens, files = [self.token("project") for _ in range(2)], []
        for number, token in enumerate(tokens):  # All visitors' files have the same names.
            folder = self.own / token
            folder.mkdir()
            files += [write_token_image(folder / f"{number}.png", token), folder / f"{number}.txt"]
            files[-1].write_text(token)
        added = self.project.add(files)
        assert added.images == 2 and not added.remarks, added
        return tokens

    def import_adapter(self) -> list[str]:
        self.library.copy_in(file := self._adapter(), "pocket", AdapterCheck())
        return [file.parent.name]

    def make_adapter(self) -> list[str]:
        self.library.move_in(file := self._adapter(), "style", "pocket")
        return [file.parent.name]

    def _adapter(self) -> Path:
        token = self.token("adapter")
        (self.own / token).mkdir()
        write_tiny_adapter(self.own / token / "style.safetensors", token=token)
        return self.own / token / "style.safetensors"

    def generate(self) -> list[str]:
        tokens = [self.token("image") for _ in range(2)]
        images = [Image.new("RGB", (8, 8)) for _ in tokens]
        for image, token in zip(images, tokens, strict=True):
            image.info["parameters"] = token
        save_images(images, gallery.images_folder(self.data_dir) / "1.png")
        return tokens

    def begin(self) -> list[str]:
        run_token, grid_token = self.token("run"), self.token("grid")
        config = TrainConfig.load("pocket-style", {"data.folder": self.project.folder, "data.trigger": run_token})
        Run.create(self.data_dir / "runs", "mine", config)
        begin_grid(self.data_dir, GenerationRequest(prompt=grid_token), [AxisSpec("cfg", "1, 2")])
        return [run_token, grid_token]

    def remove_images(self) -> None:
        project = self.project
        images = project.images()
        project.remove(*self.random.sample(images, min(2, len(images))))

    def undo(self) -> None:
        self.project.undo()

    def edit_caption(self) -> None:
        project = self.project
        if images := project.images():
            image = self.random.choice(images)
            if token := token_of_image(image):
                project.write_caption(image, f"{token} edited")

    def recaption(self) -> None:
        project = self.project
        project.replace("edited", "revised")
        project.add_trigger()

    def describe(self) -> None:
        self.project.set_info(ProjectInfo("style", self.random.choice(("ohwx", "sks"))))

    def delete_adapter(self) -> None:
        if adapters := self.library.adapters():
            self._maybe_undo(self.library.delete_adapter(self.random.choice(adapters).name).folder.name)

    def delete_image(self) -> None:
        if images := gallery.newest_images(gallery.images_folder(self.data_dir)):
            self._maybe_undo(gallery.trash_image(self.data_dir, self.random.choice(images).name))

    def delete_run(self) -> None:
        if runs := Run.all(self.data_dir):
            self._maybe_undo(self.library.delete_run(self.random.choice(runs).name).folder.name)

    def _maybe_undo(self, item: str) -> None:
        if self.random.random() < 0.7:
            self.library.undo(item)

    def wait_in_queue(self) -> None:
        if runs := Run.all(self.data_dir):
            run = self.random.choice(runs)
            self.queue.add(run)
            self.queue.move(run, self.random.choice(("up", "down", "first")))
            self.queue.cancel(run)


def write_token_image(path: Path, token: str) -> Path:
    """Write a PNG file whose bytes and text hold ``token``."""
    chunks = PngInfo()
    chunks.add_text("parameters", token)
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, pnginfo=chunks)
    return path


def token_of_image(path: Path) -> str:
    """Return the token in an image; empty if it is gone, or none."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("parameters", ""))
    except (OSError, UnidentifiedImageError):
        return ""


def find_tokens(data_dir: Path) -> tuple[Counter[str], list[str]]:
    """Return how often each token is in ``data_dir``, and what is wrong there: another's caption, a torn file."""
    tokens, wrong = Counter[str](), list[str]()
    for path in (path for path in data_dir.rglob("*") if path.is_file()):
        if path.name.startswith(".tmp-"):
            wrong.append(f"{path}: was left over")
        tokens.update(_tokens_in(path))
        if (caption := path.with_suffix(".txt")).is_file() and path.suffix == ".png":
            words = caption.read_text().replace("ohwx", "").replace("sks", "").strip(" ,").split(" ")
            if words[0] != token_of_image(path):
                wrong.append(f"{path}: has the caption {words}, and is {token_of_image(path)}")
        elif path.suffix == ".png" and "projects" in path.parts:
            wrong.append(f"{path}: has lost its caption")
    return tokens, wrong


def _tokens_in(path: Path) -> Iterator[str]:
    if path.name == "config.toml":
        yield TrainConfig.load(path).data.trigger
    elif path.name == "grid.json":
        yield from re.findall(r"token-[\w-]+", path.read_text())[:1]
    elif token := token_of_image(path):
        yield token
    else:
        try:
            yield read_metadata(path)["token"]
        except (SdloraError, KeyError):
            return


def run_visitors(kind: "type[Visitor]") -> None:
    """Let ``THREADS`` visitors of a kind do their rounds, as the command line says; print what each reports."""
    data_dir, seed, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    visitors = [kind(data_dir, f"{seed}-{number}") for number in range(THREADS)]
    pause_before_acts(int(seed))
    failures: list[BaseException] = []

    def visit(visitor: Visitor) -> None:
        try:
            for _ in range(rounds):
                visitor.round()
        except BaseException as error:
            failures.append(error)
            raise

    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=visit, args=(visitor,)) for visitor in visitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([record for visitor in visitors for record in visitor.records()]))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    run_visitors(Visitor)
