"""Evaluations in the background, which outlive the page that started them; all visitors see them."""

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdlora.api.evaluation import EvaluationJob
from sdlora.api.file_evaluation import FileEvaluationJob
from sdlora.errors import BusyError, SdloraError
from sdlora.events import Progress
from sdlora.time_left import TimeLeft

if TYPE_CHECKING:
    from sdlora.ui.evaluated import Evaluated

MOST_AT_ONCE = 4
"""Evaluations that run or wait for the device: each is a process."""
State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Evaluating:
    """An evaluation that was started here, and how far it is."""

    job: EvaluationJob | FileEvaluationJob
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
    """The evaluations that were started here, one of each run or adapter file."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, int], Evaluating] = {}
        self._lock = threading.Lock()

    def start(self, evaluated: "Evaluated", make: Callable[[], EvaluationJob | FileEvaluationJob]) -> Evaluating:
        """Start the job that ``make`` returns.

        Raises BusyError while ``evaluated`` has one, or too many others run, ConfigError for what is gone.
        """
        with self._lock:
            open_now = [each for each in self._found.values() if each.state == "running"]
            if (own := self._found.get(_key(evaluated))) in open_now and own is not None:
                raise BusyError(f"{evaluated.name} is being evaluated already; wait for it, or cancel it")
            if len(open_now) >= MOST_AT_ONCE:
                raise BusyError(f"{len(open_now)} evaluations run or wait; try again when one of them is done")
            evaluated.require_there()
            found = self._found[_key(evaluated)] = Evaluating(make())
        threading.Thread(target=found.follow, daemon=True).start()
        return found

    def of(self, evaluated: "Evaluated") -> Evaluating | None:
        """Return the newest evaluation of ``evaluated`` that was started here."""
        return self._found.get(_key(evaluated))

    def close(self) -> None:
        """End those that run."""
        for each in list(self._found.values()):
            if each.state == "running":
                each.stop()


def _key(evaluated: "Evaluated") -> tuple[Path, int]:
    """Return what tells a run or a file from a later one of the same name."""
    try:
        return evaluated.source, evaluated.source.stat().st_ino
    except OSError:
        return evaluated.source, 0
