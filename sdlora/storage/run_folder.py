"""Folder of a run: its config, journal, log, images, checkpoints and adapter.

Everything that anyone wants to know of a run is read from here, so viewers come and go as they like.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import FileLock

from sdlora import failpoints
from sdlora.checkpoint import newest_step
from sdlora.config import TrainConfig
from sdlora.errors import BusyError, ConfigError, FileError
from sdlora.events import Event, RunFailed, RunFinished, RunStarted, RunStopped, StoppedEarly
from sdlora.filesystem.locks import hold_lock, is_held
from sdlora.filesystem.paths import existing_path, path_inside, path_problem, safe_name
from sdlora.filesystem.reading import find_matching, recency
from sdlora.filesystem.stat_cache import StatCache, file_version
from sdlora.filesystem.writing import TEMPORARY, file_errors, new_folder
from sdlora.storage.journal import last_event, read_events
from sdlora.training.run_paths import CONFIG, RunPaths

LOCK_SECONDS = 2.0
"""Timeout for a run's lock: viewers have it for a moment when they look at it."""
RunState = Literal["new", "running", "finished", "stopped", "failed", "interrupted"]
QUEUED = "queued"
"""The file by which a run waits for a device."""
WANDB = "wandb"
"""Folder of Weights & Biases, in the folder of a run that is logged there."""
ENDS: dict[type[Event], RunState] = {RunFinished: "finished", RunStopped: "stopped", RunFailed: "failed"}


