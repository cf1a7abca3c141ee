"""A function that runs every few seconds in the background."""

import threading
from collections.abc import Callable


class BackgroundLoop:
    """Calls ``tick`` again and again on a thread of its own, from ``start`` to ``stop``."""

    def __init__(self, tick: Callable[[], object]):
        self._tick = tick
        self._over = threading.Event()

    def start(self, seconds: float = 1.0) -> None:
        """Begin; ``seconds`` pass before each call."""
        threading.Thread(target=self._run, args=(seconds,), daemon=True).start()

    def stop(self) -> None:
        """End after a call that is under way."""
        self._over.set()

    def _run(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            self._tick()
