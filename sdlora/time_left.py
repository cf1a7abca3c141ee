"""Estimates of the time that work still takes, by its pace so far."""

import statistics
import time
from collections.abc import Sequence

LONGEST_WAIT = 3600.0
"""Seconds between two reports of a phase beyond which a clock was set, or the machine slept."""


class TimeLeft:
    """Estimate of a phase's remaining seconds from the progress that it reports.

    What was done when the phase was first seen does not count towards its pace: it may have been done earlier.
    """

    def __init__(self) -> None:
        self._phase: str | None = None
        self._start, self._last, self._first, self._done = 0.0, 0.0, 0, 0
        self.spent = 0.0
        """Seconds since the phase was first seen."""

    def update(self, phase: str, done: int, total: int, now: float | None = None) -> float | None:
        """Return the seconds that ``phase`` still takes after ``done`` of ``total``; None where there is no pace yet.

        Another phase, or one that begins again, starts anew. ``now`` is in seconds of any clock, by default the
        monotonic one; what one that is set back or forward jumps over does not count.
        """
        now = time.monotonic() if now is None else now
        if phase != self._phase or done < self._done:
            self._phase, self._start, self._first = phase, now, done
        elif not 0 <= now - self._last <= LONGEST_WAIT:
            self._start += now - self._last
        self._last = now
        self._done, self.spent = done, now - self._start
        if done <= self._first:
            return None
        return max(0.0, self.spent / (done - self._first) * (total - done))


def steps_left(durations: Sequence[float], steps: int) -> float:
    """Return the seconds that ``steps`` further steps take, by the median of the ``durations`` of earlier ones."""
    return statistics.median(durations) * steps
