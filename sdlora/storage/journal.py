"""Events in a file, one a line: a run's journal, appended by one writer and read by any number of viewers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdlora import failpoints
from sdlora.errors import FileError
from sdlora.events import Event
from sdlora.filesystem.writing import file_errors

TAIL_BYTES = 2048
"""Bytes at a journal's end that are read for its last event at first."""
POLL_SECONDS = 0.1
"""Seconds between two reads of a journal that grows."""


def read_events(journal: Path, start: int = 0) -> Iterator[Event]:
    """Yield the events of a journal from byte ``start`` on; incomplete or unknown lines are skipped."""
    for event, _ in tail_events(journal, start):
        yield event


def tail_events(journal: Path, start: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield events from byte ``start`` on, each with its end's position; a line without its end is left for later.

    Raises FileError if the journal is there, and cannot be read.
    """
    if journal.exists() and not journal.is_file():  # A pipe would be waited for.
        return
    with file_errors(journal, "read"), suppress(FileNotFoundError), open(journal, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                yield Event.from_json(line.decode()), start
            except ValueError:
                continue


def last_event(journal: Path) -> Event | None:
    """Return the last event of a journal, read from its end; None if it has none. Raises as ``tail_events`` does."""
    try:
        size = journal.stat().st_size
    except OSError:
        return None
    read = TAIL_BYTES
    while True:
        start = max(0, size - read)
        events = list(read_events(journal, start))  # A line whose beginning is cut off is no event.
        if events or not start:
            return events[-1] if events else None
        read *= 8


def follow_events(journal: Path, is_over: Callable[[], bool], start: int = 0) -> Iterator[Event]:
    """Yield events from byte ``start`` on as they come, until their writer ``is_over`` and all are read."""
    while True:
        over = is_over()
        for event, end in tail_events(journal, start):
            start = end
            yield event
        if over:
            return
        time.sleep(POLL_SECONDS)


class Journal:
    """The one writer of a run's journal. Raises FileError where that cannot be written."""

    def __init__(self, path: Path):
        self._path = path
        if path.is_symlink() or (path.exists() and not path.is_file()):  # It leads elsewhere, or a pipe would block.
            raise FileError(f"{path}: is a link or no file; remove it")
        with self._file_errors():
            self._torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for the life of the run

    def __call__(self, event: Event) -> None:
        line = event.to_json().encode() + b"\n"
        with self._file_errors():
            if self._torn:  # A line cut short by a crash or a full disk must not swallow the next one.
                self._file.write(b"\n")
            self._torn = True
            failpoints.point("journal.half", lambda: self._file.write(line[: len(line) // 2]))
            while line:  # A disk that fills up takes a part, and says so at the next.
                line = line[self._file.write(line) :]
            self._torn = False
        failpoints.point("journal.line")

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(f"{self._path}: cannot be written ({error.strerror}); mend that, then resume") from error

    def close(self) -> None:
        self._file.close()
