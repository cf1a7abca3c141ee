"""The config of a run from the form: the preset for base and kind, with the changes of the user."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sdlora.api.models import locate_base
from sdlora.api.training import RunEstimate, preset_for
from sdlora.config import TrainConfig
from sdlora.data.concept_values import CONCEPTS
from sdlora.data.concepts import replace_words, trigger_words
from sdlora.data.dataset import MIN_IMAGES
from sdlora.data.held_out import held_out_count
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.settings import Data, Kind, suggested_steps
from sdlora.errors import ConfigError, DatasetError, SdloraError
from sdlora.formatting import format_bytes, format_duration

QUALITY = {"Quick": 0.5, "Balanced": 1.0, "Best": 2.0}
"""Factors on the steps of the preset, or on those suggested by the number of pictures."""
STOPS = 4
"""Checkpoints and previews of a run, besides the preview before its first step."""
DERIVED = {
    "train.steps": "from the quality",
    "checkpoint.every": "a quarter of the steps",
    "sample.every": "a quarter of the steps",
    "prior.class_prompt": "as the captions say",
}
"""Settings that the page derives for every run, and from what."""


def load_preset(base: str, kind: Kind) -> TrainConfig:
    """Return the preset for ``base``, with its own pictures and words."""
    return TrainConfig.load(preset_for(base, kind))


def suggested_words(base: str, kind: Kind) -> ProjectInfo:
    """Return the words of the preset, without a class: nobody but the user knows what the subject is."""
    return ProjectInfo(kind, load_preset(base, kind).data.trigger)


def preview_prompts(base: str, about: ProjectInfo) -> list[str]:
    """Return the preset's two preview prompts with the project's words."""
    source = load_preset(base, about.kind)
    if not source.sample.prompts:
        source = load_preset("pocket", about.kind)
    words = {source.data.trigger: about.trigger, source.data.class_name: about.class_name}
    return [replace_words(prompt, words) for prompt in source.sample.prompts[:2]]


def preview_prompts_of_all(base: str, projects: Sequence[ProjectInfo]) -> list[str]:
    """Return two preview prompts: the preset's of one project, or the first one of each of the first two."""
    if len(projects) == 1:
        return preview_prompts(base, projects[0])
    return [preview_prompts(base, about)[0] for about in projects[:2]]


def data_settings(project: Project, base: str, changes: Mapping[str, Any]) -> Data:
    """Return the data settings of a run on ``project`` with these ``changes``, as far as they are valid."""
    own = project.data()
    words = {f"data.{name}": getattr(own, name) for name in ("folder", "trigger", "class_name")}
    for valid in (changes, {}):  # Of wrong changes, the form says what is wrong.
        with suppress(SdloraError):
            return TrainConfig.load(preset_for(base, own.kind), {**words, "data.prompt": "", **valid}).data
    return own


