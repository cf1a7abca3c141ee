"""Prepare the class images, latents and text outputs of a run once, and cache them. All processes share the work."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from PIL import Image

from sdlora.data import class_images
from sdlora.data.batches import BatchLoader
from sdlora.data.cache import LatentCache, TextCache
from sdlora.data.concepts import preserves_classes
from sdlora.data.dataset import Example
from sdlora.data.tensor_store import TensorStore
from sdlora.events import report_progress, unwatched
from sdlora.families.base import Conditioning, Family, to_device_async
from sdlora.generation.generation_spec import with_generation_defaults
from sdlora.generation.prompt_encoding import CaptionReader
from sdlora.generation.prompt_weighting import escape_weights
from sdlora.generation.samplers import require_sampler_support
from sdlora.generation.settings import Prior, SamplingSettings
from sdlora.generation.studio import Studio
from sdlora.training.component_offload import ComponentOffload
from sdlora.training.concept_overlap import concept_texts
from sdlora.training.distributed import Distributed
from sdlora.training.measured_images import MeasuredImage
from sdlora.training.previews import prefix_section
from sdlora.training.step import EncodeCaptions
from sdlora.training.train_job import TrainJob

ENCODE_BATCH = 2
"""Pictures encoded at once on a graphics card: in float32 each at 512 px takes a gigabyte. On a CPU, one."""
MIDDLING = 768
"""Pixels along a side: of larger pictures one is encoded at a time."""
MOST_CAPTIONS = 10
"""Largest number of different captions per image (shuffled ones, say) up to which their outputs are cached."""


def plan_class_images(
    job: TrainJob, precision: str, family: Family, resolution: int, examples: Sequence[Example]
) -> tuple[list[class_images.ClassImages], class_images.ClassImageStore]:
    """Return the class images of each class in this ``precision``, made or not, and the store of the base's own."""
    settings = with_generation_defaults(job.prior, family)
    made_by = _what_decides_class_images(job, precision, family, settings, _class_image_side(family, resolution))
    store = class_images.ClassImageStore(job.cache / "class-images", made_by)
    return class_images.class_images_of_concepts(settings, job.all_concepts, examples, store), store


