"""Preparation, done once before the first step: load, look at the pictures, fill the caches, attach, restore."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from typing import Any

import torch

from sdlora import checkpoint
from sdlora.adapters import targets
from sdlora.adapters.trainable import Trainable, TrainablePart
from sdlora.data import buckets
from sdlora.data.batches import BatchLoader
from sdlora.data.cache import LatentCache
from sdlora.data.concepts import image_sets, load_concepts
from sdlora.data.dataset import Example
from sdlora.data.doctor import concept_notices
from sdlora.data.images import ImageSize
from sdlora.data.unknown_words import prompt_notices
from sdlora.diffusion import ZERO_SNR
from sdlora.errors import ConfigError, FileError
from sdlora.events import Progress
from sdlora.families.base import Family
from sdlora.families.known_words import known_words
from sdlora.families.loading import load_family
from sdlora.families.quantized import quantize
from sdlora.formats import read_adapter
from sdlora.formatting import first_line
from sdlora.generation.prompt_encoding import CaptionReader
from sdlora.seeds import derive
from sdlora.training import precompute
from sdlora.training.component_offload import ComponentOffload
from sdlora.training.distributed import Distributed
from sdlora.training.early_stopping import EarlyStopping, least_measurements, require_held_out, stopping_notices
from sdlora.training.measured_images import MeasuringPlan, plan_measurements
from sdlora.training.memory_efficient_layers import use_memory_efficient_layers
from sdlora.training.previews import require_previews
from sdlora.training.setting_notices import changed_settings, ignored_settings, learning_settings, length_notices
from sdlora.training.step import EncodeCaptions
from sdlora.training.train_job import TrainJob

TRAINED_ADAPTER = "<training>"
"""Name in the live models of the adapter in training, which no adapter in a studio can have."""
SCHEDULE = (
    "prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "shift",
    ZERO_SNR,
)  # fmt: skip
"""Entries of a scheduler's config that decide a training."""
EXTRA = "method."
"""Prefix in a resumable state of what a method keeps beside its parameters."""


