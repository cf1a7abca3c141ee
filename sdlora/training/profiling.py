"""Time and memory of a run, measured by its real step at the largest size of its pictures.

Front ends may import this: no torch, until something is measured.
"""

import dataclasses
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.data.concepts import class_groups, load_concepts, preserves_classes
from sdlora.data.dataset import Example
from sdlora.data.settings import Concept
from sdlora.events import Progress
from sdlora.generation.settings import Prior, Sample
from sdlora.training.component_offload import ComponentOffload
from sdlora.training.settings import Train

if TYPE_CHECKING:
    import torch

    from sdlora.families.base import Family
    from sdlora.training.distributed import Distributed
    from sdlora.training.prepare import TrainState
    from sdlora.training.train_job import TrainJob
    from sdlora.training.trainer import TrainLoop

STEPS = 5
"""Measured at most, after one that warms up."""
ENOUGH_SECONDS = 2.0
"""Seconds of measured steps after which no further one is made."""
FEW_SAMPLING_STEPS = 3
CLASS = "what a class picture shows"
"""Stands for its caption, which is none of the others."""
LOOK_SECONDS = 0.01
"""Between two looks at how much memory a process on the CPU has."""


@dataclass(frozen=True, kw_only=True)
class RunProfile:
    """Seconds and bytes that parts of a run took on ``device``."""

    device: str
    width: int
    height: int
    """The largest size in pixels at which this run's pictures are trained on; the step's."""
    load: float
    """Seconds until the base model is loaded."""
    encode: float
    """Seconds to encode a picture of that size, once."""
    step: float
    """Seconds for one micro-batch: forward, backward, optimizer."""
    sampling: float
    """Seconds for one sampling step of a preview; 0 if the run generates nothing."""
    picture: float
    """Seconds for a preview beside its sampling steps: text, decoding."""
    memory: int
    """Bytes at the peak of all that: of a card, or by how much the process grew on the CPU."""
    resolution: int = 0
    """Side in pixels of the square whose area training pictures get; 0 where what follows is not known."""
    native_size: int = 0
    """Side in pixels of previews that are given no size."""
    latent_factor: int = 8
    """Pixels per latent, along each side."""
    numbers: int = 0
    """Number of trainable parameters."""
    state: int = 0
    """Bytes that the optimizer keeps of them."""
    caption: int = 0
    """Bytes that are kept of a caption; 0 where its encoder trains."""

    def seconds_by_phase(
        self, concepts: Sequence[Concept], prior: Prior, train: Train, sample: Sample, views: int, steps: int
    ) -> dict[str, float]:
        """About how long a run of ``steps`` will take that encodes so many ``views``, by what it does in that time."""
        made = count_class_images(concepts)
        return {
            "loading the base model": self.load,
            "class pictures": made * (self.picture + prior.steps * self.sampling),
            "encoding pictures": (views + made) * self.encode,
            "previews": count_previews(sample, steps) * (self.picture + sample.steps * self.sampling),
            "steps": steps * train.gradient_accumulation * self.step,
        }


def count_views(concepts: Sequence[Concept], examples: Sequence[Example]) -> int:
    """Count the crops and mirrorings in which the images are encoded, at most."""
    each = [(2 if one.flip else 1) * (one.variants if one.random_crop else 1) for one in concepts]
    return sum(each[example.concepts[0]] for example in examples)


def count_class_images(concepts: Sequence[Concept], own: bool = False) -> int:
    """Count the class images that the base makes for a run, at most; with ``own``, also those in folders."""
    groups = (concepts[members[0]] for members in class_groups(concepts))
    return sum(one.class_count or 0 for one in groups if own or one.class_folder is None)


def count_previews(sample: Sample, steps: int) -> int:
    """Count the images that a run of ``steps`` generates: before the first step, at every so many, after the last."""
    return (1 + math.ceil(steps / sample.every)) * len(sample.prompts) if sample.every else 0


def profile_run(job: "TrainJob") -> RunProfile:
    """Do one of everything that ``job`` would do, with its own code, and take its time. Nothing is written but caches.

    Raises the SdloraError that the run would fail with.
    """
    from sdlora.training import prepare
    from sdlora.training.distributed import Distributed
    from sdlora.training.trainer import TrainLoop

    with tempfile.TemporaryDirectory(prefix="sdlora-measure-") as folder:
        job = _shortened(job, Path(folder))
        distributed = Distributed.setup(job.train, job.output)
        with _Peak(distributed.device) as peak:
            begun = time.monotonic()
            family = prepare.load_base(job, distributed)
            family.modules.open()
            load = time.monotonic() - begun
            job.on_event(Progress(phase="measuring steps", done=0, total=1))
            train_state = _prepare(job, distributed, family)
            size = train_state.sizes[0]
            step = _time_steps(TrainLoop(job, distributed, train_state), distributed.device)
            offload = ComponentOffload(family, str(distributed.device), job.train.offload)
            offload.for_image_encoding()
            encode = _time_encoding(family, size.width, size.height)
            sampling, picture = _time_previews(job, family, offload)
        return RunProfile(
            device=str(distributed.device), width=size.width, height=size.height, load=load, encode=encode, step=step,
            sampling=sampling, picture=picture, memory=peak.bytes, resolution=train_state.resolution,
            native_size=family.native_size, latent_factor=family.latent_factor, **_resident_bytes(train_state),
        )  # fmt: skip


