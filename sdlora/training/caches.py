"""What a run makes once and keeps: class pictures, latents, text outputs. All processes share the work."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from sdlora.data import prior
from sdlora.data.batches import Batches
from sdlora.data.cache import LatentCache, TextCache
from sdlora.data.folder import Example
from sdlora.data.store import TensorStore
from sdlora.events import OnEvent, OnProgress, Progress
from sdlora.families.base import Conditioning, Family, sent
from sdlora.generation.attention import escape
from sdlora.generation.samplers import require_able
from sdlora.generation.studio import Studio
from sdlora.training.job import Job
from sdlora.training.parallel import Gang
from sdlora.training.previews import placed
from sdlora.training.turns import Turns

if TYPE_CHECKING:
    from PIL import Image

ENCODE_BATCH = 2
"""Pictures encoded at once on a graphics card: in float32 each at 512 px takes a gigabyte. On a CPU, one."""
MIDDLING = 768
"""Pixels along a side: of larger pictures one is encoded at a time."""
MOST_CAPTIONS = 10
"""Where a run says more different captions a picture than this (shuffled ones, say), none are kept."""


def class_examples(
    job: Job, gang: Gang, family: Family, resolution: int, examples: Sequence[Example]
) -> list[Example] | None:
    """The class pictures, missing ones made by the base; none without prior preservation; None if stopped."""
    settings = job.prior
    if not settings.weight:
        return []
    side = max(family.size_step, resolution // family.size_step * family.size_step)
    asked = settings.model_dump(include={"negative", "sampler", "steps", "cfg"})
    made_by = {"base": family.fingerprint, "precision": gang.precision, "size": side, **asked, **job.model.schedule}
    if job.model.quantize is not None:  # A rounded base draws other pictures.
        made_by["quantize"] = job.model.quantize
    shelf = prior.Shelf(job.cache / "class-images", made_by)
    prompts = prior.class_prompts(job.data, settings, [example.caption for example in examples])
    pictures = prior.class_pictures(settings, prompts, prior.class_prompt(job.data, settings), shelf)
    job.notice(*pictures.notices)
    missing = pictures.missing()
    if missing and job.train.offload:
        Turns(family, str(gang.device), on=True).drawing()
    studio = Studio.over(family, job.model)

    def make(prompt: str, seed: int) -> "Image.Image":
        return studio.generate(escape(prompt), seed=seed, width=side, height=side, **asked)[0]

    if missing:
        with placed("prior"):
            require_able(settings.sampler, family.scheduler_config)
    gang.wait()  # Everyone has looked before anyone adds a picture.
    finished = prior.fill(
        shelf,
        missing[gang.rank :: gang.count],
        make,
        _teller(job.on_event, "making class pictures") if missing else lambda done, total: None,
        job.should_stop,
    )
    return None if gang.any(not finished) else pictures.examples()


def cache_latents(job: Job, gang: Gang, family: Family, batches: Batches, steps: int) -> LatentCache | None:
    """Encode every view that the run will show, once; None if stopped."""
    cache = LatentCache(
        TensorStore(job.cache / "latents"),
        family.fingerprints["vae"],
        job.data.background,
        job.data.masks,
        1 if gang.device.type == "cpu" or family.native_size > MIDDLING else ENCODE_BATCH,
    )
    views = batches.views(0, steps * job.train.gradient_accumulation)
    tell = _teller(job.on_event, "encoding pictures")
    finished = cache.prepare(views[gang.rank :: gang.count], family.encode_images, tell, job.should_stop)
    return None if gang.any(not finished) else cache


def text_encoder(
    job: Job, gang: Gang, family: Family, batches: Batches, steps: int, trains: bool
) -> Callable[[list[str]], Conditioning] | None:
    """Captions to conditioning: live where a text encoder trains, else from a cache made before the first step.

    None if stopped.
    """

    @lru_cache(maxsize=65536)
    def ids(caption: str) -> torch.Tensor:
        return family.tokenize([caption])[0]

    def tokens(captions: Sequence[str]) -> torch.Tensor:
        return torch.stack([ids(caption) for caption in captions])

    captions = [] if trains else batches.captions(0, steps * job.train.gradient_accumulation)
    if trains or len(captions) > MOST_CAPTIONS * len(batches.examples):
        gradients = nullcontext if trains else torch.no_grad
        return Live(family, tokens, gradients, each=bool(trains and job.adapter.input_dropout))

    @torch.autocast(gang.device.type, enabled=False)
    def encode(row: torch.Tensor) -> dict[str, torch.Tensor]:
        return family.encode_text(row).parts()

    fingerprint = "".join(value for name, value in sorted(family.fingerprints.items()) if name.startswith("text"))
    cache = TextCache(TensorStore(job.cache / "text"), f"{fingerprint}/{gang.precision}", encode)
    mine = captions[gang.rank :: gang.count]
    finished = not mine or cache.prepare(tokens(mine), _teller(job.on_event, "encoding captions"), job.should_stop)
    if gang.any(not finished):
        return None

    def read(spoken: list[str]) -> Conditioning:
        return Conditioning(**{part: sent(told, gang.device) for part, told in cache.read(tokens(spoken)).items()})

    return read


class Live:
    """Reads a batch's captions anew in every step: ``each`` one, as dropout asks for, or every different one once."""

    def __init__(self, family: Family, tokens: Callable, gradients: Callable, each: bool):
        self.family, self.tokens, self.gradients, self.each = family, tokens, gradients, each

    def __call__(self, captions: list[str]) -> Conditioning:
        different = captions if self.each else list(dict.fromkeys(captions))  # Class pictures' are often all alike.
        with self.gradients():
            told = self.family.encode_text(self.tokens(different))
        return told if different == captions else told.rows([different.index(caption) for caption in captions])


def is_live(encode: Callable[[list[str]], Conditioning]) -> bool:
    """Whether ``encode``, from ``text_encoder``, needs the text encoders at every step."""
    return isinstance(encode, Live)


def _teller(on_event: OnEvent, phase: str) -> OnProgress:
    return lambda done, total: on_event(Progress(phase=phase, done=done, total=total))
