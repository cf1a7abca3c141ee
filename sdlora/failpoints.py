"""Places in saving and journalling at which a test ends the process, or lets a write fail as on a full disk.

``$SDLORA_FAULT`` arms one of them: ``state.renamed`` ends the process where that is passed, as ``kill -9`` would;
``state.renamed:3`` does so at its third passing; ``state.renamed:3:full`` raises the error of a full disk instead.
It is read once and can do nothing else. Not armed, a passing costs one comparison.
"""

import errno
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

POINTS = {
    "run.folder": "a new run's folder is there, empty and under a temporary name",
    "run.folders": "its own folders are there, and its config is not",
    "run.made": "a new run is whole, and has its name",
    "file.begun": "a file's temporary neighbour is there, and empty",
    "file.written": "it holds all of the content",
    "file.flushed": "that is on the disk, still under its temporary name",
    "file.renamed": "the file has its name",
    "cache.kept": "latents or text outputs of the cache are written",
    "class.kept": "a made class picture is written",
    "journal.half": "half of an event's line is in the journal",
    "journal.line": "the whole line is",
    "preview.kept": "a preview is written, and not told of",
    "checkpoint.adapter": "a checkpoint's adapter file is written, and its state is not",
    "state.begun": "a state's temporary folder is there, and empty",
    "state.tensors": "it holds the tensors",
    "state.values": "and the plain values",
    "state.manifest": "and the sums",
    "state.flushed": "all that is on the disk, still under its temporary name",
    "state.renamed": "the state has its name",
    "state.dropped": "an older state was removed",
    "checkpoint.saved": "adapter and state are saved, and not told of",
    "end.adapter": "the finished adapter is written, and its card is not",
    "end.card": "its card is written, and the end is not told of",
}
"""Every point, and what has just been done there."""
VARIABLE = "SDLORA_FAULT"


@dataclass
class Failpoint:
    """Fault to raise when point ``name`` is passed for the ``count``-th time."""

    name: str
    count: int = 1
    full: bool = False
    """Raise the error of a full disk, rather than end the process."""

    @classmethod
    def parse(cls, text: str) -> "Failpoint":
        """Raises ValueError for anything but ``NAME``, ``NAME:COUNT`` or ``NAME:COUNT:full``."""
        found = re.fullmatch(r"([a-z.]+)(?::([1-9][0-9]{0,8}))?(:full)?", text)
        if found is None or found[1] not in POINTS:
            raise ValueError(f"{VARIABLE} = {text}: write NAME, NAME:COUNT or NAME:COUNT:full; names are {[*POINTS]}")
        return cls(found[1], int(found[2] or 1), full=bool(found[3]))

    def passing(self, name: str, first: Callable[[], object] | None) -> None:
        """Count, and when it is time do ``first`` and strike."""
        self.count -= name == self.name
        if name != self.name or self.count:
            return
        if first is not None:
            first()
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows' SIGTERM is as final.


_armed = Failpoint.parse(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def arm(text: str) -> None:
    """Arm a failpoint in a running process, as the variable does at its start. Raises ValueError as ``Failpoint.parse``
    does.
    """
    global _armed
    _armed = Failpoint.parse(text)


def point(name: str, first: Callable[[], object] | None = None) -> None:
    """Here is ``name``. ``first`` is done only if it strikes here: what a process may have half done when it ends."""
    if _armed is not None:
        _armed.passing(name, first)
