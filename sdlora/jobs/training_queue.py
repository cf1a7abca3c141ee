"""Queue of runs that wait for a device, started one after the other."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Literal

from sdlora.errors import BusyError, FileError, SdloraError
from sdlora.events import RunFailed
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.writing import write_atomic
from sdlora.jobs.background import BackgroundLoop
from sdlora.jobs.launch import Training, launch
from sdlora.storage.device_lock import device_busy
from sdlora.storage.journal import Journal
from sdlora.storage.run_folder import Run, RunState

LAST_NS = 1 << 62
"""A time in nanoseconds, in the year 2116, beyond which nothing was queued."""
MAX_DEATHS = 2
"""Processes of a waiting run that may die before it starts; a power cut is no fault of the run."""
SECOND = 1_000_000_000
"""Nanoseconds in a second."""
Move = Literal["up", "down", "first"]


class TrainingQueue(BackgroundLoop):
    """Starts runs one after the other, whenever no process has a device.

    A run waits by a file in its folder. So the queue outlives the program that serves it, and two programs may serve it
    at once, as locks decide which process trains. A training that runs goes on after ``close``.
    """

    def __init__(self, data_dir: Path):
        super().__init__(data_dir)
        self._training: Training | None = None
        self._stopping: set[Path] = set()
        self._deaths: Counter[Path] = Counter()
        """Processes of each waiting run that ended before the run's journal said anything."""
        self._unstartable: set[Path] = set()
        """Runs that failed to start, and whose folder cannot even take down that they did."""

    def add(self, run: Run) -> None:
        """Queue ``run``, to start or to resume, behind those that wait. One that waits keeps its position.

        Raises BusyError if it runs already, ConfigError if it has been deleted, FileError if it cannot be trained.
        """
        with self._lock:
            if run.is_locked() or self._starts(run):
                raise BusyError(f"the run {run.name} is running already")
            self._stopping.discard(run.folder)
            self._unstartable.discard(run.folder)
            self._deaths.pop(run.folder, None)
            with self._alone():
                run.require_there()
                run.require_inside()
                if not run.is_queued:
                    last = max(map(_since, self.waiting()), default=0)  # A clock that was set back puts none in front.
                    write_atomic(run.queued_file, str(max(time.time_ns(), last + 1)))
        self.wake()

    def stop(self, run: Run) -> None:
        """Remove ``run`` from the queue, or ask it to finish its step, save, and end."""
        with self._lock, self._alone():
            run.queued_file.unlink(missing_ok=True)  # A process that starts on it sees that, whoever started it.
            if run.is_locked() or self._starts(run):
                self._stopping.add(run.folder)
                run.stop()

    def cancel(self, run: Run) -> None:
        """Remove the waiting ``run`` from the queue; it may be queued again. Raises BusyError if it has started."""
        with self._lock, self._alone():
            self._position(run, self.waiting())
            run.queued_file.unlink(missing_ok=True)

    def move(self, run: Run, where: Move) -> None:
        """Move ``run`` up or down by one, or to the front. Raises BusyError if it has started."""
        with self._lock, self._alone():
            order = self.waiting()
            position = self._position(run, order)
            target = {"first": 0, "up": max(0, position - 1), "down": min(position + 1, len(order) - 1)}[where]
            order.insert(target, order.pop(position))
            if target != position:
                self._put_between(order[target - 1] if target else None, run, *order[target + 1 : target + 2])

    def state(self, run: Run) -> RunState | Literal["queued", "stopping"]:
        """Return the run's state, or what the queue is about to do with it."""
        if run.folder in self._stopping:
            return "stopping"
        if run.is_locked():
            return "stopping" if run.stop_file.exists() else "running"
        if self._starts(run):
            return "running"
        if run.folder in self._unstartable:
            return "failed"
        return "queued" if run.is_queued else run.state

    def current(self, runs: Sequence[Run] | None = None, waiting: Sequence[Run] | None = None) -> Run | None:
        """Return the run to show: one that runs, else the first that waits, else the newest.

        ``runs`` are all runs and ``waiting`` those that wait, if they were just listed.
        """
        runs = Run.all(self.data_dir) if runs is None else runs
        running = next((run for run in runs if run.is_locked() or self._starts(run)), None)
        return running or next(iter(self.waiting() if waiting is None else waiting), None) or next(iter(runs), None)

    def waiting(self) -> list[Run]:
        """Return the runs that wait for a device, in their order."""
        queued = (run for run in Run.all_queued(self.data_dir) if run.folder not in self._unstartable)
        return sorted((run for run in queued if not run.is_locked() and not self._starts(run)), key=_since)

    def tick(self) -> None:
        """Follow the run that was started; start the first that waits if no process has a device."""
        with self._lock:
            if self._training is not None and not self._follow(self._training):
                return
            self._training = None
            self._stopping = {folder for folder in self._stopping if Run(folder).is_locked()}
            for run in self.waiting():
                if device_busy(self.data_dir) or self._is_one_starting():
                    return
                try:
                    self._training = launch(run, queued=True)
                    return
                except Exception as error:  # Of this run: those behind it are started nevertheless.
                    self._give_up(run, str(error))

    def _is_one_starting(self) -> bool:
        """Return whether a process has a waiting run, and not yet its device: another page has just started it."""
        queued = (run for run in Run.all_queued(self.data_dir) if run.folder not in self._unstartable)
        return any(run.is_locked() for run in queued)

    def _follow(self, training: Training) -> bool:
        """Return whether its process has ended.

        A run whose process found the device taken keeps its position, however often. So does one whose process died
        before the journal said that it started, until that has happened ``MAX_DEATHS`` times.
        """
        run, code = training.run, training.process.poll()
        if run.folder in self._stopping and code is None:
            run.stop()  # Again: a request from before the process was there is cleared when it starts.
        if code is None:
            return False
        if code != BusyError.exit_code and run.is_queued and not run.is_locked():  # Another page may have started it.
            self._deaths[run.folder] += 1
            if self._deaths[run.folder] == MAX_DEATHS:
                reason = training.printed_error() or f"its process ended with code {code}"
                self._give_up(run, f"{run.name} could not be started: {reason}")
        return True

    def _give_up(self, run: Run, message: str) -> None:
        """Take ``run`` out of the queue, as one that failed, with ``message`` in its journal if that can be written."""
        self._unstartable.add(run.folder)
        try:
            with closing(Journal(run.journal)) as journal:
                journal(RunFailed(message=message, exit_code=FileError.exit_code))
            run.queued_file.unlink(missing_ok=True)
            self._unstartable.discard(run.folder)
        except (SdloraError, OSError) as error:
            print(f"error: {message}; {error}", file=sys.stderr)

    def _alone(self) -> AbstractContextManager[None]:
        """Be alone with the queue among all pages: whoever deletes or brings back runs is so with this folder too."""
        return exclusive(self.data_dir / "runs")

    def _put_between(self, before: Run | None, run: Run, after: Run | None = None) -> None:
        """Let ``run`` wait between two runs, by one write: a process that is killed changes all of the order or none.

        Runs that are being started have their times too, and keep their positions.
        """
        others = sorted(_since(other) for other in Run.all_queued(self.data_dir) if other.folder != run.folder)
        if after is None:
            start, end = others[-1], others[-1] + 2 * SECOND
        else:
            end = _since(after)
            start = _since(before) if before else max((since for since in others if since < end), default=end - SECOND)
        if end - start < 2:
            self._spread()
            return self._put_between(before, run, after)
        write_atomic(run.queued_file, str((start + end) // 2))

    def _spread(self) -> None:
        """Give all that wait later times, a second apart: the last one first, which changes the order at no moment."""
        order = self.waiting()
        latest = max(map(_since, order))
        for number, run in reversed(list(enumerate(order, 1))):
            write_atomic(run.queued_file, str(latest + number * SECOND))

    def _starts(self, run: Run) -> bool:
        """Return whether this queue has started a process for ``run`` that has not ended."""
        training = self._training
        return training is not None and training.run.folder == run.folder and training.process.poll() is None

    def _position(self, run: Run, order: Sequence[Run]) -> int:
        """Return the position of ``run`` in the queue, from 0. Raises BusyError if it does not wait any more."""
        folders = [other.folder for other in order]
        if run.folder not in folders:
            raise BusyError(f"{run.name} does not wait in the queue any more; look where it stands now")
        return folders.index(run.folder)


def _since(run: Run) -> int:
    """Return when ``run`` was queued, in nanoseconds (a file's time is too coarse); 0 if it has just started."""
    try:
        return min(int(run.queued_file.read_bytes()[:40]), LAST_NS)
    except (OSError, ValueError):
        return 0
