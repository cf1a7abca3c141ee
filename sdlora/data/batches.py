"""Micro-batches of a run: which views of which images are trained, with which captions, at every step."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sdlora.data.cache import LatentCache, View
from sdlora.data.captions import augment_caption, preserved_caption
from sdlora.data.cropping import overflow
from sdlora.data.dataset import Example
from sdlora.data.epoch_sampler import EpochSampler, ShuffledCycle
from sdlora.data.images import ImageSize
from sdlora.data.settings import Concept, Data
from sdlora.seeds import derive, uniform

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """One process's share of a micro-batch: instance examples first, then their class examples, if there are any."""

    mean: "torch.Tensor"
    """Latent means (B, C, h, w), float32, scaled as the VAE's encoder returns them."""
    std: "torch.Tensor"
    """Latent standard deviations (B, C, h, w), float32."""
    captions: list[str]
    mask: "torch.Tensor | None"
    """Loss weights (B, 1, h, w), float32 in [0, 1]; None if every part of every image counts in full."""
    positions: list[int]
    """Position of each example in the global micro-batch. Noise depends on it, so the split over processes changes
    nothing."""
    instances: int
    """Number of instance examples, which come first."""
    size_and_crop: "torch.Tensor | None" = None
    """Size and crop of each image (B, 4), int64, as ``View.size_and_crop`` gives them; None for uncropped images."""
    chunks: int = 1
    """Chunks of 75 tokens of the longest caption in the global micro-batch: all are read as that long."""
    from_base: Sequence[int] = ()
    """Numbers of the examples whose target is the base's own prediction."""
    weights: "torch.Tensor | None" = None
    """Factor of each example's loss (B,), float32, that of prior preservation included; None for a run of one concept,
    whose class examples have one weight. Not every instance example has a class example then."""

    def __len__(self) -> int:
        return len(self.captions)


class ScheduledExample(NamedTuple):
    """One example as one micro-batch uses it."""

    view: View
    caption: str
    position: int
    weight: float = 1.0
    from_base: bool = False
    """Whether its target is the base's own prediction."""


