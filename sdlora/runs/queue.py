"""Runs that wait for a device, started one after the other."""

import threading
import time
from pathlib import Path
from typing import Literal

from sdlora.errors import BusyError
from sdlora.runs.folder import Run, RunState, hold
from sdlora.runs.launch import Training, launch


class TrainingQueue:
    """Starts runs one after the other, whenever no process holds a device. A run waits by a file in its folder.

    So the queue outlives the program that keeps it; two programs may keep it at once, as locks decide who trains.
    """

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir
        self._training: Training | None = None
        self._stopping: set[Path] = set()
        self._over = threading.Event()
        self._lock = threading.RLock()

    def watch(self, seconds: float = 1.0) -> None:
        """Look after the queue in the background, until ``close``."""

        def loop() -> None:
            while not self._over.wait(seconds):
                self.tick()

        threading.Thread(target=loop, daemon=True).start()

    def close(self) -> None:
        """Stop looking after the queue. A training that runs goes on."""
        self._over.set()

    def add(self, run: Run) -> None:
        """Let ``run`` start, or go on, as soon as a device is free. Raises BusyError if it runs already."""
        if run.held():
            raise BusyError(f"the run {run.name} is running already")
        with self._lock:
            self._stopping.discard(run.folder)
            _marker(run).write_text(str(time.time_ns()))

    def stop(self, run: Run) -> None:
        """Take ``run`` out of the queue, or ask it to finish its step, save, and end."""
        with self._lock:
            _marker(run).unlink(missing_ok=True)
            if run.held() or self._starts(run):
                self._stopping.add(run.folder)
                run.stop()

    def state(self, run: Run) -> RunState | Literal["queued", "stopping"]:
        """The run's own state, or what the queue has in mind for it."""
        if run.folder in self._stopping:
            return "stopping"
        if run.held():
            return "stopping" if run.stop_file.exists() else "running"
        return "queued" if _marker(run).exists() else run.state

    def current(self) -> Run | None:
        """The run that matters now: one that runs, else the first that waits, else the newest."""
        runs = Run.all(self.data_dir)
        running = next((run for run in runs if run.held()), None)
        return running or next(iter(self.waiting()), None) or next(iter(runs), None)

    def waiting(self) -> list[Run]:
        """The runs that wait for a device, in their order."""
        return sorted((run for run in Run.all(self.data_dir) if _marker(run).exists()), key=_since)

    def tick(self) -> None:
        """Follow the run that was started; start the first that waits where no device is held."""
        with self._lock:
            if self._training is not None and not self._follow(self._training):
                return
            self._training = None
            self._stopping = {folder for folder in self._stopping if Run(folder).held()}
            waiting = self.waiting()
            if waiting and not self._busy():
                self._training = launch(waiting[0])

    def _follow(self, training: Training) -> bool:
        """Whether its process has ended. One that found the device taken keeps its place."""
        run, code = training.run, training.process.poll()
        if run.held():
            _marker(run).unlink(missing_ok=True)
        if run.folder in self._stopping and code is None:
            run.stop()  # Again: a request from before the process was there is cleared when it starts.
        if code is None:
            return False
        if code != BusyError.exit_code:
            _marker(run).unlink(missing_ok=True)
        return True

    def _starts(self, run: Run) -> bool:
        """Whether this queue has started a process for ``run`` that has not ended."""
        mine = self._training is not None and self._training.run.folder == run.folder
        return mine and self._training is not None and self._training.process.poll() is None

    def _busy(self) -> bool:
        for lock_file in (self.data_dir / "locks").glob("*.lock"):
            try:
                hold(lock_file, "the device").release()
            except BusyError:
                return True
        return False


def _marker(run: Run) -> Path:
    """The file that says that ``run`` waits for a device."""
    return run.folder / "queued"


def _since(run: Run) -> int:
    """When ``run`` was queued, in nanoseconds (a file's own time is too coarse); 0 if it has just started."""
    try:
        return int(_marker(run).read_text())
    except (FileNotFoundError, ValueError):
        return 0
