"""Estimate of an evaluation: how many images it compares, and the time by the pace of the run's previews. No torch."""

import statistics
from typing import NamedTuple

from sdlora.config import TrainConfig
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.settings import COPY_SEEDS, EvaluationSettings
from sdlora.events import Progress, SampleReady
from sdlora.jobs.evaluation_plan import choose_steps, concept_data, plan_prompts
from sdlora.storage.run_folder import Run


class EvaluationEstimate(NamedTuple):
    """Images and time of an evaluation, if none of its images is there yet."""

    images: int
    checkpoints: tuple[int, ...]
    """Steps of the checkpoints that are compared."""
    prompts: EvaluationPrompts
    seconds: float | None
    """Time to generate the images; None for a run without previews."""


def estimate_evaluation(run: Run, settings: EvaluationSettings) -> EvaluationEstimate:
    """Estimate an evaluation of ``run``.

    Raises ConfigError for a run without checkpoints or a concept that it does not have, DatasetError for its images.
    """
    config, steps = run.config, choose_steps(run, settings.checkpoints)
    data = concept_data(config, settings.concept)
    prompts = plan_prompts(config.model.base, data, settings, config.sample.prompts)
    images, pace = count_images(prompts, len(steps), settings), _seconds_a_step(run, config)
    return EvaluationEstimate(images, tuple(steps), prompts, None if pace is None else images * settings.steps * pace)


def count_images(prompts: EvaluationPrompts, adapters: int, settings: EvaluationSettings) -> int:
    """Return how many images are compared: those of the base, and of each of ``adapters`` at each scale; and, at one
    scale, one image for each caption that is asked for.
    """
    everywhere = len(prompts.all) * settings.seeds
    return everywhere * (1 + adapters * len(settings.scales)) + len(prompts.captions) * COPY_SEEDS * (1 + adapters)


def _seconds_a_step(run: Run, config: TrainConfig) -> float | None:
    """Return the median seconds of a sampling step of the run's previews, decoding included; None if it has none."""
    began, found = 0.0, []
    for event in run.events():
        if isinstance(event, Progress) and event.phase == "preview":
            began = event.time
        elif isinstance(event, SampleReady):
            if began and event.time >= began:
                found.append(event.time - began)
            began = 0.0  # An image that is only reported again has no beginning.
    return statistics.median(found) / config.sample.steps if found else None
