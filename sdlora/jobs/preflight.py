"""Checks and plan of a run before it starts: time and memory as measured, disk as counted, further memory savings."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

from sdlora.config import TrainConfig
from sdlora.data.buckets import assign_buckets, bucket_step
from sdlora.data.captions import caption_readings
from sdlora.data.concepts import concept_shares, image_sets, load_concepts
from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize
from sdlora.data.unknown_words import prompt_notices, word_notices
from sdlora.errors import ConfigError, missing_package
from sdlora.events import OnEvent, ignore
from sdlora.families.base_models import locate_base
from sdlora.families.known_words import known_words
from sdlora.formatting import format_bytes, format_duration, pluralize
from sdlora.generation.device import require_precision
from sdlora.jobs.measurement import Measurement, cached_measurement
from sdlora.jobs.memory_savings import as_flags
from sdlora.jobs.profiler import Profiler
from sdlora.training.early_stopping import require_held_out
from sdlora.training.profiling import count_class_images, count_previews, count_views
from sdlora.training.settings import Stop

LATENT = 2 * 4 * 4
"""Bytes for each position of an image's latents: mean and deviation of four channels in float32."""
PIXEL = 3
"""Most bytes of a pixel in a PNG."""
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class RunPlan:
    """Plan of a run. The names of its fields are keys of ``sdlora plan --json``."""

    base: str
    device: str
    steps: int
    pictures: int
    sizes: Mapping[str, int]
    """Number of training images by size."""
    batch_size: int
    gradient_accumulation: int
    chosen: Mapping[str, Any]
    """Settings that ``train.memory`` changed."""
    told: tuple[str, ...]
    """Notices about them."""
    step_seconds: float
    """Seconds of an optimizer step at the largest size, measured."""
    seconds: Mapping[str, float]
    """Seconds by phase."""
    memory: int
    """Peak bytes, measured: of a card, or the growth of a process on the CPU."""
    counted: int
    """Bytes of steps and encoding, counted: an estimate."""
    rungs: tuple[Mapping[str, Any], ...]
    """Further memory savings, as a ``Measurement`` has them."""
    disk: Mapping[str, int]
    """Most bytes by kind; files that are cached already are not subtracted."""
    stop: Stop = "never"
    """Rule by which the run may end before that."""
    concepts: tuple[Mapping[str, Any], ...] = ()
    """Each of several concepts: its ``label``, ``images``, those ``seen`` in an epoch, and its ``share`` of it."""


def plan_run(config: TrainConfig, data_dir: Path, on_event: OnEvent = ignore) -> RunPlan:
    """Plan ``config`` on this machine. It is measured now, unless it was before; nothing but caches is written.

    Raises what the run would fail with; BusyError while another process has the device.
    """
    require_startable(config)
    found = cached_measurement(config, data_dir)
    if found is None or found.rungs is None:
        found = Profiler(data_dir).finish(config, on_event)
    return plan_from_measurement(found.as_chosen(config), found)


def plan_from_measurement(config: TrainConfig, found: Measurement) -> RunPlan:
    """Return the plan of a run that was measured with exactly these settings."""
    train, concepts = config.train, config.all_concepts
    examples, sizes, steps = _images_and_steps(config, found)
    views, shares = count_views(concepts, examples), concept_shares(concepts, examples)
    return RunPlan(
        base=config.model.base,
        device=found.device,
        steps=steps,
        pictures=len(examples),
        sizes={f"{size.width} x {size.height}": number for size, number in Counter(sizes).most_common()},
        batch_size=train.batch_size,
        gradient_accumulation=train.gradient_accumulation,
        chosen=found.chosen,
        told=(
            *found.told,
            *word_notices(known_words(config.model.base), concepts, examples),
            *planned_prompt_notices(config),
        ),
        step_seconds=found.step * train.gradient_accumulation,
        seconds=found.seconds_by_phase(concepts, config.prior, train, config.sample, views, steps),
        memory=found.memory,
        counted=found.counted,
        rungs=tuple(found.rungs or ()),
        disk=planned_disk(config, found),
        stop=train.stop,
        concepts=tuple(one.described() for one in shares) if len(concepts) > 1 else (),
    )


def planned_prompt_notices(config: TrainConfig) -> list[str]:
    """Return sentences on words of the run's prompts that the base model has no meaning for."""
    prompts = config.sample.prompts if config.sample.every else ()
    return prompt_notices(known_words(config.model.base), config.all_concepts, prompts)


