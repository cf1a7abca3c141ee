"""Operations that change a data folder, killed at any of the calls by which they do it.

``main`` takes DATA_DIR OPERATION N: the process is killed, as by ``kill -9``, right before the operation's N-th call of
the system that changes something. If there are fewer, as before call 0, their number is the exit code. With ``settle``
for N it does what is done at the next start of a page, frees what is left over, and does the operation again unless all
is as in ``DATA_DIR.done``; it writes what was there after each to ``DATA_DIR.found``. ``prepare`` makes the folder.
"""

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from sdlora.api.grids import AxisSpec, begin_grid, keep_best, list_grids, read_grid
from sdlora.api.storage import free_space
from sdlora.api.training import Run, TrainingQueue
from sdlora.captioning.caption_folder import caption_folder
from sdlora.captioning.settings import CaptionSettings
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.filesystem.writing import TEMPORARY
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.storage import gallery
from sdlora.storage.library import Library
from tests.support.captioners import KnownCaptioner
from tests.support.folder_siege import ACTS, write_token_image
from tests.support.tiny_models import write_tiny_adapter

OLD = 2 * 86_400
GENERATION = GenerationRequest(prompt="x", seed=1)


def prepare(data_dir: Path) -> None:
    """Make one of everything in a new data folder, and one of everything in its trash."""
    library, project = Library(data_dir), Project(data_dir, "pictures")
    for name in ("gone", "mine", "a", "b", "c"):
        run = Run.create(data_dir / "runs", name, _config(data_dir))
        write_tiny_adapter(run.adapter, note=name)
        write_tiny_adapter(run.checkpoint(2), note=name)
        run.adapter.with_suffix(".json").write_text("{}")
        if len(name) == 1:
            TrainingQueue(data_dir).add(run)
    for name in ("lost", "style"):
        library.move_in(write_tiny_adapter(data_dir.parent / f"{name}.safetensors", note=name), name, "pocket")
        (library.folder / f"{name}.png").write_bytes(b"a cover")
    project.set_info(ProjectInfo("style", "sks"))
    for name in ("kept", "removed"):
        project.add(_picture(data_dir, name))
    Project(data_dir, "old").add(_picture(data_dir, "old"))
    style = AdapterChoice("style", str(library.file("style")))
    grid = begin_grid(data_dir, GenerationRequest(adapters=(style,)), [AxisSpec("prompt", "x")], "style").grid
    write_token_image(Path(grid) / read_grid(Path(grid)).cells[0].file, "best")
    for name in ("1", "2"):
        write_token_image(gallery.images_folder(data_dir) / f"{name}.png", name)
    project.remove(project.images()[1])
    library.delete_run("gone")
    library.delete_adapter("lost")
    library.delete_project("old")
    gallery.trash_image(data_dir, "2.png")


def _config(data_dir: Path) -> TrainConfig:
    return TrainConfig.load("pocket-style", {"data.folder": str(data_dir)})


def _picture(data_dir: Path, name: str) -> list[Path]:
    caption = data_dir.parent / f"{name}.txt"
    caption.write_text(f"about {name}")
    gallery.images_folder(data_dir).mkdir(parents=True, exist_ok=True)
    return [write_token_image(caption.with_suffix(".png"), name), caption]


def _adapter(data_dir: Path) -> Path:
    return write_tiny_adapter(data_dir.parent / "new.safetensors", note="new")


def _restore(data_dir: Path, name: str) -> None:
    library = Library(data_dir)
    for item in library.trash.items():
        if item.name == name:
            library.undo(item.folder.name)


def _keep_best(data_dir: Path) -> None:
    (grid,) = (folder for folder in list_grids(data_dir) if read_grid(folder).subject == "style")
    keep_best(data_dir, grid, read_grid(grid).cells[0].file, "best")


def _remove(data_dir: Path) -> None:
    Project(data_dir, "pictures").remove(Project(data_dir, "pictures").folder / "001.png")


def _caption(data_dir: Path) -> None:
    caption_folder(Project(data_dir, "pictures").folder, CaptionSettings(mode="replace"), KnownCaptioner)


