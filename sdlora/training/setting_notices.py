"""Sentences on a run's settings: those that another one makes idle, and what has changed since its last state."""

from collections.abc import Iterator
from typing import Any

from sdlora import checkpoint
from sdlora.data.concept_values import PATHS
from sdlora.data.concepts import concept_label, preserves_classes
from sdlora.data.settings import Data
from sdlora.formatting import one_line
from sdlora.training.concept_overlap import concept_texts
from sdlora.training.train_job import TrainJob

LEARNING = ("model", "data", "prior", "adapter", "train", "loss", "optimizer", "schedule")
"""Sections of settings that decide what is learnt."""
COMPARED_ELSEWHERE = frozenset(
    ("model.base", "data.folder", "data.validation_folder", "prior.folder", "train.steps", "train.epochs")
)
"""Settings that may differ in a resume, or of which the content is compared."""


def length_notices(job: TrainJob, state: checkpoint.State, steps: int) -> Iterator[str]:
    """A sentence on a length that is not what it was when ``state`` was saved."""
    before = state.values.get("steps", steps)
    if before != steps:
        moves = "" if job.schedule.name == "constant" else f"; its rate is that of a {job.schedule.name} run of {steps}"
        yield f"this run goes on from step {state.step} to {steps}, where it was to end at {before}{moves}"


def learning_settings(job: TrainJob) -> dict[str, Any]:
    """Return the settings that decide what a run learns, but for its length and for what is compared by content."""
    sections = (getattr(job, name) for name in LEARNING)
    named = zip(LEARNING, (section.model_dump(mode="json") for section in sections), strict=True)
    found = {f"{section}.{name}": value for section, values in named for name, value in values.items()}
    for number, concept in enumerate(job.concepts, 1):
        values = concept.model_dump(mode="json", exclude={*PATHS})
        found |= {f"concept {number}: {name}": value for name, value in values.items()}
    return {name: value for name, value in found.items() if name not in COMPARED_ELSEWHERE}


def changed_settings(job: TrainJob, state: checkpoint.State) -> Iterator[str]:
    """A sentence on the settings that are not what they were when ``state`` was saved, whoever has changed them."""
    before, now = state.values.get("settings"), learning_settings(job)
    if not isinstance(before, dict):  # Version 0.1.0 saved none.
        return
    changed = [name for name in now if name in before and now[name] != before[name]]
    if changed:
        told = ", ".join(f"{name} = {now[name]} for {one_line(str(before[name]), 40)}" for name in changed)
        yield f"this run goes on with other settings than before: {told}"


def ignored_settings(job: TrainJob, steps: int) -> Iterator[str]:
    """A sentence on each setting that a run of so many ``steps`` does not heed, as another setting has it."""
    yield from _ignored_prior(job)
    concepts = job.all_concepts
    varied = any(concept.shuffle_captions or concept.tag_dropout for concept in concepts)
    if job.data.keep_tokens != 1 and not varied:
        yield "data.keep_tokens is not used: neither data.shuffle_captions nor data.tag_dropout is on"
    if job.data.random_crop and job.data.variants == 1:
        yield "data.random_crop cuts the centre alone: data.variants is 1; set it to 2 or more"
    if job.data.crop_margin != Data.model_fields["crop_margin"].default and all(one.crop == "none" for one in concepts):
        yield "data.crop_margin is not used: data.crop is none; set it to subject"
    if job.loss.concept_overlap and len(concept_texts(concepts)) < 2:
        yield "loss.concept_overlap is not used: fewer than two concepts have a trigger"
    if job.train.text_encoder_learning_rate and not job.adapter.text_encoder:
        yield "train.text_encoder_learning_rate is not used: adapter.text_encoder is off"
    if job.optimizer.name == "schedulefree" and job.schedule.name != "constant":
        yield f"schedule.name = {job.schedule.name} takes from schedulefree what it is for; set it to constant"
    if job.schedule.warmup_steps >= steps:
        yield f"schedule.warmup_steps: the rate never reaches its full height in {steps} steps; lower it"


def _ignored_prior(job: TrainJob) -> Iterator[str]:
    """A sentence on each setting of class images that are not used."""
    concepts = job.all_concepts
    for index, concept in enumerate(job.concepts):
        for name in ("class_folder", "class_prompt"):
            if getattr(concept, name) and not concepts[index].prior_weight:
                label = concept_label(index, concept)
                yield f"{label}: {name} is not used: prior_weight is 0; set it to 1 to preserve the class"
    if job.prior.outside_masks and not any(concept.masks for concept in concepts):
        yield "prior.outside_masks is not used: data.masks is off"
    if preserves_classes(concepts):
        return
    for name in ("folder", "class_prompt"):
        if getattr(job.prior, name):
            yield f"prior.{name} is not used: prior.weight is 0; set it to 1 to preserve the class"
    if job.prior.target == "base":
        yield "prior.target is not used: prior.weight is 0; set it to 1 to preserve the class"
