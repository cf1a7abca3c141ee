"""Python processes of our own, in a session of their own: what ends their starter does not end them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For computing on a CPU. Threads that wait for one another by spinning, OpenMP's default, starve each other where
another program runs: beside a second training on two cores, 2 pictures a second were measured against 50."""
NEW_PROCESS_GROUP = 0x00000200
"""Windows' flag for what a session is elsewhere."""


def spawn(
    arguments: Sequence[str],
    *,
    stdin: int,
    stdout: int | IO[bytes],
    stderr: IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start ``python ARGUMENTS``; ``environment`` is added to this program's own."""
    detached: dict[str, Any] = (
        {"start_new_session": True} if os.name == "posix" else {"creationflags": NEW_PROCESS_GROUP}
    )
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**PATIENT, **os.environ, **(environment or {})},
        **detached,
    )
