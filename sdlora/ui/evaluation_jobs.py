"""Evaluations of runs in the background, which outlive the page that started them; all visitors see them."""

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sdlora.api.evaluation import EvaluationJob
from sdlora.api.training import Run
from sdlora.errors import BusyError, SdloraError
from sdlora.events import Progress
from sdlora.time_left import TimeLeft

MOST_AT_ONCE = 4
"""Evaluations that run or wait for the device: each is a process."""
State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Evaluating:
    """An evaluation of a run that was started here, and how far it is."""

    job: EvaluationJob
    state: State = "running"
    progress: Progress = field(default_factory=lambda: Progress(phase="starting"))
    left: float | None = None
    """Seconds that the phase still takes at its pace so far; None where there is none."""
    message: str = ""
    """Reason for the failure."""
    _time_left: TimeLeft = field(default_factory=TimeLeft)

    def follow(self) -> None:
        """Run the job to its end."""
        try:
            with closing(iter(self.job)) as events:
                for event in events:
                    if self.state == "stopped":  # Before its process had begun.
                        return
                    if isinstance(event, Progress):
                        self.progress = event
                        self.left = self._time_left.update(event.phase, event.done, event.total)
            self._end("finished")
        except SdloraError as error:
            self._end("failed", str(error))
        finally:
            self._end("failed", "The evaluation ended by itself; the output of the server has the details.")

    def stop(self) -> None:
        """End the job; the images that it has generated stay."""
        self._end("stopped", self.job.STOPPED)
        self.job.stop()

    def _end(self, state: State, message: str = "") -> None:
        if self.state == "running":
            self.state, self.message = state, message


class Evaluations:
    """The evaluations that were started here, one a run."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, int], Evaluating] = {}
        self._lock = threading.Lock()

    def start(self, run: Run, make: Callable[[], EvaluationJob]) -> Evaluating:
        """Start the job that ``make`` returns.

        Raises BusyError while the run has one, or too many others run, ConfigError for a run that is gone.
        """
        with self._lock:
            open_now = [each for each in self._found.values() if each.state == "running"]
            if (own := self._found.get(_key(run))) in open_now and own is not None:
                raise BusyError(f"{run.name} is being evaluated already; wait for it, or cancel it")
            if len(open_now) >= MOST_AT_ONCE:
                raise BusyError(f"{len(open_now)} evaluations run or wait; try again when one of them is done")
            run.require_there()
            found = self._found[_key(run)] = Evaluating(make())
        threading.Thread(target=found.follow, daemon=True).start()
        return found

    def of(self, run: Run) -> Evaluating | None:
        """Return the newest evaluation of ``run`` that was started here."""
        return self._found.get(_key(run))

    def close(self) -> None:
        """End those that run."""
        for each in list(self._found.values()):
            if each.state == "running":
                each.stop()


def _key(run: Run) -> tuple[Path, int]:
    """Return what tells a run from a later one of the same name."""
    try:
        return run.folder, run.folder.stat().st_ino
    except OSError:
        return run.folder, 0
