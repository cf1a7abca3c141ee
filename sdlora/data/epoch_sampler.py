"""Which examples make up micro-batch number n of a run: computed from the seed and n alone, never stored.

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
    """One global micro-batch: its epoch, its bucket, and the items in it, in the order of their global places."""

    epoch: int
    bucket: Bucket
    items: tuple[int, ...]


class EpochSampler(Generic[Bucket]):
    """The order of items (an example as often as it is repeated), in full batches of one bucket each.

    ``buckets`` gives the bucket of every item. In an epoch every item comes at least once. A bucket's last batch is
    filled up from that bucket's beginning, so that batches are always full: some items come twice or, in a bucket with
    fewer items than a batch, more often.
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
        """Global micro-batch ``n``, counted from 0 over all epochs."""
        epoch, position = divmod(n, self.per_epoch)
        return self._epoch(epoch)[position]

    def _ordered(self, epoch: int) -> list[SampledBatch[Bucket]]:
        slots = []
        for number, (bucket, members) in enumerate(self._members.items()):
            turns = [members[i] for i in order(len(members), self.seed, "items", epoch, number)]
            for start in range(0, len(turns), self.batch_size):
                items = tuple(turns[(start + i) % len(turns)] for i in range(self.batch_size))
                slots.append(SampledBatch(epoch, bucket, items))
        return [slots[i] for i in order(len(slots), self.seed, "batches", epoch)]

    @property
    def repeated(self) -> int:
        """Places in an epoch that are filled up with items that had their turn already."""
        return self.per_epoch * self.batch_size - sum(len(members) for members in self._members.values())


class ShuffledCycle:
    """An endless sequence over ``count`` things: each round all of them once, in an order of its own."""

    def __init__(self, count: int, seed: int) -> None:
        assert count > 0
        self.count = count
        self.seed = seed
        self._round = lru_cache(maxsize=2)(self._ordered)

    def __getitem__(self, position: int) -> int:
        number, place = divmod(position, self.count)
        return self._round(number)[place]

    def _ordered(self, number: int) -> list[int]:
        return order(self.count, self.seed, "rotation", number)