def configure(
    project: Project,
    about: ProjectInfo,
    base: str,
    quality: str,
    prompts: Sequence[str],
    changes: Mapping[str, Any],
    others: Sequence[Project] = (),
) -> TrainConfig:
    """Return the config of a run on ``project`` and on ``others`` beside it, each of which is a concept of its own.

    Raises DatasetError or ConfigError with a remedy.
    """
    sets = [(project, about), *((other, other.info or ProjectInfo()) for other in others)]
    for number, (each, words) in enumerate(sets):
        _require_ready(each, words, f"The project {each.name}: " if number else "")
    if not base.strip():
        raise ConfigError("Choose a base model, such as pocket.")
    locate_base(base)
    kind: Kind = "subject" if any(words.kind == "subject" for _, words in sets) else "style"
    share = _parse_share(changes.get("data.validation_share"))
    usual = sum(
        _steps(load_preset(base, words.kind), _trained(each, share), words.kind, QUALITY[quality])
        for each, words in sets
    )
    steps = _parse_steps(changes.get("train.steps")) or usual
    every = max(1, steps // STOPS)
    chosen = [" ".join(prompt.split()) for prompt in prompts if prompt.strip()]
    values = {
        "model.base": base,
        "prior.class_prompt": "",  # the captions say it
        "train.steps": steps,
        "train.epochs": None,
        "checkpoint.every": every,
        "sample.every": every if chosen else 0,
        "sample.prompts": chosen,
    }
    values |= _words_of_one(project, about) if len(sets) == 1 else {CONCEPTS: [_concept(base, *one) for one in sets]}
    return TrainConfig.load(preset_for(base, kind), {**values, **changes})


def _require_ready(project: Project, about: ProjectInfo, prefix: str) -> None:
    """Raise DatasetError or ConfigError, naming the project by ``prefix``, unless a run can learn from it."""
    if len(project.images()) < MIN_IMAGES:
        where = "to it first" if prefix else "first"
        raise DatasetError(f"{prefix}Add at least {MIN_IMAGES} pictures {where}, on the tab Pictures; ten are better.")
    if not about.trigger.strip():
        raise ConfigError(
            f"{prefix}Give a trigger word on the tab Pictures, such as ohwx: it will call what is learnt."
        )
    if about.kind == "subject" and not about.class_name.strip():
        raise ConfigError(f"{prefix}Say on the tab Pictures what the subject is, such as cat.")


def _words_of_one(project: Project, about: ProjectInfo) -> dict[str, Any]:
    """Return the settings of the one project of a run."""
    return {
        "data.folder": str(project.folder),
        "data.trigger": about.trigger,
        "data.class_name": about.subject_class,
    }


def _concept(base: str, project: Project, about: ProjectInfo) -> dict[str, Any]:
    """Return one of several projects as a concept; it preserves its class as the preset for its kind does."""
    words = {name.removeprefix("data."): value for name, value in _words_of_one(project, about).items()}
    return {**words, "prior_weight": load_preset(base, about.kind).prior.weight}


def _trained(project: Project, share: float) -> int:
    """Return how many images of ``project`` are trained on if a ``share`` is held out."""
    images = len(project.images())
    return images - held_out_count(images, share)


def _parse_share(text: Any) -> float:
    """Return ``text`` as a share; 0 if it is none, which the config then refuses by name."""
    try:
        return min(max(0.0, float(text)), 0.99)
    except (TypeError, ValueError):
        return 0.0


def _parse_steps(text: Any) -> int:
    """Return ``text`` as a number of steps; 0 if it is none, which the config then refuses by name."""
    try:
        return max(0, int(text))
    except (TypeError, ValueError):
        return 0


def _steps(preset: TrainConfig, pictures: int, kind: Kind, factor: float) -> int:
    batch = preset.train.batch_size * preset.train.gradient_accumulation
    usual = preset.train.steps or suggested_steps(pictures, kind, batch)
    return max(10, round(usual * factor / 10) * 10)


def describe_plan(config: TrainConfig, pictures: int) -> str:
    """Describe what Train would do."""
    steps = config.train.steps or 0
    fewer = "" if config.train.stop == "never" else ", fewer if it stops early"
    looks = steps * config.train.batch_size * config.train.gradient_accumulation / max(1, pictures)
    if config.concepts:
        words = " and ".join(trigger_words(config.concepts))
        seen = f"{pictures} pictures, seen {looks:.0f} times on average"
        return f"{steps} steps{fewer} · {words} have about the same share · {seen}"
    return f"{steps} steps{fewer} · each of {pictures} pictures is seen about {looks:.0f} times"


def describe_estimate(found: RunEstimate) -> str:
    """Describe time and memory and how they are known; "" if they are unknown."""
    if found.seconds is None:
        return ""
    if found.measured is None:
        return f"about {format_duration(found.seconds)}, as earlier runs with these settings took"
    measured, memory = found.measured, f" · about {format_bytes(found.memory or 0)}"
    where = f"{measured.width} x {measured.height} on {measured.device}"
    return f"about {format_duration(found.seconds)}{memory}, measured: {measured.step:.2g} s a step of {where}"


def describe_disk(bytes_of: Mapping[str, int]) -> str:
    """Describe the disk use of a run: ``at most 72.5 MiB of disk: 35.3 MiB states, 29.6 MiB checkpoints, ...``."""
    largest = sorted(bytes_of.items(), key=lambda item: -item[1])
    named, others = largest[:2], sum(number for _, number in largest[2:])
    parts = [f"{format_bytes(number)} {name}" for name, number in [*named, ("others", others)]]
    return f"at most {format_bytes(sum(bytes_of.values()))} of disk: {', '.join(parts)}"
