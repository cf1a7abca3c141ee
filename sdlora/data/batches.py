"""The batches of a run: which views of which pictures, with which captions, at every micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sdlora.data.cache import LatentCache, View
from sdlora.data.captions import augment_caption
from sdlora.data.dataset import Example
from sdlora.data.epoch_sampler import EpochSampler, ShuffledCycle
from sdlora.data.images import ImageSize, overflow
from sdlora.data.settings import Data
from sdlora.seeds import derive, uniform

if TYPE_CHECKING:
    import torch
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


@dataclass(frozen=True)
class Batch:
    """One process's share of a micro-batch: instance examples first, then as many class examples, if there are any."""

    mean: "torch.Tensor"
    """(B, 4, h, w) float32, scaled as the VAE's encoder gives it."""
    std: "torch.Tensor"
    """(B, 4, h, w) float32."""
    captions: list[str]
    mask: "torch.Tensor | None"
    """(B, 1, h, w) float32 weights in [0, 1]; None where every part of every picture counts in full."""
    positions: list[int]
    """Each example's place in the global micro-batch: noise is drawn by it, so the split over processes never shows."""
    instances: int
    """How many of the examples, from the first, are instance examples."""
    size_and_crop: "torch.Tensor | None" = None
    """(B, 4) int64: of each picture what ``pictures.framing`` says; None: they are shown whole."""

    def __len__(self) -> int:
        return len(self.captions)


class ScheduledExample(NamedTuple):
    """One example as one micro-batch shows it."""

    view: View
    caption: str
    position: int


class BatchLoader:
    """The micro-batches of a run, by number, for one of ``processes`` (``rank``).

    ``sizes`` gives each example's bucket; ``batch_size`` counts instance examples a process. With ``class_examples``
    each instance example is paired with a class example cut to the same bucket, from its middle, never mirrored.
    Everything is a function of ``seed`` and the number, so a resumed run starts anywhere.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        sizes: Sequence[ImageSize],
        data: Data,
        batch_size: int,
        seed: int,
        class_examples: Sequence[Example] = (),
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        assert len(examples) == len(sizes) and 0 <= rank < processes
        self.data = data
        self.seed = seed
        self.share = range(rank * batch_size, (rank + 1) * batch_size)
        self.items = [index for index, example in enumerate(examples) for _ in range(example.repeats)]
        self.sampler = EpochSampler(
            [sizes[index] for index in self.items], batch_size * processes, derive(seed, "instances")
        )
        self.examples = examples
        self.class_examples = class_examples
        self._class_cycle = ShuffledCycle(len(class_examples), derive(seed, "classes")) if class_examples else None

    @property
    def per_epoch(self) -> int:
        """Micro-batches in an epoch: an example with 10 repeats is seen 10 times in it."""
        return self.sampler.per_epoch

    def notices(self) -> list[str]:
        """What is worth knowing of the batches themselves."""
        if not self.sampler.repeated:
            return []
        return [
            f"Shapes do not fill batches of {self.sampler.batch_size}: {self.sampler.repeated} of "
            f"{self.per_epoch * self.sampler.batch_size} places in an epoch show a picture again."
        ]

    def scheduled(self, n: int) -> list[ScheduledExample]:
        """The whole global micro-batch ``n``, in the order of the places: instance examples, then class examples."""
        slot = self.sampler[n]
        instances = [self._instance(item, slot.bucket, slot.epoch, place) for place, item in enumerate(slot.items)]
        if self._class_cycle is None:
            return instances
        size = self.sampler.batch_size
        chosen = [self.class_examples[self._class_cycle[n * size + i]] for i in range(size)]
        return instances + [ScheduledExample(View(e, slot.bucket), e.caption, size + i) for i, e in enumerate(chosen)]

    def _instance(self, item: int, size: ImageSize, epoch: int, place: int) -> ScheduledExample:
        """The item's cut, mirroring and caption in this epoch; an item that fills up a batch looks the same again."""
        example, data, parts = self.examples[self.items[item]], self.data, (self.seed, "item", epoch, item)
        position = 0.5
        if data.random_crop and data.variants > 1 and overflow(example.size, size) >= 1:
            # evenly spread ends to end: a few cuts cover more of the picture than random ones
            position = int(uniform(*parts, "cut") * data.variants) / (data.variants - 1)
        flip = data.flip and uniform(*parts, "flip") < 0.5
        caption = augment_caption(example.caption, data.shuffle_captions, data.caption_dropout, *parts)
        return ScheduledExample(View(example, size, position, flip), caption, place)

    def views(self, first: int, last: int) -> list[View]:
        """Every view that micro-batches ``first`` to ``last`` - 1 read, on all processes, each once: what to encode."""
        return list(dict.fromkeys(shown.view for n in range(first, last) for shown in self.scheduled(n)))

    def captions(self, first: int, last: int) -> list[str]:
        """Every caption that micro-batches ``first`` to ``last`` - 1 say, on all processes, each once."""
        return list(dict.fromkeys(shown.caption for n in range(first, last) for shown in self.scheduled(n)))

    def read(self, n: int, cache: LatentCache) -> Batch:
        """This process's share of micro-batch ``n``, on the CPU. Raises FileError for latents that are not there."""
        import torch

        mine = [shown for shown in self.scheduled(n) if shown.position % self.sampler.batch_size in self.share]
        found = [cache.read(shown.view) for shown in mine]
        masks = None
        if any(latents.mask is not None for latents in found):
            full = torch.ones(1, *found[0].mean.shape[-2:])
            masks = torch.stack([full if latents.mask is None else latents.mask for latents in found])
        return Batch(
            mean=torch.stack([latents.mean for latents in found]),
            std=torch.stack([latents.std for latents in found]),
            captions=[shown.caption for shown in mine],
            mask=masks,
            positions=[shown.position for shown in mine],
            instances=len(self.share),
            size_and_crop=torch.tensor([shown.view.size_and_crop for shown in mine]),
        )


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