def _class_image_side(family: Family, resolution: int) -> int:
    return max(family.size_step, resolution // family.size_step * family.size_step)


def prepare_class_images(
    job: TrainJob, distributed: Distributed, family: Family, resolution: int, examples: Sequence[Example]
) -> list[Example] | None:
    """The class pictures, missing ones made by the base; none without prior preservation; None if stopped."""
    if not preserves_classes(job.all_concepts):
        return []
    settings, side = with_generation_defaults(job.prior, family), _class_image_side(family, resolution)
    selected, store = plan_class_images(job, distributed.precision, family, resolution, examples)
    job.notice(*(notice for found in selected for notice in found.notices))
    missing = [*dict.fromkeys(image for found in selected for image in found.missing())]
    if missing and job.train.offload:
        ComponentOffload(family, str(distributed.device), on=True).for_generation()
    studio = Studio.from_family(family, job.model)

    def make(prompt: str, seed: int) -> Image.Image:
        changes: dict[str, Any] = {"seed": seed, "width": side, "height": side, "clip_skip": job.train.clip_skip}
        text = prompt if job.data.caption_weights else escape_weights(prompt)
        return studio.generate(text, settings, **changes)[0]

    if missing:
        with prefix_section("prior"):
            require_sampler_support(settings.sampler, family.process)
    distributed.barrier()  # Everyone has looked before anyone adds a picture.
    finished = class_images.generate_missing(
        store,
        missing[distributed.rank :: distributed.count],
        make,
        report_progress(job.on_event, "making class pictures") if missing else unwatched,
        job.should_stop,
    )
    if distributed.any_process(not finished):
        return None
    return [example for found in selected for example in found.examples()]


def _what_decides_class_images(
    job: TrainJob, precision: str, family: Family, settings: Prior, side: int
) -> dict[str, Any]:
    """Return all that decides a class image beside its prompt and seed."""
    made_by = {
        "base": family.fingerprint,
        "precision": precision,
        "size": side,
        **settings.model_dump(include={*SamplingSettings.model_fields}),
        **job.model.schedule,
    }
    if job.model.quantize is not None:  # A rounded base draws other pictures.
        made_by["quantize"] = job.model.quantize
    if job.train.clip_skip != 1:
        made_by["clip_skip"] = job.train.clip_skip
    if job.data.caption_weights:
        made_by["weights"] = True
    return made_by


def cache_latents(
    job: TrainJob,
    distributed: Distributed,
    family: Family,
    batches: BatchLoader,
    steps: int,
    measured: Sequence[MeasuredImage] = (),
) -> LatentCache | None:
    """Encode every view that the run will show or measure, once; None if stopped."""
    cache = LatentCache(
        TensorStore(job.cache / "latents"),
        family.fingerprints["vae"],
        job.data.background,
        any(concept.masks for concept in job.all_concepts),
        1 if distributed.device.type == "cpu" or family.native_size > MIDDLING else ENCODE_BATCH,
    )
    views = batches.views(0, steps * job.train.gradient_accumulation)
    views = list(dict.fromkeys([*views, *(image.view for image in measured)]))
    tell = report_progress(job.on_event, "encoding pictures")
    finished = cache.prepare(views[distributed.rank :: distributed.count], family.encode_images, tell, job.should_stop)
    return None if distributed.any_process(not finished) else cache


def prepare_text_encoder(
    job: TrainJob,
    distributed: Distributed,
    family: Family,
    reader: CaptionReader,
    batches: BatchLoader,
    steps: int,
    trains: bool,
    measured: Sequence[MeasuredImage] = (),
) -> EncodeCaptions | None:
    """Captions to conditioning: live where a text encoder trains, else from a cache made before the first step.

    None if stopped.
    """
    clip_skip = job.train.clip_skip
    captions = [] if trains else batches.captions(0, steps * job.train.gradient_accumulation)
    if trains or len(captions) > MOST_CAPTIONS * len(batches.examples):
        gradients = nullcontext if trains else torch.no_grad
        each = bool(trains and job.adapter.input_dropout)
        return LiveTextEncoder(reader, partial(family.encode_text, clip_skip=clip_skip), gradients, each)

    @torch.autocast(distributed.device.type, enabled=False)
    def encode(row: torch.Tensor) -> dict[str, torch.Tensor]:
        return family.encode_text(row, clip_skip).tensors()

    fingerprint = "".join(value for name, value in sorted(family.fingerprints.items()) if name.startswith("text"))
    layer = "" if clip_skip == 1 else f"/clip_skip {clip_skip}"
    cache = TextCache(TensorStore(job.cache / "text"), f"{fingerprint}/{distributed.precision}{layer}", encode)
    if job.loss.concept_overlap:
        captions += concept_texts(job.all_concepts)
    captions += [image.caption for image in measured]
    longer = [""] if any(reader.count(caption) > 1 for caption in captions) else []  # It fills up what is shorter.
    rows = [*dict.fromkeys(tuple(row) for row in reader.ids([*captions, *longer]).tolist())] if captions else []
    mine = rows[distributed.rank :: distributed.count]
    finished = not mine or cache.prepare(
        torch.tensor(mine), report_progress(job.on_event, "encoding captions"), job.should_stop
    )
    if distributed.any_process(not finished):
        return None

    def read(ids: torch.Tensor) -> Conditioning:
        parts = cache.read(ids)
        return Conditioning(**{part: to_device_async(value, distributed.device) for part, value in parts.items()})

    return lambda captions, chunks: reader.read(captions, chunks, read)


class ReadsCaptions(Protocol):
    """Reader of captions for ``LiveTextEncoder``: a ``CaptionReader``."""

    def read(
        self, captions: Sequence[str], chunks: int, encode: Callable[[torch.Tensor], Conditioning]
    ) -> Conditioning: ...


class LiveTextEncoder:
    """Reads a batch's captions anew in every step: ``each`` one, as dropout asks for, or every different one once."""

    def __init__(self, reader: ReadsCaptions, encode: Callable, gradients: Callable, each: bool):
        self.reader, self.encode, self.gradients, self.each = reader, encode, gradients, each

    def __call__(self, captions: list[str], chunks: int) -> Conditioning:
        different = captions if self.each else list(dict.fromkeys(captions))  # Class pictures' are often all alike.
        with self.gradients():
            text = self.reader.read(different, chunks, self.encode)
        return text if different == captions else text.select_rows([different.index(caption) for caption in captions])


def is_live(encode: EncodeCaptions) -> bool:
    """Return whether ``encode``, from ``prepare_text_encoder``, needs the text encoders at every step."""
    return isinstance(encode, LiveTextEncoder)
