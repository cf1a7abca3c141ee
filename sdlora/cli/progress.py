"""Events as lines of a terminal: one line that is overwritten, or one every few seconds in a log."""

import math
import sys
import time
from typing import TextIO

from sdlora.events import (
    CheckpointSaved,
    Event,
    Notice,
    OnProgress,
    Progress,
    RunStarted,
    RunStopped,
    SampleReady,
    StepDone,
    StoppedEarly,
    report_progress,
)
from sdlora.formatting import format_duration
from sdlora.signals import SMOOTHING
from sdlora.time_left import TimeLeft

QUIET_SECONDS = 5.0
"""Seconds between two lines of progress if the output is no terminal."""


class TerminalProgress:
    """Listener that prints a job's events to standard error."""

    def __init__(self, name: str, out: TextIO | None = None):
        self.name = name
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self.stopped = False
        self._may_stop = False
        self._loss: float | None = None
        self._printed = 0.0
        self._pending = False
        self._time_left = TimeLeft()

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._may_stop = event.stop != "never"
                self.say(
                    f"{self.name}: {event.images} pictures, {event.steps} steps on {event.device} ({event.precision})"
                )
                self.say(f"trains {event.modules} modules, {event.parameters:,} parameters ({event.share:.2%} of all)")
            case Notice():
                self.note(event.message)
            case Progress():
                self._progress(event)
            case StepDone():
                if math.isfinite(event.loss):
                    before = event.loss if self._loss is None else self._loss
                    self._loss = SMOOTHING * before + (1 - SMOOTHING) * event.loss
                loss = event.loss if self._loss is None else self._loss
                most = "at most " if self._may_stop else ""
                text = f"step {event.step}/{event.steps}  loss {loss:.4f}  {most}{format_duration(event.left)} left"
                self._overwrite(text, event.step >= event.steps)
            case StoppedEarly():
                self.say(f"{event.sentence}.")
            case SampleReady():
                self.say(f"preview at step {event.step}: {event.path}")
            case CheckpointSaved():
                self.say(f"saved at step {event.step}: {event.path}")
            case RunStopped():
                self.stopped = True
                self.say(f"stopped at step {event.step} and saved; continue with: sdlora resume {self.name}")

    def progress(self, phase: str) -> OnProgress:
        """Return a callback for work that counts what is done: it shows ``phase`` with the time left."""
        return report_progress(self, phase)

    def say(self, text: str) -> None:
        """Print a line."""
        self.close()
        self._print(text)

    def note(self, text: str) -> None:
        """Print a notice."""
        self.say(f"note: {text}")

    def _progress(self, event: Progress) -> None:
        if not event.total:
            self.say(f"{event.phase} ...")
            return
        left = self._time_left.update(event.phase, event.done, event.total)
        words = "" if left is None else f"  {format_duration(left)} left"
        self._overwrite(f"{event.phase} {'/'.join(event.amounts)}{words}", event.done >= event.total)

    def _overwrite(self, text: str, final: bool) -> None:
        if self.live:
            self._print(f"\r\x1b[K{text}", end="")
            self._pending = True
        elif final or time.monotonic() - self._printed > QUIET_SECONDS:
            self._printed = time.monotonic()
            self._print(text)

    def close(self) -> None:
        """End a line that is being overwritten."""
        if self._pending:
            self._print("")
            self._pending = False

    def _print(self, text: str, end: str = "\n") -> None:
        """Print text. A full disk takes none, which ends no training."""
        try:
            print(text, end=end, file=self.out, flush=True)
        except BrokenPipeError:
            raise
        except OSError:
            return
