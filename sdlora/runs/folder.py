"""A run is a folder: its config, its journal, its log, its pictures, its checkpoints, its adapter.

Everything that anyone wants to know of a run is read from here, so viewers come and go as they like.
"""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout

from sdlora import faults
from sdlora.checkpoint import newest_step
from sdlora.errors import BusyError, ConfigError, FileError
from sdlora.events import Event, RunFailed, RunFinished, RunStopped
from sdlora.files import TEMPORARY, existing_path, fsync_folder, path_inside, safe_name, unused_path, why_foreign
from sdlora.training.output import CONFIG, RunPaths

if TYPE_CHECKING:
    import torch

    from sdlora.config import TrainConfig

RunState = Literal["new", "running", "finished", "stopped", "failed", "interrupted"]
ENDS: dict[type[Event], RunState] = {RunFinished: "finished", RunStopped: "stopped", RunFailed: "failed"}


FOREVER = -1
"""To ``hold``: wait as long as it takes."""


class Run(RunPaths):
    """One run's folder, and what can be read from it."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.stop_file = self.folder / "stop"
        self.lock_file = self.folder / "run.lock"
        self.queued_file = self.folder / "queued"
        """There while the run waits for a device."""

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def create(cls, runs: Path, name: str, config: "TrainConfig") -> "Run":
        """Make a new folder ``runs/NAME`` (or ``NAME-2``, ... : never an old one) and write the config.

        Raises FileError, and leaves nothing, if the folder cannot be written.
        """
        try:
            runs.mkdir(parents=True, exist_ok=True)
            run = cls(_new_folder(path_inside(runs, safe_name(name, fallback="run"))))
            with ExitStack() as undo:
                undo.callback(shutil.rmtree, run.folder, ignore_errors=True)
                faults.point("run.folder")
                for folder in (run.samples, run.checkpoints, run.states):
                    folder.mkdir()
                faults.point("run.folders")
                config.save(run.config_file)  # Last: this makes the folder a run's.
                undo.pop_all()
            fsync_folder(runs)
        except OSError as error:
            raise FileError(f"{runs}: cannot be written ({error.strerror}); choose another --data-dir") from error
        faults.point("run.made")
        return run

    @classmethod
    def find(cls, runs: Path, name: str) -> "Run":
        """The run folder at the path ``name``, or the run called so in ``runs``. Raises as ``named`` does."""
        config = existing_path(Path(name, CONFIG))
        return cls(config.parent) if config is not None and config.is_file() else cls.named(runs, name)

    @classmethod
    def named(cls, runs: Path, name: str) -> "Run":
        """The run called ``name`` in ``runs``, and nowhere else.

        Raises ConfigError if there is none, FileError for a name that leads out of ``runs``.
        """
        config = existing_path(Path(name, CONFIG), runs)
        if config is not None and config.is_file():
            return cls(path_inside(runs, config.parent.resolve()))  # ``runs`` may be relative.
        known = ", ".join(sorted(path.name for path in runs.glob("*/") if (path / CONFIG).is_file()))
        raise ConfigError(f"{name}: there is no such run in {runs}; there are: {known or 'none yet'}")

    @classmethod
    def all(cls, data_dir: Path) -> "list[Run]":
        """All runs in ``data_dir``, the newest first."""
        found = [cls(path.parent) for path in (data_dir / "runs").glob(f"*/{CONFIG}")]
        return sorted(found, key=lambda run: run.config_file.stat().st_mtime, reverse=True)

    @property
    def data_dir(self) -> Path:
        """The folder that holds ``runs`` and ``cache``."""
        return self.folder.parent.parent

    @cached_property
    def config(self) -> "TrainConfig":
        from sdlora.config import TrainConfig

        return TrainConfig.load(self.config_file)

    def forget_config(self) -> None:
        """Read the config anew when it is asked for next: what was read before is no longer so."""
        vars(self).pop("config", None)

    def events(self) -> list[Event]:
        """All events so far. A torn or foreign line is passed over."""
        return list(read_events(self.journal))

    @property
    def state(self) -> RunState:
        """Where the run stands: from its lock, and the journal's last word."""
        if self.held():
            return "running"
        events = self.events()
        last = next((ENDS[type(event)] for event in reversed(events[-1:]) if type(event) in ENDS), None)
        return last or ("interrupted" if events else "new")

    def held(self) -> bool:
        """Whether a process works on this run now."""
        if not self.lock_file.is_file() or self.lock_file.is_symlink():
            return False
        try:
            hold_lock(self.lock_file, self.name).release()
        except BusyError:
            return True
        return False

    def sweep(self) -> None:
        """Remove what a process that was killed had half written. For who holds the run."""
        for folder in (self.folder, self.samples, self.checkpoints, self.states):
            for path in folder.glob(f"{TEMPORARY}*"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def require_own(self) -> None:
        """Raises FileError where anything in the folder is a link out of it, or no file.

        A stranger's run could have its log, its states or its pictures written, or deleted, anywhere.
        """
        for folder, folders, files in os.walk(self.folder):
            for path in (Path(folder, name) for name in (*folders, *files)):
                if reason := why_foreign(path, self.folder):
                    raise FileError(f"{path}: {reason}")

    def stop(self) -> None:
        """Ask the run's process to finish its step, save, and end."""
        self.stop_file.touch()

    def lengthen(self, steps: int) -> None:
        """Let the run end at step ``steps``, beyond those that it has done. Nothing but its config's length changes.

        Raises BusyError while a process works on it, ConfigError if it has no state to go on from, or is that far.
        """
        from sdlora.config import TrainConfig

        if self.held():
            raise BusyError(f"the run {self.name} is running already; stop it first, or let it end")
        done = newest_step(self.states)
        if not done:
            raise ConfigError(
                f"{self.name}: has saved no state to go on from; train anew, with adapter.init if need be"
            )
        if steps <= done:
            raise ConfigError(f"train.steps = {steps}: {self.name} has done {done} steps already; give more than that")
        TrainConfig.load(self.config_file, {"train.steps": steps}).save(self.config_file)
        self.forget_config()


def _new_folder(wanted: Path) -> Path:
    """Make the folder ``wanted``, or ``wanted-2``, ...: never one that another process makes at the same moment."""
    while True:
        folder = unused_path(wanted)
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def read_events(journal: Path, start: int = 0) -> Iterator[Event]:
    """The events of a journal from byte ``start``; a torn or unknown line is passed over."""
    for event, _ in tail_events(journal, start):
        yield event


def tail_events(journal: Path, start: int = 0) -> Iterator[tuple[Event, int]]:
    """Events from byte ``start`` on, each with the place behind it; a line without its end is left for later."""
    if journal.exists() and not journal.is_file():  # A pipe would be waited for.
        return
    try:
        with open(journal, "rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                try:
                    yield Event.from_json(line.decode()), start
                except ValueError:
                    continue
    except FileNotFoundError:
        return


class Journal:
    """The one writer of a run's journal. Raises FileError where that cannot be written."""

    def __init__(self, path: Path):
        self._path = path
        with self._told():
            self._torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for the life of the run

    def __call__(self, event: Event) -> None:
        line = event.to_json().encode() + b"\n"
        with self._told():
            if self._torn:  # A line cut short by a crash or a full disk must not swallow the next one.
                self._file.write(b"\n")
            self._torn = True
            faults.point("journal.half", lambda: self._file.write(line[: len(line) // 2]))
            while line:  # A disk that fills up takes a part, and says so at the next.
                line = line[self._file.write(line) :]
            self._torn = False
        faults.point("journal.line")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(f"{self._path}: cannot be written ({error.strerror}); mend that, then resume") from error

    def close(self) -> None:
        self._file.close()


def device_lock(data_dir: Path, device: "torch.device") -> Path:
    """The lock of a device: one file, however the device is called. ``cuda`` is ``cuda:0``; a card is known by its own
    number, as ``CUDA_VISIBLE_DEVICES`` renames it; anything else by its machine, as several may share ``data_dir``.
    """
    import torch

    is_card = device.type == "cuda"
    name = safe_name(str(torch.cuda.get_device_properties(device.index or 0).uuid)) if is_card else _machine()
    return data_dir / "locks" / f"{device.type}-{name}.lock"


def hold_lock(lock_file: Path, what: str, wait: float = 0) -> FileLock:
    """Take an OS lock that dies with its holder. Raises BusyError if another process has it."""
    if lock_file.is_symlink():  # What it leads to would be emptied.
        raise FileError(f"{lock_file}: is a link; remove it")
    lock = FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
    except Timeout:
        raise BusyError(f"{what} is in use by another process; wait for it, or stop it first") from None
    except OSError as error:
        raise FileError(f"{lock_file}: cannot be written ({error.strerror}); choose another --data-dir") from error
    return lock


def device_busy(data_dir: Path) -> bool:
    """Whether a process holds a device of this machine. Of several machines on one ``data_dir``, others' CPUs are told
    by their names; a card's name is its own number, so another machine's card counts as one of this.
    """
    for lock_file in (data_dir / "locks").glob("*.lock"):
        kind, _, name = lock_file.stem.partition("-")
        if kind != "cuda" and name != _machine():
            continue
        try:
            hold_lock(lock_file, "the device").release()
        except BusyError:
            return True
    return False


def _machine() -> str:
    """This machine's name, as locks are called by it."""
    return safe_name(platform.node(), fallback="here")
