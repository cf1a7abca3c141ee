"""What is done once before the first step: load, look at the pictures, make class pictures, encode, attach."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from sdlora import checkpoint as saving
from sdlora.adapters import live
from sdlora.data import buckets, prior
from sdlora.data.advice import Kind, suggested_steps
from sdlora.data.batches import Batches
from sdlora.data.cache import LatentCache, TextCache
from sdlora.data.folder import Example, scan
from sdlora.data.pictures import Size
from sdlora.data.store import TensorStore
from sdlora.events import Notice, OnEvent, Progress
from sdlora.families.base import Conditioning, Family
from sdlora.families.loading import load
from sdlora.formats import read_adapter
from sdlora.generation.studio import Studio
from sdlora.seeds import derive
from sdlora.training.job import Job
from sdlora.training.parallel import Gang

NAME = "training"
"""What the live models call the adapter in training."""
ENCODE_BATCH = 8
"""Pictures encoded at once on a graphics card. A CPU gains nothing by more than one, and fills no batches up."""


@dataclass
class Ready:
    """All that the loop needs."""

    family: Family
    batches: Batches
    latents: LatentCache
    encode: Callable[[list[str]], Conditioning]
    trained: list["torch.nn.Parameter"]
    text_parameters: list["torch.nn.Parameter"]
    optimizer: Any
    rates: list[float]
    """Full learning rates of the optimizer's groups."""
    text_rate: float
    precision: str
    sizes: Sequence[Size]
    """Each example's bucket."""
    steps: int
    start: int = 0
    started: float = field(default_factory=time.time)

    def state(self, step: int) -> saving.State:
        """What a resume after ``step`` steps needs."""
        tensors, values = saving.pack_optimizer(self.optimizer)
        own = {f"adapter.{index}": parameter.detach() for index, parameter in enumerate(self.trained)}
        return saving.State(step, {**tensors, **own}, {"optimizer": values, "started": self.started})

    def restore(self, state: saving.State) -> None:
        """Put a saved state back, exactly."""
        with torch.no_grad():
            for index, parameter in enumerate(self.trained):
                parameter.copy_(state.tensors[f"adapter.{index}"])
        saving.unpack_optimizer(self.optimizer, state.tensors, state.values["optimizer"])
        self.start, self.started = state.step, state.values["started"]


def prepare(job: Job, gang: Gang) -> Ready | None:
    """Everything up to the first step; None if a stop was asked for meanwhile."""
    dataset = scan(job.data)
    for notice in dataset.notices:
        job.on_event(Notice(message=notice))
    job.on_event(Progress(phase="loading the base model", done=0, total=1))
    family = load(job.model)
    family.to(gang.device)
    resolution = job.data.resolution or family.native_size
    class_examples = _class_examples(job, gang, family, resolution)
    if class_examples is None:
        return None
    step = buckets.bucket_step(resolution, family.latent_factor)
    sizes = buckets.assign(dataset.examples, resolution, step, job.data.buckets)
    batches = Batches(
        dataset.examples, sizes, job.data, job.train.batch_size, job.train.seed, class_examples, gang.count, gang.rank
    )
    steps = _steps(job, batches, len(dataset.examples), gang)
    for notice in [*buckets.notices(dataset.examples, sizes), *batches.notices()]:
        job.on_event(Notice(message=notice))
    latents = _cache_latents(job, gang, family, batches, steps)
    if latents is None:
        return None
    if gang.dtype != torch.float32:
        for module in family.models.values():  # The VAE stays in float32: in float16 it can give black pictures.
            module.to(dtype=gang.dtype)
    ready = _attach(job, gang, family, batches, latents, sizes, steps)
    state = saving.newest(job.output.states)
    if state is not None:
        ready.restore(state)
    return ready


def _class_examples(job: Job, gang: Gang, family: Family, resolution: int) -> list[Example] | None:
    """The class pictures, missing ones made by the base; none without prior preservation; None if stopped."""
    if not job.prior.weight:
        return []
    prompt = prior.class_prompt(job.data, job.prior)
    settings = job.prior
    made_by = {
        "base": family.fingerprint,
        "prompt": prompt,
        "negative": settings.negative,
        "size": resolution,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": settings.cfg,
    }
    pictures = prior.class_pictures(settings, prompt, prior.class_folder(job.cache / "class-images", made_by))
    for notice in pictures.notices:
        job.on_event(Notice(message=notice))
    missing = pictures.missing() if gang.is_main else []
    finished = True
    if missing:
        studio = Studio.over(family)
        finished = prior.fill(
            pictures.folder,
            missing,
            lambda seeds: [
                studio.generate(
                    prompt,
                    negative=settings.negative,
                    steps=settings.steps,
                    cfg=settings.cfg,
                    sampler=settings.sampler,
                    seed=seed,
                    width=resolution,
                    height=resolution,
                )[0]
                for seed in seeds
            ],
            made_by,
            on_progress=_teller(job.on_event, "making class pictures"),
            should_stop=job.should_stop,
        )
    gang.wait()
    return None if gang.any(not finished) else pictures.examples()