def _resident_bytes(train_state: "TrainState") -> dict[str, int]:
    """Return the size of a run's adapter, in numbers, and of its state and a caption's conditioning, in bytes."""
    from sdlora.checkpoint import pack_optimizer
    from sdlora.training.precompute import is_live

    tensors, _ = pack_optimizer(train_state.trained.optimizer)
    caption = 0
    if not is_live(train_state.encode):
        text = train_state.batches.examples[0].caption
        read = train_state.encode([text], train_state.reader.count(text))
        caption = sum(part.nbytes for part in read.tensors().values())
    return {
        "numbers": sum(parameter.numel() for parameter in train_state.trained.parameters),
        "state": sum(tensor.nbytes for tensor in tensors.values()),
        "caption": caption,
    }


def _shortened(job: "TrainJob", folder: Path) -> "TrainJob":
    """Return ``job`` without what only repeats, or leaves traces: a micro-batch a step, nothing told, nothing kept."""
    from sdlora.training.run_paths import RunPaths

    train = job.train.model_copy(update={"gradient_accumulation": 1, "text_encoder_stop": None})
    return dataclasses.replace(job, train=train, output=RunPaths(folder), should_stop=lambda: False)


def _prepare(job: "TrainJob", distributed: "Distributed", family: "Family") -> "TrainState":
    """Prepare the loop for the one image of the largest bucket, which stands for class images too, and a batch's
    captions.
    """
    from sdlora.data.batches import BatchLoader
    from sdlora.data.captions import caption_readings
    from sdlora.generation.prompt_encoding import CaptionReader
    from sdlora.training import precompute, prepare

    concepts = job.all_concepts
    examples = load_concepts(concepts).examples
    resolution, sizes = prepare.assign_sizes(job, family, examples)
    largest, size = max(zip(examples, sizes, strict=True), key=lambda pair: pair[1].width * pair[1].height)
    readings = (caption_readings(example.caption, concepts[example.concepts[0]]) for example in examples)
    longest = sorted((max(each, key=len) for each in readings), key=lambda text: -len(text))[: job.train.batch_size]
    preserved = tuple(index for index, concept in enumerate(concepts) if concept.prior_weight)
    largest = dataclasses.replace(largest, concepts=preserved[:1] or (0,))
    own = [dataclasses.replace(largest, caption=caption) for caption in longest]
    others = [dataclasses.replace(largest, caption=CLASS, concepts=preserved)] if preserved else []
    reader = CaptionReader(family, job.data.caption_weights)
    batches = BatchLoader(
        own,
        [size] * len(own),
        job.data,
        job.train.batch_size,
        job.train.seed,
        others,
        count_chunks=reader.count,
        concepts=concepts,
        classes_from_base=job.prior.target == "base",
    )
    offload = ComponentOffload(family, str(distributed.device), job.train.offload)
    offload.for_image_encoding()
    latents = precompute.cache_latents(job, distributed, family, batches, STEPS + 1)
    offload.for_text_encoding()
    trained = prepare.attach_adapter(job, distributed, family, from_file=False)
    encode = precompute.prepare_text_encoder(job, distributed, family, reader, batches, STEPS + 1, trained.trains_text)
    assert latents is not None and encode is not None  # Nobody asks for a stop.
    offload.for_training(trained.trains_text or precompute.is_live(encode))
    return prepare.TrainState(
        family, batches, [size] * len(own), latents, encode, trained, distributed, STEPS + 1, resolution, reader
    )


def _time_steps(loop: "TrainLoop", device: "torch.device") -> float:
    """The median of a few steps, after one that warms up and lays the optimizer's moments out."""
    loop.step(0)
    durations: list[float] = []
    while len(durations) < STEPS and sum(durations) < ENOUGH_SECONDS:
        durations.append(_timed(lambda: loop.step(len(durations) + 1), device))
    return statistics.median(durations)


def _time_previews(job: "TrainJob", family: "Family", offload: ComponentOffload) -> tuple[float, float]:
    """Seconds for a sampling step, and for the rest of a picture: from a picture of one step and one of a few."""
    from sdlora.generation.studio import Studio

    if not (count_previews(job.sample, 1) or preserves_classes(job.all_concepts)):
        return 0.0, 0.0
    offload.for_generation()
    studio, device = Studio.from_family(family), family.device
    prompt = next(iter(job.sample.prompts), "")

    def generate(steps: int) -> Callable[[], object]:
        return lambda: studio.generate(prompt, job.sample, seed=0, steps=steps)

    if device.type != "cpu":
        generate(1)()
    one, few = _timed(generate(1), device), _timed(generate(FEW_SAMPLING_STEPS), device)
    sampling = max(0.0, (few - one) / (FEW_SAMPLING_STEPS - 1))
    return sampling, max(0.0, one - sampling)


def _time_encoding(family: "Family", width: int, height: int) -> float:
    import torch

    pixels = torch.zeros(1, 3, height, width)

    def encode() -> None:
        with torch.no_grad():
            family.encode_images(pixels.to(family.device))

    if family.device.type != "cpu":
        encode()
    return _timed(encode, family.device)


def _timed(work: Callable[[], object], device: "torch.device") -> float:
    """Seconds that ``work`` takes, the device's own work included."""
    import torch

    synchronize: dict[str, Callable[[], object]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    begun = time.monotonic()
    work()
    synchronize.get(device.type, lambda: None)()
    return time.monotonic() - begun


class _Peak:
    """The most memory that was in use within the ``with`` block, in bytes."""

    def __init__(self, device: "torch.device"):
        self.device = device
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Peak":
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._start = self._used()
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        import torch

        self._over.set()
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.bytes = max(self.bytes, self._used() - self._start)

    def _used(self) -> int:
        from sdlora.generation.memory import used_bytes

        return used_bytes(self.device)
