"""Values made from files and folders, kept in memory until a stat tells that a source of theirs has changed.

Anybody may change a data folder at any time, so every look asks the file system; what is saved is reading and parsing.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Version = tuple[int, int, int, int] | None

SETTLED_NS = 2_000_000_000
"""Age in nanoseconds from which a time stamp tells later changes apart: file systems count it in up to two seconds."""
MOST = 1 << 16
"""Values that one cache keeps."""


_look: ContextVar[dict[str, Version] | None] = ContextVar("_look", default=None)
"""Versions that were seen within ``one_look``, by path; None outside of it."""


@contextmanager
def one_look() -> Iterator[None]:
    """Ask the system once for each file within this context: lists that share sources are of one moment.

    What changes meanwhile is seen by the next look: a version is never younger than what was read.
    """
    token = _look.set({})
    try:
        yield
    finally:
        _look.reset(token)


def file_version(path: str) -> Version:
    """Return what differs after any change of a file, or of the names in a folder; None if it cannot be seen.

    The inode differs for a file that replaced it; the time of the last change of status is set by no program.
    """
    seen = _look.get()
    if seen is None:
        return _stat(path)
    if path not in seen:
        seen[path] = _stat(path)
    return seen[path]


def _stat(path: str) -> Version:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # Gone, or a name that cannot be.
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class StatCache(Generic[T]):
    """Values by the first of their sources. Any number of threads may use it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Version, ...], Any, T]] = {}
        self._lock = threading.Lock()

    def get(
        self, make: Callable[[], T], *sources: str, given: Any = None, keep: Callable[[T], bool] = lambda value: True
    ) -> T:
        """Return what ``make`` returns, or returned for the same versions of its ``sources`` and equal ``given``.

        A value that ``keep`` denies is made anew each time: a passing error of the system may be behind it.
        """
        versions = tuple([file_version(source) for source in sources])
        found = self._known.get(sources[0])
        if found is not None and found[0] == versions and found[1] == given:
            return found[2]
        now = time.time_ns()
        value = make()
        with self._lock:
            self._known.pop(sources[0], None)
            if keep(value) and all(map(_settled, versions, [now] * len(versions))):
                self._known[sources[0]] = versions, given, value
                if len(self._known) > MOST:
                    del self._known[next(iter(self._known))]
        return value


def _settled(version: Version, now: int) -> bool:
    """Return whether a change after ``now`` shows: one within the grain of a clock may leave the times as they are."""
    return version is None or min(abs(now - version[2]), abs(now - version[3])) > SETTLED_NS
