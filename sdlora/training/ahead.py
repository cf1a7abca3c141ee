"""The next micro-batch, read while the one before it is trained on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sdlora.data.batches import Batch


class Prefetcher:
    """Micro-batches by number, as ``read`` gives them, from a thread that is one ahead.

    Where latents do not fit into memory a read waits for the disk, and would let the device wait too. What is read
    depends on the number alone, so nothing changes by when it is read.
    """

    def __init__(self, read: Callable[[int], Batch]):
        self._read = read
        self._thread = ThreadPoolExecutor(1, "batches")
        self._begun: tuple[int, Future[Batch]] | None = None

    def __call__(self, number: int) -> Batch:
        """Micro-batch ``number``. Raises what reading it raises: what goes wrong with a later one is no matter yet."""
        begun, self._begun = self._begun, None
        future = begun[1] if begun and begun[0] == number else self._thread.submit(self._read, number)
        batch = future.result()
        self._begun = number + 1, self._thread.submit(self._read, number + 1)
        return batch