class BatchLoader:
    """Micro-batches of a run, by number, for process ``rank`` of ``processes``.

    ``sizes`` gives each example's bucket; ``batch_size`` counts instance examples per process. With ``class_examples``,
    each instance example is paired with one of its concept's class examples, if that has any, centre-cropped to the
    same bucket and never mirrored. ``count_chunks`` gives the number of chunks in which the text encoder reads a
    caption. ``concepts`` are those that the examples' numbers name; without them all are of one, described by ``data``.
    With ``classes_from_base`` the target of class examples is the base's own prediction.
    Everything is a function of ``seed`` and the number, so a resumed run can start anywhere.
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
        count_chunks: Callable[[str], int] = lambda caption: 1,
        concepts: Sequence[Concept] = (),
        classes_from_base: bool = False,
    ) -> None:
        assert len(examples) == len(sizes) and 0 <= rank < processes
        self.concepts = concepts or (Concept.from_section(data),)
        self.seed = seed
        self.count_chunks = count_chunks
        self.classes_from_base = classes_from_base
        self.share = range(rank * batch_size, (rank + 1) * batch_size)
        self.items = [index for index, example in enumerate(examples) for _ in range(example.repeats)]
        self.sampler = EpochSampler(
            [sizes[index] for index in self.items], batch_size * processes, derive(seed, "instances")
        )
        self.examples = examples
        self.class_examples = class_examples
        self._class_cycles = _class_cycles(class_examples, seed)
        self._weighted = len(self.concepts) > 1 or self.concepts[0].weight != 1

    @property
    def per_epoch(self) -> int:
        """Number of micro-batches in an epoch. An example with 10 repeats is seen 10 times in it."""
        return self.sampler.per_epoch

    @property
    def needs_base(self) -> bool:
        """Whether some examples have the base's own prediction as their target."""
        preserves = any(concept.preserve_empty or concept.preserve_untriggered for concept in self.concepts)
        return preserves or (self.classes_from_base and bool(self._class_cycles))

    def notices(self) -> list[str]:
        """Report how many examples an epoch repeats to fill its batches."""
        if not self.sampler.repeated:
            return []
        return [
            f"The buckets do not fill batches of {self.sampler.batch_size}: {self.sampler.repeated} of "
            f"{self.per_epoch * self.sampler.batch_size} examples in an epoch are repeats."
        ]

    def scheduled(self, n: int) -> list[ScheduledExample]:
        """Return the global micro-batch ``n`` in order of position: instance examples, then class examples."""
        batch, size = self.sampler[n], self.sampler.batch_size
        instances = [self._instance(item, batch.bucket, batch.epoch, i) for i, item in enumerate(batch.items)]
        classes = [
            self._class_example(self._concept(item), batch.bucket, n * size + i, size + i)
            for i, item in enumerate(batch.items)
            if self._concept(item) in self._class_cycles
        ]
        return instances + classes

    def _concept(self, item: int) -> int:
        """Return the number of an item's concept."""
        return self.examples[self.items[item]].concepts[0]

    def _class_example(self, concept: int, size: ImageSize, number: int, position: int) -> ScheduledExample:
        """Choose the class example of the run's instance example ``number``."""
        members, cycle = self._class_cycles[concept]
        example, settings = members[cycle[number]], self.concepts[concept]
        weight = settings.weight * (settings.prior_weight or 0.0)
        return ScheduledExample(View(example, size), example.caption, position, weight, self.classes_from_base)

    def _instance(self, item: int, size: ImageSize, epoch: int, position: int) -> ScheduledExample:
        """Choose the item's crop, mirroring and caption in this epoch; a repeat within the epoch gets the same ones."""
        example, parts = self.examples[self.items[item]], (self.seed, "item", epoch, item)
        data = self.concepts[self._concept(item)]
        crop = 0.5
        if data.random_crop and data.variants > 1 and overflow(example.size, size) >= 1:
            # Evenly spaced from end to end: a few crops cover more of the image than random ones.
            crop = int(uniform(*parts, "cut") * data.variants) / (data.variants - 1)
        flip = data.flip and uniform(*parts, "flip") < 0.5
        caption = augment_caption(example.caption, data, *parts)
        preserved = preserved_caption(caption, data, *parts)
        view = View(example, size, crop, flip)
        if preserved is None:
            return ScheduledExample(view, caption, position, data.weight)
        return ScheduledExample(view, preserved, position, data.weight, from_base=True)

    def views(self, first: int, last: int) -> list[View]:
        """List each view once that micro-batches ``first`` to ``last`` - 1 read, on all processes."""
        return list(dict.fromkeys(example.view for n in range(first, last) for example in self.scheduled(n)))

    def captions(self, first: int, last: int) -> list[str]:
        """List each caption once that micro-batches ``first`` to ``last`` - 1 use, on all processes."""
        return list(dict.fromkeys(example.caption for n in range(first, last) for example in self.scheduled(n)))

    def read(self, n: int, cache: LatentCache) -> Batch:
        """Load this process's share of micro-batch ``n`` to the CPU. Raises FileError for latents that are missing."""
        import torch

        scheduled = self.scheduled(n)
        share = [example for example in scheduled if example.position % self.sampler.batch_size in self.share]
        found = [cache.read(example.view) for example in share]
        masks = None
        if any(latents.mask is not None for latents in found):
            full = torch.ones(1, *found[0].mean.shape[-2:])
            masks = torch.stack([full if latents.mask is None else latents.mask for latents in found])
        return Batch(
            mean=torch.stack([latents.mean for latents in found]),
            std=torch.stack([latents.std for latents in found]),
            captions=[example.caption for example in share],
            mask=masks,
            positions=[example.position for example in share],
            instances=len(self.share),
            chunks=max(self.count_chunks(example.caption) for example in scheduled),
            size_and_crop=torch.tensor([example.view.size_and_crop for example in share]),
            from_base=[number for number, example in enumerate(share) if example.from_base],
            weights=torch.tensor([example.weight for example in share]) if self._weighted else None,
        )


def _class_cycles(examples: Sequence[Example], seed: int) -> dict[int, tuple[list[Example], ShuffledCycle]]:
    """Return each concept's class examples and their order; concepts that share them share the order."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.concepts, []).append(example)
    cycles = {}
    for number, (members, own) in enumerate(groups.items()):
        parts = ("classes", number) if number else ("classes",)
        cycle = ShuffledCycle(len(own), derive(seed, *parts))
        cycles.update(dict.fromkeys(members, (own, cycle)))
    return cycles


class Prefetcher:
    """Read micro-batches by number with ``read``, one ahead, in a thread.

    If the latents do not fit into memory, a read waits for the disk, and the device would wait too. The content of a
    batch depends on its number alone, so the time of reading changes nothing.
    """

    def __init__(self, read: Callable[[int], Batch]):
        self._read = read
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, number: int) -> Batch:
        """Return micro-batch ``number``. Raises what reading it raises; an error in a later one is not raised yet."""
        pending, self._next = self._next, None
        future = pending[1] if pending and pending[0] == number else self._thread.submit(self._read, number)
        batch = future.result()
        self._next = number + 1, self._thread.submit(self._read, number + 1)
        return batch
