"""Loops in the background: their pace, and errors that they outlive."""

import threading
import time
from pathlib import Path

import pytest

from sdlora.jobs.background import LARGEST_SHARE, LONGEST_PAUSE, BackgroundLoop


class Clockwork(BackgroundLoop):
    """A loop whose calls take given seconds of the processor, and which ends when there are no more."""

    def __init__(self, costs, monkeypatch):
        super().__init__(Path())
        self.costs, self.pauses, self.clock = list(costs), [], 0.0
        self._due = self
        monkeypatch.setattr(time, "thread_time", lambda: self.clock)

    def wait(self, pause):
        self.pauses.append(pause)
        self._is_over = not self.costs

    def clear(self):
        pass

    def tick(self):
        cost = self.costs.pop(0)
        self.clock += abs(cost)
        if cost < 0:
            raise OSError("this call fails")


@pytest.mark.parametrize(
    ("cost", "pause"),
    [(0.0, 1.0), (0.001, 1.0), (0.003, 0.003 / LARGEST_SHARE), (-0.003, 0.003 / LARGEST_SHARE), (60.0, LONGEST_PAUSE)],
)
def test_a_loop_waits_longer_after_calls_that_take_long(monkeypatch, capsys, cost, pause):
    loop = Clockwork([cost, 0.0], monkeypatch)
    loop._run(1.0)
    assert loop.pauses == [1.0, pytest.approx(pause), 1.0]
    assert ("this call fails" in capsys.readouterr().err) == (cost < 0)


def test_a_loop_that_is_woken_makes_its_next_call_at_once():
    called = threading.Event()

    class Slow(BackgroundLoop):
        def tick(self):
            called.set()

    loop = Slow(Path())
    loop.watch(3600)
    assert not called.wait(0.1)
    for _ in range(2):
        loop.wake()
        assert called.wait(30)
        called.clear()
    loop.close()
