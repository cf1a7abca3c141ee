"""Gradio's queue, woken by calls.

Its loops look for calls all the time by themselves, which is most of what a page does on which nothing happens.
"""

import asyncio
from contextlib import suppress
from typing import Any

from gradio import queueing

LONGEST_SECONDS = 2.0
"""Longest pause of a queue without calls; its loops look then whether the page is being closed."""
QUEUE_SECONDS = 0.05
"""Seconds between two looks for new calls while one runs or waits; Gradio's millisecond takes 5 % of a core."""
PROGRESS_SECONDS = 0.25
"""Seconds between two looks for progress to be sent while a call runs; Gradio's hundredth takes another 1 %."""


def wake_by_calls(queue: queueing.Queue) -> None:
    """Let the loops of ``queue`` pause until a call comes, instead of for a moment, while none runs or waits."""
    queue.sleep_when_free, queue.progress_update_sleep_when_free = QUEUE_SECONDS, PROGRESS_SECONDS
    pause, push = _Pause(queue), queue.push

    async def push_and_wake(*arguments: Any, **named: Any) -> Any:
        answer = await push(*arguments, **named)
        pause.wake()
        return answer

    queue.push = push_and_wake  # type: ignore[method-assign]
    queueing.asyncio = pause  # type: ignore[assignment]


class _Pause:
    """The module ``asyncio`` for Gradio's queue, but for ``sleep``."""

    def __init__(self, queue: queueing.Queue):
        self._queue = queue
        self._sleeping: set[asyncio.Future[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    def wake(self) -> None:
        """End all pauses. Call it in the queue's event loop."""
        for future in self._sleeping:
            if not future.done():
                future.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Sleep while calls run or wait; else until one comes."""
        if len(self._queue) or any(self._queue.active_jobs):
            return await asyncio.sleep(seconds)
        future = asyncio.get_running_loop().create_future()
        self._sleeping.add(future)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(future, LONGEST_SECONDS)
        finally:
            self._sleeping.discard(future)