@dataclass(frozen=True)
class TrainedParts:
    """Parts that train, and the optimizer that updates them."""

    trainable: Trainable
    parts: list[TrainablePart]
    optimizer: Any
    rates: list[float]
    """Full learning rates of the optimizer's groups."""
    components: list[str]
    """Components of the optimizer's groups."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [part.parameter for part in self.parts]

    @property
    def trains_text(self) -> bool:
        return any(is_text(part.path) for part in self.parts)

    def current_rate(self, text: bool) -> float | None:
        """Return the rate that the first group of the text encoders, or of the rest, has now; None without any."""
        groups = zip(self.components, self.optimizer.param_groups, strict=True)
        return next((group["lr"] for component, group in groups if is_text(component) == text), None)


@dataclass
class TrainState:
    """All that the loop needs."""

    family: Family
    batches: BatchLoader
    sizes: Sequence[ImageSize]
    """Each example's bucket."""
    latents: LatentCache
    encode: EncodeCaptions
    trained: TrainedParts
    distributed: Distributed
    steps: int
    resolution: int
    """Side in pixels of the square whose area training pictures get."""
    reader: CaptionReader
    measured: MeasuringPlan = field(default_factory=MeasuringPlan)
    """Images on which the loss is measured, and how often."""
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that decide what is learnt, by their names."""
    start: int = 0
    started: float = field(default_factory=time.time)

    def to_checkpoint(self, step: int) -> checkpoint.State:
        """Return what a resume after ``step`` steps needs."""
        tensors, optimizer = checkpoint.pack_optimizer(self.trained.optimizer)
        own = {f"adapter.{index}": parameter.detach() for index, parameter in enumerate(self.trained.parameters)}
        extra = {f"{EXTRA}{name}": tensor for name, tensor in self.trained.trainable.extra_state().items()}
        values = {
            "optimizer": optimizer,
            "scaler": self.distributed.scaler_state(),
            "started": self.started,
            **self._order(),
        }
        values |= {"steps": self.steps, **self.stopping.to_values()}
        values["settings"] = dict(self.settings)
        return checkpoint.State(step, {**tensors, **own, **extra}, values)

    def restore(self, state: checkpoint.State) -> None:
        """Put a saved state back, exactly.

        Raises ConfigError if the run's order of examples is not what it was, FileError for a state of something else.
        """
        for name, value in self._order().items():
            if state.values.get(name, value) != value:
                raise ConfigError(
                    f"this run was begun with {name} = {state.values[name]}, now it is {value}, and would go on as "
                    "another run; put that back, or start a new run with adapter.init"
                )
        if self.steps < state.step:
            raise ConfigError(
                f"train.steps = {self.steps}: this run has done {state.step} steps already; give that or more"
            )
        try:
            with torch.no_grad():
                for index, parameter in enumerate(self.trained.parameters):
                    saved = state.tensors[f"adapter.{index}"]
                    if saved.shape != parameter.shape:
                        raise ValueError(f"tensor {index} has the shape {tuple(saved.shape)}")
                    parameter.copy_(saved)
            extra = {name.removeprefix(EXTRA): t for name, t in state.tensors.items() if name.startswith(EXTRA)}
            self.trained.trainable.load_extra_state(extra)
            checkpoint.unpack_optimizer(self.trained.optimizer, state.tensors, state.values["optimizer"])
            self.distributed.restore_scaler(state.values["scaler"])
            self.stopping.restore(state.values)
            self.start, self.started = state.step, float(state.values["started"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise foreign_state(state.step, error) from error

    def _order(self) -> dict[str, Any]:
        """Return what decides which example is shown when and what is learnt of it, and is not in the config."""
        # Written as version 0.1.0 wrote it, or its runs could not be resumed.
        sizes = (f"Size(width={size.width}, height={size.height})" for size in self.sizes)
        pictures = "".join(
            f"{e.digest}{e.mask_digest}{e.caption}{e.repeats}{size}"
            for e, size in zip(self.batches.examples, sizes, strict=True)
        )
        classes = "".join(f"{e.digest}{e.caption}" for e in self.batches.class_examples)
        return {
            "processes": self.distributed.count,
            "base model": self.family.fingerprint[:12],
            "pictures and captions": _digest(pictures),
            "class pictures": _digest(classes),
            "noise schedule": _schedule_digest(self.family.scheduler_config),
            "tokens": _digest(repr(self._tokens())),
            **_membership(self.batches.examples, self.batches.class_examples),
        }

    def _tokens(self) -> list[list[int]]:
        """Return the token ids of each example's first chunk, then of all further chunks of any caption."""
        captions, classes = ([e.caption for e in each] for each in (self.batches.examples, self.batches.class_examples))
        chunks = [[row.tolist() for row in self.reader.ids([caption])] for caption in (*captions, *classes)]
        return [*(own[0] for own in chunks[: len(captions)]), *(row for own in chunks for row in own[1:])]


def _membership(examples: Sequence[Example], class_examples: Sequence[Example]) -> dict[str, str]:
    """Return the concepts that examples belong to; nothing for one concept, whose states have no such entry."""
    members = [[example.concepts for example in each] for each in (examples, class_examples)]
    return {"concepts": _digest(repr(members))} if {*chain(*members)} - {(0,)} else {}


def foreign_state(step: int, error: Exception) -> FileError:
    """Return the error that the state of ``step`` cannot be gone on from, because of ``error``."""
    reason = f"{type(error).__name__}: {first_line(error)}"
    return FileError(f"the state of step {step} is not one of this run ({reason}); remove it")


def _schedule_digest(config: Mapping[str, Any]) -> str:
    return _digest(repr([(name, config[name]) for name in SCHEDULE if config.get(name) is not None]))


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]