def _move(data_dir: Path) -> None:
    TrainingQueue(data_dir).move(Run(data_dir / "runs" / "c"), "first")


OPERATIONS: dict[str, Callable[[Path], Any]] = {
    "begin a run": lambda data_dir: Run.create(data_dir / "runs", "new", _config(data_dir)),
    "begin a grid": lambda data_dir: begin_grid(data_dir, GENERATION, [AxisSpec("cfg", "1, 2")]),
    "move a run": _move,
    "import an adapter": lambda data_dir: Library(data_dir).copy_in(_adapter(data_dir), "pocket", AdapterCheck()),
    "make an adapter": lambda data_dir: Library(data_dir).move_in(_adapter(data_dir), "new", "pocket"),
    "keep the best": _keep_best,
    "upload": lambda data_dir: Project(data_dir, "pictures").add(_picture(data_dir, "new")),
    "remove": _remove,
    "caption": _caption,
    "undo": lambda data_dir: Project(data_dir, "pictures").undo(),
    "delete a run": lambda data_dir: Library(data_dir).delete_run("mine"),
    "delete an adapter": lambda data_dir: Library(data_dir).delete_adapter("style"),
    "delete a run's adapter": lambda data_dir: Library(data_dir).delete_adapter("mine"),
    "delete a project": lambda data_dir: Library(data_dir).delete_project("pictures"),
    "delete an image": lambda data_dir: gallery.trash_image(data_dir, "1.png"),
    "restore a run": partial(_restore, name="gone"),
    "restore an adapter": partial(_restore, name="lost"),
    "restore a project": partial(_restore, name="old"),
    "restore an image": partial(_restore, name="2"),
}


CAN_BE_HALF = ("remove", "undo", "caption")
"""Operations on several files of a project that can be done by half, and then to the end."""


def snapshot(data_dir: Path) -> dict[str, str]:
    """Return what is in a data folder: folders, and files by their content, but for times, locks and caches."""
    found = {}
    for path in data_dir.rglob("*"):
        parts = path.relative_to(data_dir).parts
        swept = parts[0] == "runs" and len(parts) > 2 and path.name.startswith(TEMPORARY)  # When the run starts.
        if path.name.endswith(".lock") or parts[0] == "cache" or ".history" in parts or swept:
            continue
        name = re.sub(r"\d{8}-\d{6}", "TIME", path.relative_to(data_dir).as_posix())
        content = b"" if path.is_dir() else re.sub(rb'"deleted": [\d.]+', b"", path.read_bytes())
        found[name] = "folder" if path.is_dir() else hashlib.sha256(content).hexdigest()
    return found


def settle(data_dir: Path, operation: str, done: dict[str, str]) -> list[dict[str, str]]:
    """Do what the next start does, then the operation unless it is ``done``; return what was there after each."""
    Library(data_dir).trash.forget_old()
    aged = time.time() - OLD
    for path in data_dir.rglob("*"):
        os.utime(path, (aged, aged), follow_symlinks=False)
    free_space(data_dir, ["leftovers"])
    found = snapshot(data_dir)
    if found != done:
        OPERATIONS[operation](data_dir)
    return [found, snapshot(data_dir)]


def kill_before_act(number: int) -> Iterator[int]:
    """Kill this process before its ``number``-th call that changes something; the next of what is returned counts."""
    calls = count(1)

    def act_or_die(act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*args, **kwargs)

    for name in (*ACTS, "fsync"):
        setattr(os, name, partial(act_or_die, getattr(os, name)))
    return calls


def main() -> int:
    data_dir, operation, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if number == "prepare":
        prepare(data_dir)
    elif number == "settle":
        done = json.loads(data_dir.with_suffix(".done").read_text())
        data_dir.with_suffix(".found").write_text(json.dumps(settle(data_dir, operation, done)))
    else:
        calls = kill_before_act(int(number))
        OPERATIONS[operation](data_dir)
        return next(calls) - 1
    return 0
