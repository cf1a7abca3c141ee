"""Starting a run's process, and following what it tells."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from sdlora.events import Event
from sdlora.runs.folder import Run, tail

POLL_SECONDS = 0.1


def launch(run: Run, processes: int = 1) -> subprocess.Popen[bytes]:
    """Start training ``run`` in a process (or several, over torchrun) of its own session; output goes to its log."""
    worker = ["-m", "sdlora.runs.worker", str(run.folder)]
    if processes > 1:
        worker = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *worker]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if processes > 1 and run.config.train.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    run.stop_file.unlink(missing_ok=True)
    detached: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x00000200}
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, *worker], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, **detached
        )


def follow(run: Run, process: subprocess.Popen[bytes] | None = None, start: int = 0) -> Iterator[Event]:
    """The run's events from byte ``start`` of its journal, as they come, until its process has ended.

    ``process`` is what ``launch`` gave; without it, the run's lock tells whether someone works on it.
    """
    while True:
        over = process.poll() is not None if process is not None else not run.held()
        for event, end in tail(run.journal, start):
            start = end
            yield event
        if over:
            return
        time.sleep(POLL_SECONDS)