def prepare_training(job: TrainJob, distributed: Distributed) -> TrainState | None:
    """Everything up to the first step; None if a stop was asked for meanwhile."""
    concepts = job.all_concepts
    dataset = load_concepts(concepts)
    require_held_out(job.train, dataset.held_out)
    job.notice(*dataset.notices)
    family = load_base(job, distributed)
    resolution, sizes = assign_sizes(job, family, dataset.examples)
    offload = ComponentOffload(family, str(distributed.device), job.train.offload)
    if job.train.offload and not offload.on:
        job.notice("train.offload is not used: on a CPU parts have nowhere else to wait")
    class_examples = precompute.prepare_class_images(job, distributed, family, resolution, dataset.examples)
    if class_examples is None:
        return None
    reader = CaptionReader(family, job.data.caption_weights)
    batches = BatchLoader(
        dataset.examples,
        sizes,
        job.data,
        job.train.batch_size,
        job.train.seed,
        class_examples,
        distributed.count,
        distributed.rank,
        reader.count,
        concepts,
        job.prior.target == "base",
    )
    steps = _planned_steps(job, batches, distributed)
    known = known_words(job.model.base)
    job.notice(*concept_notices(concepts, resolution, dataset.examples, sizes, known), *batches.notices())
    job.notice(*prompt_notices(known, concepts, job.sample.prompts if job.sample.every else ()))
    job.notice(*ignored_settings(job, steps))
    offload.for_image_encoding()
    measured = _planned_measurements(job, family, batches, sizes, steps, dataset.held_out)
    job.notice(*stopping_notices(job.train, job.schedule, measured, steps))
    latents = precompute.cache_latents(job, distributed, family, batches, steps, measured.images)
    if latents is None:
        return None
    offload.for_text_encoding()
    state = checkpoint.newest_state(job.output.states, job.notice)
    trained = attach_adapter(job, distributed, family, from_file=state is None)
    files = 2 + steps // job.checkpoint.every if job.checkpoint.every else 2
    size = sum(parameter.numel() * parameter.element_size() for parameter in trained.parameters)
    checkpoint.require_space(job.output.folder, size, job.checkpoint.keep, files)
    encode = precompute.prepare_text_encoder(
        job, distributed, family, reader, batches, steps, trained.trains_text, measured.images
    )
    if encode is None:
        return None
    offload.for_training(trained.trains_text or precompute.is_live(encode))
    train_state = TrainState(
        family, batches, sizes, latents, encode, trained, distributed, steps, resolution, reader, measured
    )
    train_state.stopping = EarlyStopping.for_run(job.train, job.schedule)
    train_state.settings = learning_settings(job)
    if state is not None:
        train_state.restore(state)
        job.notice(*length_notices(job, state, steps), *changed_settings(job, state))
    return train_state


def load_base(job: TrainJob, distributed: Distributed) -> Family:
    """The base model on its device (or, where its parts take turns there, on the CPU), in the training precision.

    Raises ModelError, and ConfigError for a loss weighting or a preview that it does not define.
    """
    job.on_event(Progress(phase="loading the base model", done=0, total=1))
    family = load_family(job.model, distributed.dtype)
    require_clip_skip(job, family)
    family.process.check_weighting(job.loss.weighting, job.loss.min_snr_gamma)
    require_previews(job, family)
    if job.model.quantize is not None:  # As it is stored: opened, it would be wider in memory, or rounded twice.
        quantize(family.modules.peek(family.denoiser), job.model.quantize, distributed.device)
    device = "cpu" if job.train.offload else distributed.device
    for name in family.models:  # The VAE stays in float32: in float16 it can give black pictures.
        family.modules.place(name, dtype=distributed.dtype)
    return family.to(device)


def require_clip_skip(job: TrainJob, family: Family) -> None:
    """Raise ConfigError for a text layer that the base does not have."""
    if job.train.clip_skip > family.text_layers:
        limit = family.text_layers
        raise ConfigError(f"train.clip_skip = {job.train.clip_skip}: give 1 to {limit}, this model's text layers")


def assign_sizes(job: TrainJob, family: Family, examples: Sequence[Example]) -> tuple[int, tuple[ImageSize, ...]]:
    """The side in pixels of the square whose area pictures get, and each example's bucket."""
    resolution = job.data.resolution or family.native_size
    step = buckets.bucket_step(resolution, family.latent_factor)
    return resolution, buckets.assign_buckets(examples, resolution, step, job.data.buckets)


def _planned_steps(job: TrainJob, batches: BatchLoader, distributed: Distributed) -> int:
    """Return the run's optimizer steps, and report a number that nobody set."""
    sets = image_sets(job.all_concepts, batches.examples)
    steps = job.train.planned_steps(sets, batches.per_epoch, distributed.count)
    if job.train.steps is None and job.train.epochs is None:
        described = " and ".join(f"a {one.kind} of {one.images} pictures" for one in sets)
        job.notice(f"{steps} steps, suggested for {described}; set train.steps to change")
    return steps