def _images_and_steps(config: TrainConfig, found: Measurement) -> tuple[Sequence[Example], Sequence[ImageSize], int]:
    """Return the training images, their training sizes, and the number of steps."""
    examples = load_concepts(config.all_concepts).examples
    step = bucket_step(found.resolution, found.latent_factor)
    sizes = assign_buckets(examples, found.resolution, step, config.data.buckets)
    return examples, sizes, config.train.planned_steps(image_sets(config.all_concepts, examples))


def planned_disk(config: TrainConfig, found: Measurement) -> dict[str, int]:
    """Return the most bytes that a run writes, by kind."""
    examples, sizes, steps = _images_and_steps(config, found)
    sample, concepts = config.sample, config.all_concepts
    captions = {text for each in examples for text in caption_readings(each.caption, concepts[each.concepts[0]])}
    made = count_class_images(concepts)
    places = sum(
        size.width * size.height * count_views(concepts, [example])
        for example, size in zip(examples, sizes, strict=True)
    )
    places += count_class_images(concepts, own=True) * found.width * found.height
    adapter = found.numbers * WIDTHS[config.checkpoint.precision]
    checkpoints = ceil(steps / config.checkpoint.every) if config.checkpoint.every else 1
    width, height = sample.width or found.native_size, sample.height or found.native_size
    return {
        "cache of latents": places // found.latent_factor**2 * LATENT,
        "cache of captions": found.caption * len(captions),
        "class pictures": made * found.resolution**2 * PIXEL,
        "previews": count_previews(sample, steps) * width * height * PIXEL,
        "checkpoints": checkpoints * adapter,
        "states to resume from": min(config.checkpoint.keep, checkpoints) * (4 * found.numbers + found.state),
        "adapter": adapter,
    }


def plan_table(plan: RunPlan) -> list[str]:
    """Return the plan as lines of text."""
    sizes = ", ".join(f"{number} of {size}" for size, number in plan.sizes.items())
    batch = f"{plan.batch_size} x {plan.gradient_accumulation}" if plan.gradient_accumulation > 1 else plan.batch_size
    most = "" if plan.stop == "never" else "at most "
    lines = [f"{plan.base} on {plan.device}: {most}{plan.steps} steps of batch {batch}"]
    lines += [f"pictures  {plan.pictures}: {sizes}"]
    lines += [
        f"          {pluralize(one['images'], 'picture'):>12} of {one['label']}, {one['share']:.0%} of an epoch"
        for one in plan.concepts
    ]
    lines += plan.told
    lines += [f"time      {most}{format_duration(sum(plan.seconds.values()))}"]
    lines += [f"          {format_duration(seconds):>10}  {name}" for name, seconds in plan.seconds.items() if seconds]
    growth = ", by how much a process grows" if plan.device == "cpu" else ""
    lines += [f"          a step takes {plan.step_seconds:.3g} s, measured at the largest size"]
    lines += [f"memory    {format_bytes(plan.memory)} at the peak, measured{growth}"]
    lines += [f"          {format_bytes(plan.counted)} of steps and encoding, counted; less with each saving added:"]
    lines += [
        f"          {format_bytes(saving['needs']):>10}  {as_flags(saving['changes'])} ({saving['costs']})"
        for saving in plan.rungs
    ]
    lines += [f"disk      {format_bytes(sum(plan.disk.values()))} at most"]
    return lines + [f"          {format_bytes(number):>10}  {name}" for name, number in plan.disk.items() if number]


def require_startable(config: TrainConfig, processes: int = 1) -> None:
    """Raise what a run of ``config`` in so many processes would fail with: its base, packages or images."""
    require_alone(config, processes)
    config.train.require_rate()
    locate_base(config.model.base)
    require_precision(config.train.precision, config.train.device)
    for setting, package, instead in _packages(config):
        if find_spec(package) is None:
            raise missing_package(setting, package, instead)
    require_held_out(config.train, load_concepts(config.all_concepts).held_out)


def require_alone(config: TrainConfig, processes: int) -> None:
    """Raise ConfigError where several processes would have to fit into ``train.memory``."""
    if processes > 1 and config.train.memory is not None:
        raise ConfigError(
            "train.memory: several processes cannot choose together; take what `sdlora plan` says with it instead"
        )


def _packages(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """Yield the settings that need an optional package, the package, and the value that does without."""
    if config.model.quantize == "nf4":
        yield "model.quantize: nf4", "bitsandbytes", "int8"
    if config.optimizer.name == "adamw8bit":
        yield "optimizer.name: adamw8bit", "bitsandbytes", "adamw"
    if config.train.tensorboard:
        yield "train.tensorboard: true", "tensorboard", "false"
    if config.train.wandb:
        yield "train.wandb: true", "wandb", "false"
