"""Python processes of our own, in a session of their own: what ends their starter does not end them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PATIENT = {"GOMP_SPINCOUNT": "10000"}
"""Environment for computing on a CPU: OpenMP's threads that wait for one another spin for a moment only, then sleep.
Spinning for milliseconds, the default, starves other processes; never spinning makes small models slow. Measured on two
cores, a step of `pocket`: 0.110 s with this, 0.136 s by default, 0.304 s with OMP_WAIT_POLICY=PASSIVE."""
NEW_PROCESS_GROUP = 0x00000200
"""Windows' flag for what a session is elsewhere."""
_ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """This program's own, for a Python process of ours.

    ``python -m`` would look for modules in the working folder first, which may be a stranger's with a ``torch.py`` in
    it. Where this package is not installed but lies in the working folder, it is found by its own path.
    """
    found = {**PATIENT, **os.environ, "PYTHONSAFEPATH": "1"}
    if _ROOT.name not in ("site-packages", "dist-packages"):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return found


def spawn_python(
    arguments: Sequence[str],
    *,
    stdin: int,
    stdout: int | IO[bytes],
    stderr: IO[bytes],
    besides: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start ``python ARGUMENTS``; ``besides`` is added to its environment."""
    detached: dict[str, Any] = (
        {"start_new_session": True} if os.name == "posix" else {"creationflags": NEW_PROCESS_GROUP}
    )
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**environment(), **(besides or {})},
        **detached,
    )
