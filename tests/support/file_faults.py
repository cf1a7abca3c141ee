"""Faults of the file system in forked processes: one call of the system fails, or all from that one on.

``build_shim`` compiles ``file_faults.c``, which a fork server preloads. A process that it starts with a ``FileFault``
has calls that touch files below one folder counted, and failed. Linux with a C compiler only.
"""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

OPEN, CREATE, WRITE, SYNC, NAME, REMOVE, READ, LIST, CHANGE, SET = (1 << bit for bit in range(10))
"""Kinds of calls: open to read, to make, to change; write; flush; name; remove; read; list; set a file's mode."""
ERRORS = {
    "ENOSPC": CREATE | WRITE | SYNC | NAME,
    "EROFS": CREATE | NAME | REMOVE | CHANGE | SET,
    "EIO": OPEN | CREATE | WRITE | SYNC | NAME | REMOVE | READ | LIST | CHANGE | SET,
    "EMFILE": OPEN | CREATE | LIST | CHANGE,
}
"""Errors, and the kinds of calls that end with them."""


class Call(NamedTuple):
    """A call of the system: its name, its kind, and the path below the root that it touched."""

    name: str
    kind: int
    path: str


@dataclass(frozen=True)
class FileFault:
    """Fault below the folder ``root``: call ``at`` (from 1) of those that can end with ``error`` does so.

    ``lasting`` ones all do from then on. Without an error, all calls are written to ``trace``; else the one that was
    the first to fail.
    """

    root: str
    trace: str
    error: str = ""
    at: int = 0
    lasting: bool = False

    def arm(self) -> None:
        """Let the faults come in this process, from now on."""
        kinds = ERRORS[self.error] if self.error else ERRORS["EIO"]
        number = getattr(errno, self.error) if self.error else 0
        shim = ctypes.CDLL(None)
        shim.arm_file_faults.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long] + [ctypes.c_int] * 2 + [
            ctypes.c_char_p
        ]  # fmt: skip
        shim.arm_file_faults(self.root.encode(), kinds, self.at, number, self.lasting, self.trace.encode())

    def values(self) -> dict[str, Any]:
        return asdict(self)

    def calls(self) -> list[Call]:
        """Return the calls in the trace."""
        lines = (line.split("\t") for line in Path(self.trace).read_text().splitlines())
        return [Call(name, int(kind), path) for name, kind, path in lines]


def build_shim(folder: Path) -> Path | None:
    """Compile the shim into ``folder``; None where that cannot be."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        return None
    shim = folder / "file_faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", shim, source, "-ldl"], check=True)
    return shim


def preload(shim: Path | None) -> dict[str, str]:
    """Return the environment of a process in which faults can be armed."""
    return {"LD_PRELOAD": " ".join(filter(None, (str(shim), os.environ.get("LD_PRELOAD", ""))))} if shim else {}
