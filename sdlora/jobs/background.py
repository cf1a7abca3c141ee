"""Work that is done every few seconds in the background."""

import sys
import threading
import time
import traceback
from pathlib import Path

LARGEST_SHARE = 0.001
"""Share of a core that a loop may take: where a call has much to look at, the next comes later."""
LONGEST_PAUSE = 5.0
"""Most seconds between two calls, however long one takes."""


class BackgroundLoop:
    """Base class: calls ``tick`` again and again on a thread of its own, from ``watch`` to ``close``.

    Whatever one call raises, the next is made. An error is printed once, until another one or a call that succeeds.
    """

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir
        self._due = threading.Event()
        self._is_over = False
        self._lock = threading.RLock()

    def tick(self) -> None:
        """Do what is due."""
        raise NotImplementedError

    def watch(self, seconds: float = 1.0) -> None:
        """Begin; ``seconds`` pass before each call, or more where calls take long (``LARGEST_SHARE``)."""
        threading.Thread(target=self._run, args=(seconds,), daemon=True).start()

    def wake(self) -> None:
        """Make the next call now: something has come that it is for."""
        self._due.set()

    def close(self) -> None:
        """End after a call that is under way."""
        self._is_over = True
        self._due.set()

    def _run(self, seconds: float) -> None:
        printed, pause = "", seconds
        while True:
            self._due.wait(pause)
            if self._is_over:
                return
            self._due.clear()
            began = time.thread_time()
            try:
                self.tick()
                printed = ""
            except Exception:
                if (trace := traceback.format_exc()) != printed:
                    print(f"{type(self).__name__} failed, and is tried again:\n{trace}", file=sys.stderr)
                    printed = trace
            pause = max(seconds, min((time.thread_time() - began) / LARGEST_SHARE, LONGEST_PAUSE))
