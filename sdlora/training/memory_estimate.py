"""Estimate of a run's device memory, counted without it: its own step on tensors that have sizes and no numbers.

torch's fake tensors go through the very code of a run; every storage that is alive is added up, moment by moment. What
a device's kernels take for themselves, and what its allocator rounds up, is not in it: the result is an estimate.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdlora.data.batches import Batch
from sdlora.data.concepts import load_concepts, preserves_classes
from sdlora.data.images import ImageSize
from sdlora.families.base import Conditioning, Family
from sdlora.families.meta_model import build_meta_family
from sdlora.families.quantized import quantize
from sdlora.optim import Optimizer
from sdlora.training import precompute, prepare
from sdlora.training.profiling import CLASS, count_previews
from sdlora.training.step import training_step
from sdlora.training.train_job import TrainJob

if TYPE_CHECKING:
    from torch import nn

CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run takes of a device, by what it does; nothing of the program beside its tensors."""

    weights: int
    """Bytes of the base while it trains: what waits in main memory is left out."""
    step: int
    """Bytes at the peak of a step: weights, what is kept for the backward pass, gradients, the optimizer's state."""
    encoding: int
    """Bytes at the peak while pictures are encoded."""
    generation: int
    """Bytes at the peak while previews or class images are generated; 0 where none are."""

    @property
    def peak(self) -> int:
        """The most of all that."""
        return max(self.step, self.encoding, self.generation)


class StorageCounter(TorchDispatchMode):
    """Within its ``with`` block: the bytes of all storages that are alive, and the most that they ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def see(self, tensor: torch.Tensor) -> None:
        """Count the tensor's storage for as long as it is there."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += self._known[key]
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self.see(value)
        return out


def largest_size(job: TrainJob) -> ImageSize:
    """The largest size in pixels at which pictures of ``job`` are trained on. Raises DatasetError, ModelError."""
    examples = load_concepts(job.all_concepts).examples
    sizes = prepare.assign_sizes(job, build_meta_family(job.model, torch.float32), examples)[1]
    return max(sizes, key=lambda size: size.width * size.height)


def estimate_memory(job: TrainJob, size: ImageSize, dtype: torch.dtype, on_card: bool = True) -> MemoryEstimate:
    """Estimate ``job`` in the precision ``dtype``, with pictures of ``size`` pixels at most; loads no weights.

    ``on_card``: parts that wait take no memory of the device. Raises ModelError for configs that cannot be read.
    """
    family = build_meta_family(job.model, dtype)
    if job.model.quantize is not None:
        quantize(family.denoiser_module, job.model.quantize, META)
    _, trained = prepare.attach_method(job, family, from_file=False)
    trains_text = any(prepare.is_text(part.path) for part in trained)
    shapes = [tuple(part.parameter.shape) for part in trained]
    varied = any(concept.shuffle_captions or concept.tag_dropout > 0 for concept in job.all_concepts)
    reads = trains_text or varied  # Varied, they are too many to keep.
    texts = () if reads else family.text_encoders
    waits = {"vae", *texts} if job.train.offload and on_card else set()
    parts = {**family.modules}
    with FakeTensorMode(allow_non_fake_inputs=True):
        _embody(family)
        here = {name: part for name, part in parts.items() if name not in waits}
        weights = sum(_bytes(part) for part in here.values())
        step = _peak(here, _step(job, family, size, trains_text, dtype))
        encoding = _peak({"vae": family.vae} if waits else parts, lambda: _encode(family, size, on_card))
        generates = count_previews(job.sample, 1) or preserves_classes(job.all_concepts)
        generation = _peak(parts, lambda: _generate(job, family)) if generates else 0
    return MemoryEstimate(weights, step + optimizer_bytes(job.optimizer, shapes), encoding, generation)


def _embody(family: Family) -> None:
    """Put the family on the CPU, in torch's fake tensors, within whose mode this is called."""
    for part in family.modules.values():
        for module in part.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _bytes(module: "nn.Module") -> int:
    seen = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(module)}
    return sum(seen.values())


def _tensors(module: "nn.Module") -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _peak(parts: "dict[str, nn.Module]", work: Callable[[], object]) -> int:
    """The most bytes that are alive while ``work`` is done, those of ``parts`` among them."""
    counted = StorageCounter()
    with counted:
        for part in parts.values():
            for tensor in _tensors(part):
                counted.see(tensor)
        work()
    return counted.most


def _step(
    job: TrainJob, family: Family, size: ImageSize, trains_text: bool, dtype: torch.dtype
) -> Callable[[], object]:
    """A forward and a backward pass at ``size``, to be made; texts are read in it only where their encoder trains."""
    copies = job.train.batch_size * (2 if preserves_classes(job.all_concepts) else 1)
    side = family.latent_factor
    latents = torch.zeros(copies, family.latent_channels, size.height // side, size.width // side)
    framing = torch.zeros(copies, 4, dtype=torch.int64)
    batch = Batch(latents, latents, _captions(job), None, [*range(copies)], job.train.batch_size, framing)
    with torch.no_grad():
        kept = _meta_conditioning(family, copies)
    process = family.process
    each = job.adapter.input_dropout > 0
    live = precompute.LiveTextEncoder(_MetaCaptions(family), family.encode_text, nullcontext, each)

    def encode(captions: list[str], chunks: int) -> Conditioning:
        return live(captions, chunks) if trains_text else kept

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = training_step(family, process, batch, encode, job.loss, 1.0, 0, 0)
        loss.backward()

    return step


class _MetaCaptions:
    """Captions as ``CaptionReader`` reads them, where there is no tokenizer: any caption is one chunk."""

    def __init__(self, family: Family):
        self.family = family

    def read(
        self, captions: Sequence[str], chunks: int, encode: Callable[[torch.Tensor], Conditioning]
    ) -> Conditioning:
        return encode(_ids(self.family, captions))


def _captions(job: TrainJob) -> list[str]:
    """A batch's: as many different ones as there are."""
    said = [example.caption for example in load_concepts(job.all_concepts).examples][: job.train.batch_size]
    own = [*islice(cycle(said), job.train.batch_size)]
    return own + [CLASS] * (len(own) if preserves_classes(job.all_concepts) else 0)


def _meta_conditioning(family: Family, number: int) -> Conditioning:
    return family.encode_text(_ids(family, range(number)))


def _ids(family: Family, captions: Sequence[Any]) -> torch.Tensor:
    return family.build_input_ids([]).repeat(len(captions), 1)


@torch.no_grad()
def _encode(family: Family, size: ImageSize, on_card: bool) -> None:
    number = precompute.ENCODE_BATCH if on_card and family.native_size <= precompute.MIDDLING else 1
    family.encode_images(torch.zeros(number, 3, size.height, size.width))


@torch.no_grad()
def _generate(job: TrainJob, family: Family) -> None:
    """One sampling step with guidance, and a decoded picture."""
    width, height = job.sample.width or family.native_size, job.sample.height or family.native_size
    latents = torch.zeros(2, family.latent_channels, height // family.latent_factor, width // family.latent_factor)
    family.predict(latents, torch.zeros(2, dtype=torch.int64), _meta_conditioning(family, 2))
    vae: Any = family.vae
    vae.decode(latents[:1].to(vae.dtype))


def optimizer_bytes(settings: Optimizer, shapes: Sequence[tuple[int, ...]]) -> int:
    """Count the bytes that an optimizer keeps of float32 ``shapes``, by a real step over zeros."""
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = settings.build([{"params": parameters, "lr": 0.0}])
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return sum(value.nbytes for value in tree_iter(dict(optimizer.state)) if isinstance(value, torch.Tensor))
