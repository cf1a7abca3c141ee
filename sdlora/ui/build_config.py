"""From what a person chose on the page to a config: the preset of the base and kind, and what they changed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdlora.api.models import locate_base
from sdlora.api.training import RunEstimate, preset_for
from sdlora.config import TrainConfig
from sdlora.data.dataset import MIN_IMAGES
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.step_heuristics import Kind, suggested_steps
from sdlora.errors import ConfigError, DatasetError
from sdlora.formatting import format_bytes, format_duration

QUALITY = {"Quick": 0.5, "Balanced": 1.0, "Best": 2.0}
"""Steps, as a multiple of what the preset or the number of pictures asks for."""
STOPS = 4
"""Checkpoints and previews over a run, beside the preview before its first step."""
DERIVED = {
    "train.steps": "from the quality",
    "checkpoint.every": "a quarter of the steps",
    "sample.every": "a quarter of the steps",
    "prior.class_prompt": "as the captions say",
}
"""Settings that the page decides for every run anew, and how."""


def load_preset(base: str, kind: Kind) -> TrainConfig:
    """The preset for ``base``, with its own pictures and words still in it."""
    return TrainConfig.load(preset_for(base, kind))


def suggested_words(base: str, kind: Kind) -> ProjectInfo:
    """The words that the preset would use."""
    data = load_preset(base, kind).data
    return ProjectInfo(kind, data.trigger, data.class_name)


def preview_prompts(base: str, about: ProjectInfo) -> list[str]:
    """Two prompts for previews: the preset's, in the project's words."""
    source = load_preset(base, about.kind)
    if not source.sample.prompts:
        source = load_preset("pocket", about.kind)
    words = {source.data.trigger: about.trigger, source.data.class_name: about.class_name}
    return [_reworded(prompt, words) for prompt in source.sample.prompts[:2]]


def _reworded(prompt: str, words: Mapping[str, str]) -> str:
    """``prompt`` with each word replaced, in one pass, where there is something to replace it with."""
    known = [re.escape(old) for old, new in words.items() if old and new]
    return re.sub("|".join(known), lambda match: words[match.group()], prompt) if known else prompt


def configure(
    project: Project, about: ProjectInfo, base: str, quality: str, prompts: Sequence[str], changes: Mapping[str, Any]
) -> TrainConfig:
    """The config of a run. Raises DatasetError or ConfigError with what a person can do about it."""
    pictures = project.images()
    if len(pictures) < MIN_IMAGES:
        raise DatasetError(f"Add at least {MIN_IMAGES} pictures first, on the tab Pictures; ten are better.")
    if not about.trigger.strip():
        raise ConfigError("Give a trigger word on the tab Pictures, such as ohwx: it will call what is learnt.")
    if about.kind == "subject" and not about.class_name.strip():
        raise ConfigError("Say on the tab Pictures what the subject is, such as cat.")
    if not base.strip():
        raise ConfigError("Choose a base model, such as pocket.")
    locate_base(base)
    known = load_preset(base, about.kind)
    steps = _whole(changes.get("train.steps")) or _steps(known, len(pictures), about.kind, QUALITY[quality])
    every = max(1, steps // STOPS)
    chosen = [" ".join(prompt.split()) for prompt in prompts if prompt.strip()]
    values = {
        "model.base": base,
        "data.folder": str(project.folder),
        "data.trigger": about.trigger,
        "data.class_name": about.class_name if about.kind == "subject" else "",
        "prior.class_prompt": "",  # the captions say it
        "train.steps": steps,
        "train.epochs": None,
        "checkpoint.every": every,
        "sample.every": every if chosen else 0,
        "sample.prompts": chosen,
    }
    return TrainConfig.load(preset_for(base, about.kind), {**values, **changes})


def _whole(text: Any) -> int:
    """``text`` as a number of steps; 0 for what is none, which the config then refuses by name."""
    try:
        return max(0, int(text))
    except (TypeError, ValueError):
        return 0


def _steps(known: TrainConfig, pictures: int, kind: Kind, factor: float) -> int:
    batch = known.train.batch_size * known.train.gradient_accumulation
    usual = known.train.steps or suggested_steps(pictures, kind, batch)
    return max(10, round(usual * factor / 10) * 10)


def describe_plan(config: TrainConfig, pictures: int) -> str:
    """What a click on Train would do."""
    steps = config.train.steps or 0
    looks = steps * config.train.batch_size * config.train.gradient_accumulation / max(1, pictures)
    return f"{steps} steps · each of {pictures} pictures is seen about {looks:.0f} times"


def describe_estimate(found: RunEstimate) -> str:
    """How long it will take and with how much memory, and how that is known; nothing where it is not."""
    if found.seconds is None:
        return ""
    if found.measured is None:
        return f"about {format_duration(found.seconds)}, as earlier runs with these settings took"
    measured, memory = found.measured, f" · about {format_bytes(found.memory or 0)}"
    place = f"{measured.width} x {measured.height} on {measured.device}"
    return f"about {format_duration(found.seconds)}{memory}, measured: {measured.step:.2g} s a step of {place}"


def describe_disk(bytes_of: Mapping[str, int]) -> str:
    """What a run writes: ``at most 72.5 MiB of disk: 35.3 MiB states to resume from, 29.6 MiB checkpoints, ...``."""
    largest = sorted(bytes_of.items(), key=lambda item: -item[1])
    named, others = largest[:2], sum(number for _, number in largest[2:])
    parts = [f"{format_bytes(number)} {name}" for name, number in [*named, ("others", others)]]
    return f"at most {format_bytes(sum(bytes_of.values()))} of disk: {', '.join(parts)}"
