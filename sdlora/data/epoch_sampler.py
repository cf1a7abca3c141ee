"""Choose the examples of micro-batch n of a run: computed from the seed and n alone, never stored.

Front ends may import this: no torch.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from sdlora.seeds import order

Bucket = TypeVar("Bucket", bound=Hashable)


@dataclass(frozen=True)
class SampledBatch(Generic[Bucket]):
    """One global micro-batch: its epoch, its bucket, and its items in the order of their global positions."""

    epoch: int
    bucket: Bucket
    items: tuple[int, ...]


class EpochSampler(Generic[Bucket]):
    """Order of items (an example as often as it is repeated), in full batches of one bucket each.

    ``buckets`` gives the bucket of every item. Every item comes at least once in an epoch. A bucket's last batch is
    filled up from that bucket's beginning, so that batches are always full: some items come twice, or more often in a
    bucket with fewer items than a batch. ``per_epoch`` is the number of micro-batches in an epoch.
    """

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, seed: int) -> None:
        assert buckets and batch_size > 0
        self.batch_size = batch_size
        self.seed = seed
        self._members: dict[Bucket, list[int]] = {}
        for item, bucket in enumerate(buckets):
            self._members.setdefault(bucket, []).append(item)
        self.per_epoch = sum(-(-len(members) // batch_size) for members in self._members.values())
        """Micro-batches in an epoch."""
        self._epoch = lru_cache(maxsize=2)(self._ordered)

    def __getitem__(self, n: int) -> SampledBatch[Bucket]:
        """Return global micro-batch ``n``, counted from 0 over all epochs."""
        epoch, position = divmod(n, self.per_epoch)
        return self._epoch(epoch)[position]

    def _ordered(self, epoch: int) -> list[SampledBatch[Bucket]]:
        batches = []
        for number, (bucket, members) in enumerate(self._members.items()):
            shuffled = [members[i] for i in order(len(members), self.seed, "items", epoch, number)]
            for start in range(0, len(shuffled), self.batch_size):
                items = tuple(shuffled[(start + i) % len(shuffled)] for i in range(self.batch_size))
                batches.append(SampledBatch(epoch, bucket, items))
        return [batches[i] for i in order(len(batches), self.seed, "batches", epoch)]

    @property
    def repeated(self) -> int:
        """Number of positions in an epoch that are filled with items that came before."""
        return self.per_epoch * self.batch_size - sum(len(members) for members in self._members.values())


class ShuffledCycle:
    """Endless sequence over ``count`` things: each round has all of them once, in an order of its own."""

    def __init__(self, count: int, seed: int) -> None:
        assert count > 0
        self.count = count
        self.seed = seed
        self._round = lru_cache(maxsize=2)(self._ordered)

    def __getitem__(self, position: int) -> int:
        number, index = divmod(position, self.count)
        return self._round(number)[index]

    def _ordered(self, number: int) -> list[int]:
        return order(self.count, self.seed, "rotation", number)