def _steps(job: Job, batches: Batches, pictures: int, gang: Gang) -> int:
    """Optimizer steps: as set, from epochs, or suggested from the number of pictures."""
    accumulation = job.train.gradient_accumulation
    if job.train.steps is not None:
        return job.train.steps
    if job.train.epochs is not None:
        return max(1, round(job.train.epochs * batches.per_epoch / accumulation))
    kind: Kind = "subject" if job.data.class_name else "style"
    steps = suggested_steps(pictures, kind, job.train.batch_size * accumulation * gang.count)
    job.on_event(
        Notice(message=f"{steps} steps, suggested for a {kind} of {pictures} pictures; set train.steps to change")
    )
    return steps


def _cache_latents(job: Job, gang: Gang, family: Family, batches: Batches, steps: int) -> LatentCache | None:
    """Encode every view that the run will show, once; None if stopped."""
    cache = LatentCache(
        TensorStore(job.cache / "latents"),
        family.fingerprints["vae"],
        job.data.background,
        job.data.masks,
        1 if gang.device.type == "cpu" else ENCODE_BATCH,
    )
    finished = True
    if gang.is_main:
        views = batches.views(0, steps * job.train.gradient_accumulation)
        tell = _teller(job.on_event, "encoding pictures")
        finished = cache.prepare(views, family.encode_images, tell, job.should_stop)
    gang.wait()
    return None if gang.any(not finished) else cache


def _attach(
    job: Job,
    gang: Gang,
    family: Family,
    batches: Batches,
    latents: LatentCache,
    sizes: Sequence[Size],
    steps: int,
) -> Ready:
    """Adapter, optimizer and text encoding."""
    text_rate = job.train.text_encoder_learning_rate
    text_rate = job.train.learning_rate if text_rate is None else text_rate
    adapter = job.adapter if text_rate else job.adapter.model_copy(update={"text_encoder": False})
    trained = adapter.attach(family.models, NAME, derive(job.train.seed, "adapter"))
    if adapter.init is not None:
        live.assign_state(family.models, read_adapter(adapter.init), NAME)
    groups, rates, text_parameters = [], [], []
    for component, model in family.models.items():
        own = _own({component: model})
        if own:
            rate = text_rate if component.startswith("text_encoder") else job.train.learning_rate
            groups.append({"params": own, "lr": rate})
            rates.append(rate)
            text_parameters += own if component.startswith("text_encoder") else []
        model.train()
    if job.train.gradient_checkpointing:
        _checkpoint_gradients(family)
    encode = _text_encoder(job, gang, family, batches, steps, trains=bool(text_parameters))
    optimizer = gang.adopt(job.optimizer.build(groups))
    return Ready(
        family=family,
        batches=batches,
        latents=latents,
        encode=encode,
        trained=trained,
        text_parameters=text_parameters,
        optimizer=optimizer,
        rates=rates,
        text_rate=text_rate,
        precision=gang.precision,
        sizes=sizes,
        steps=steps,
    )


def _own(models: Mapping[str, "torch.nn.Module"]) -> list["torch.nn.Parameter"]:
    """The adapter's parameters in one component, none if the targets leave it out."""
    return live.parameters(models, NAME) if NAME in live.attached(models) else []


def _checkpoint_gradients(family: Family) -> None:
    for model in family.models.values():
        enable: Any = getattr(model, "enable_gradient_checkpointing", None) or model.gradient_checkpointing_enable
        enable()


def _text_encoder(
    job: Job, gang: Gang, family: Family, batches: Batches, steps: int, trains: bool
) -> Callable[[list[str]], Conditioning]:
    """Captions to conditioning: live where a text encoder trains, else from a cache made before the first step."""

    @lru_cache(maxsize=65536)
    def ids(caption: str) -> torch.Tensor:
        return family.tokenize([caption])[0]

    def tokens(captions: Sequence[str]) -> torch.Tensor:
        return torch.stack([ids(caption) for caption in captions])

    if trains:
        return lambda captions: family.encode_text(tokens(captions))

    store = TensorStore(job.cache / "text")
    fingerprint = "".join(v for k, v in sorted(family.fingerprints.items()) if k.startswith("text_encoder"))
    cache = TextCache(store, f"{fingerprint}/{gang.precision}", lambda row: {"text": family.encode_text(row).text})
    if gang.is_main:
        captions = batches.captions(0, steps * job.train.gradient_accumulation)
        cache.prepare(tokens(captions), _teller(job.on_event, "encoding captions"))
    gang.wait()
    return lambda captions: Conditioning(cache.read(tokens(captions))["text"].to(gang.device))


def _teller(on_event: OnEvent, phase: str) -> Callable[[int, int], None]:
    return lambda done, total: on_event(Progress(phase=phase, done=done, total=total))