class Run(RunPaths):
    """One run's folder, and what can be read from it."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.stop_file = self.folder / "stop"
        self.lock_file = self.folder / "run.lock"
        self.queued_file = self.folder / QUEUED

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def create(cls, runs: Path, name: str, config: TrainConfig) -> "Run":
        """Make a new folder ``runs/NAME`` (or ``NAME-2``, ... : never an old one) with the config.

        Raises FileError, and leaves nothing, if the folder cannot be written.
        """

        def fill(folder: Path) -> None:
            failpoints.point("run.folder")
            run = cls(folder)
            for inner in (run.samples, run.checkpoints, run.states):
                inner.mkdir()
            failpoints.point("run.folders")
            config.save(run.config_file)

        try:
            runs.mkdir(parents=True, exist_ok=True)
            run = cls(new_folder(runs / safe_name(name, fallback="run"), fill))
        except (OSError, FileError) as error:
            reason = error if isinstance(error, FileError) else f"{runs}: cannot be written ({error.strerror})"
            raise FileError(f"{reason}; choose another --data-dir") from error
        failpoints.point("run.made")
        return run

    @classmethod
    def find(cls, runs: Path, name: str) -> "Run":
        """Return the run at the path ``name``, or of that name in ``runs``. Raises as ``named`` does."""
        config = existing_path(Path(name, CONFIG))
        if config is None or not config.is_file():
            return cls.named(runs, name)
        folder, root = config.parent.resolve(), runs.resolve()
        return cls(runs / folder.relative_to(root) if folder.is_relative_to(root) else folder)

    @classmethod
    def named(cls, runs: Path, name: str) -> "Run":
        """Return the run called ``name`` in ``runs``, and nowhere else.

        Raises ConfigError if there is none, FileError for a name that leads out of ``runs``.
        """
        config = existing_path(Path(name.strip(), CONFIG), runs)
        if config is not None and config.is_file():
            folder = path_inside(runs, config.parent.resolve())  # ``runs`` may be relative.
            return cls(runs / folder.relative_to(runs.resolve()))
        known = ", ".join(sorted(path.name for path in find_matching(runs, "[!.]*/") if (path / CONFIG).is_file()))
        raise ConfigError(f"{name}: there is no such run in {runs}; there are: {known or 'none yet'}")

    @classmethod
    def all(cls, data_dir: Path) -> "list[Run]":
        """Return all runs in ``data_dir``, the newest first."""
        return sorted(_runs_with(data_dir, CONFIG), key=lambda run: recency(_modified_ns(run)), reverse=True)

    @classmethod
    def all_queued(cls, data_dir: Path) -> "list[Run]":
        """Return all runs in ``data_dir`` that wait for a device."""
        return [run for run in _runs_with(data_dir, QUEUED) if run.is_queued]

    @property
    def data_dir(self) -> Path:
        """Folder that holds ``runs`` and ``cache``."""
        return self.folder.parent.parent

    @property
    def config(self) -> TrainConfig:
        """Settings in the run's folder now. Raises ConfigError."""
        return _configs.get(lambda: TrainConfig.load(self.config_file), str(self.config_file))

    def events(self) -> list[Event]:
        """Return all events so far. An incomplete or foreign line is skipped."""
        return list(read_events(self.journal))

    def checkpoint_files(self) -> dict[int, Path]:
        """Return the adapter files that the run saved while training, by step, in ascending order."""
        files = self.regular_files(self.checkpoints, "*.safetensors")
        return {int(path.stem): path for path in files if path.stem.isdecimal()}

    @property
    def state(self) -> RunState:
        """State of the run, from its lock and the journal's last event."""
        if self.is_locked():
            return "running"
        try:
            last = _last_events.get(lambda: last_event(self.journal), str(self.journal))
        except FileError:  # Nobody can say how it ended.
            return "interrupted"
        return "new" if last is None else ENDS.get(type(last), "interrupted")

    @property
    def stopped_early(self) -> bool:
        """True if the process that last trained the run ended it before its last step."""
        ends = [event for event in self.events() if isinstance(event, RunStarted | StoppedEarly)]
        return bool(ends) and isinstance(ends[-1], StoppedEarly)

    def is_locked(self) -> bool:
        """True while a process works on this run."""
        return is_held(self.lock_file)

    def hold(self, wait: float = LOCK_SECONDS) -> FileLock:
        """Take the run's lock: who works on it, or deletes something of it, has it alone.

        Raises BusyError if another process has it after ``wait`` seconds, ConfigError if the run has been deleted.
        """
        self.require_there()
        lock = hold_lock(self.lock_file, f"the run {self.name}", wait, make_folder=False)
        try:
            self.require_there()  # Whoever had the lock before may have moved all away, the lock's file too.
        except ConfigError:
            lock.release()
            raise
        return lock

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the run within this context. Raises what ``hold`` does, and FileError for an OSError within."""
        lock = self.hold()
        try:
            with file_errors(self.folder, "read or written"):
                yield
        finally:
            lock.release()

    def require_there(self) -> None:
        """Raise ConfigError if the run has been deleted."""
        if not self.config_file.is_file():
            raise ConfigError(f"{self.name}: this run is not there any more")

    @property
    def is_queued(self) -> bool:
        """True while the run waits for a device."""
        return self.queued_file.is_file() and self.config_file.is_file()

    def sweep(self) -> None:
        """Remove unfinished files of a killed process. Only for the holder of the run's lock."""
        for folder in (self.folder, self.samples, self.checkpoints, self.states):
            for path in find_matching(folder, f"{TEMPORARY}*"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def require_inside(self) -> None:
        """Raise FileError if anything in the folder is a link out of it, or no file.

        A stranger's run could have its log, its states or its pictures written, or deleted, anywhere. Weights & Biases
        links to logs of its own in the folder that it makes, where nothing else is read or written.
        """
        for folder, folders, files in os.walk(self.folder):
            for path in (Path(folder, name) for name in (*folders, *files)):
                if reason := path_problem(path, self.folder):
                    raise FileError(f"{path}: {reason}")
            if Path(folder) == self.folder:
                folders[:] = [name for name in folders if name != WANDB]

    def stop(self) -> None:
        """Ask the run's process to finish its step, save, and end."""
        with file_errors(self.stop_file):
            self.stop_file.touch()

    def lengthen(self, steps: int) -> None:
        """Let the run end at step ``steps``, beyond those that it has done; only the length in its config changes.

        A run that has stopped early trains to that step: ``train.stop`` becomes never.

        Raises BusyError while a process works on it, ConfigError if it has no state to go on from, or is that far.
        """
        if self.is_locked():
            raise BusyError(f"the run {self.name} is running already; stop it first, or let it end")
        with self.alone():
            done = newest_step(self.states)
            if not done:
                raise ConfigError(
                    f"{self.name}: has saved no state to go on from; train anew, with adapter.init if need be"
                )
            if steps <= done:
                raise ConfigError(
                    f"train.steps = {steps}: {self.name} has done {done} steps already; give more than that"
                )
            never = {"train.stop": "never"} if self.stopped_early else {}
            TrainConfig.load(self.config_file, {"train.steps": steps, **never}).save(self.config_file)

    def never_stop(self) -> None:
        """Let the run end at its last step and not before, as ``train.stop`` = never does. Raises BusyError."""
        with self.alone():
            TrainConfig.load(self.config_file, {"train.stop": "never"}).save(self.config_file)


_configs: StatCache[TrainConfig] = StatCache()
_last_events: StatCache[Event | None] = StatCache()
_folders: StatCache[tuple[Run, frozenset[str]]] = StatCache()
"""Runs, with the names of all that is in their folders."""


def _runs_with(data_dir: Path, name: str) -> Iterator[Run]:
    """Yield the runs of ``data_dir`` in whose folder something has this ``name``."""
    try:
        entries = [entry for entry in os.scandir(data_dir.resolve() / "runs") if entry.is_dir()]
    except OSError:
        return
    for folder in (entry.path for entry in entries if not entry.name.startswith(TEMPORARY)):  # That is being made.
        with suppress(OSError):  # Gone by now, or hidden from this user.
            run, names = _folders.get(partial(_listed, folder), folder)
            if name in names:
                yield run


def _modified_ns(run: Run) -> int:
    """Return when the settings of ``run`` were last changed, in nanoseconds since the epoch; 0 if they are gone."""
    version = file_version(str(run.config_file))
    return version[2] if version else 0


def _listed(folder: str) -> tuple[Run, frozenset[str]]:
    return Run(Path(folder)), frozenset(os.listdir(folder))