def _planned_measurements(
    job: TrainJob,
    family: Family,
    batches: BatchLoader,
    sizes: Sequence[ImageSize],
    steps: int,
    held_out: Sequence[Example],
) -> MeasuringPlan:
    """Choose the images on which the loss is measured, and how often."""
    own = assign_sizes(job, family, held_out)[1] if held_out else ()
    return plan_measurements(
        job.monitor,
        job.train.seed,
        steps,
        job.train.batch_size * job.train.gradient_accumulation,
        job.all_concepts,
        list(zip(batches.examples, sizes, strict=True)),
        list(zip(held_out, own, strict=True)),
        least_measurements(job.train),
        job.adapter.init is None,
    )


def text_rate(job: TrainJob) -> float:
    """The learning rate of the text encoders' adapter."""
    own = job.train.text_encoder_learning_rate
    return job.train.learning_rate if own is None else own


def attach_adapter(job: TrainJob, distributed: Distributed, family: Family, from_file: bool) -> TrainedParts:
    """Attach what trains, new or (``from_file``) from ``adapter.init``, and build its optimizer."""
    trainable, parts = attach_method(job, family, from_file)
    groups = optimizer_groups(parts)
    optimizer = distributed.prepare_optimizer(job.optimizer.build(groups))
    components = list(dict.fromkeys(map(_group_key, parts)))
    return TrainedParts(trainable, parts, optimizer, [group["lr"] for group in groups], [key[0] for key in components])


def attach_method(job: TrainJob, family: Family, from_file: bool) -> tuple[Trainable, list[TrainablePart]]:
    """Put what trains into the family's models, and prepare the adapted ones to train."""
    method = job.adapter if text_rate(job) else job.adapter.model_copy(update={"text_encoder": False})
    models = family.models if method.text_encoder else family.models.without(*family.text_encoders)
    trainable = method.attach(models, TRAINED_ADAPTER, derive(job.train.seed, "adapter"))
    if from_file and method.init is not None:
        state = read_adapter(method.init, job.notice)
        if job.adapter.text_encoder and not method.text_encoder and any(map(is_text, state.modules)):
            raise ConfigError(
                f"adapter.init: {method.init} has layers of the text encoder, and train.text_encoder_learning_rate is "
                f"0, so that none trains; give it a rate, or begin from a file without them"
            )
        trainable.assign(state)
    for model in models.values():
        model.train()
        if job.train.gradient_checkpointing:
            _checkpoint_gradients(model)
    use_memory_efficient_layers(models)
    return trainable, trained_parts(job, trainable)


def is_text(path: str) -> bool:
    """Return whether a layer is a text encoder's."""
    return path.startswith("text_encoder")


def trained_parts(job: TrainJob, trainable: Trainable) -> list[TrainablePart]:
    """Parts with the settings' learning rates; those of text encoders end at ``train.text_encoder_stop``.

    Raises ConfigError for a pattern in ``train.learning_rates`` that names no layer.
    """
    own, stop = targets.parse_pattern_values(job.train.learning_rates), job.train.text_encoder_stop

    def rate(path: str) -> float:
        return targets.lookup_pattern(path, own, text_rate(job) if is_text(path) else job.train.learning_rate)

    parts = trainable.parts(rate)
    targets.require_matches("train.learning_rates", own, [part.path for part in parts])
    return [part if stop is None or not is_text(part.path) else part.ending_at(stop) for part in parts]


def optimizer_groups(parts: Sequence[TrainablePart]) -> list[dict[str, Any]]:
    """Group parameters by component, learning rate and weight decay, in the order of ``parts``."""
    groups: dict[tuple[str, float, float | None], list[torch.nn.Parameter]] = {}
    for part in parts:
        groups.setdefault(_group_key(part), []).append(part.parameter)
    return [
        {"params": parameters, "lr": rate} | ({} if decay is None else {"weight_decay": decay})
        for (_, rate, decay), parameters in groups.items()
    ]


def _group_key(part: TrainablePart) -> tuple[str, float, float | None]:
    return part.path.partition(".")[0], part.learning_rate, part.weight_decay


def _checkpoint_gradients(model: Any) -> None:
    """Diffusers' and transformers' models have different words for it."""
    (getattr(model, "enable_gradient_checkpointing", None) or model.gradient_checkpointing_enable)()
