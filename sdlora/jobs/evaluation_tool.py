"""The tools that evaluate a run's checkpoints, and adapter files. They need torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora.data.dataset import Example
from sdlora.errors import SdloraError
from sdlora.evaluation import evaluate as evaluation
from sdlora.evaluation.drawing import EvaluatedAdapter
from sdlora.evaluation.report import FILE, FOLDER, SHEET
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.events import Notice, OnEvent
from sdlora.families.settings import Model, base_settings
from sdlora.generation.device import choose_device
from sdlora.generation.settings import ImageSettings
from sdlora.jobs.evaluation_files import AdapterFiles, read_files
from sdlora.jobs.evaluation_plan import (
    ConceptData,
    choose_steps,
    concept_data,
    plan_encoders,
    plan_prompts,
    plan_sampling,
    sampled_as,
    trained_as,
)
from sdlora.jobs.held_device import hold_device
from sdlora.storage.run_folder import Run
from sdlora.training.trackers import EVALUATION_SHEET, reopened_trackers


def evaluate(request: Mapping[str, Any], report: OnEvent) -> str:
    """Evaluate the checkpoints of a run, and return the path of the file with the result.

    Raises ConfigError for a run without checkpoints, and what ``sdlora.evaluation.evaluate`` raises.
    """
    settings, run = EvaluationSettings.checked(**request["settings"]), Run(Path(request["run"]))
    task = evaluation_task(run, settings, report)
    with hold_device(choose_device(settings.device), Path(request["data_dir"]), report):
        found = evaluation.evaluate(task, report)
        _track(run, task.folder / SHEET, max(each.step for each in found.candidates), report)
    return str(task.folder / FILE)


def evaluate_files(request: Mapping[str, Any], report: OnEvent) -> str:
    """Evaluate adapter files as the checkpoints of a run, and return the path of the file with the result.

    Raises what ``sdlora.evaluation.evaluate`` raises.
    """
    settings, files = EvaluationSettings.checked(**request["settings"]), read_files(request["files"])
    data_dir = Path(request["data_dir"])
    task = files_task(files, settings, data_dir, report)
    with hold_device(choose_device(settings.device), data_dir, report):
        evaluation.evaluate(task, report)
    return str(task.folder / FILE)


def files_task(
    files: AdapterFiles, settings: EvaluationSettings, data_dir: Path, report: OnEvent
) -> evaluation.EvaluationTask:
    """Return the task of evaluating adapter ``files``."""
    data = files.load()
    return evaluation.EvaluationTask(
        name=files.files[0][0],
        model=Model(base=files.base, **files.base_settings),
        kind=files.kind,
        adapters=[EvaluatedAdapter(*file) for file in files.files],
        training=_training_images(data, report),
        prompts=plan_prompts(files.base, data, settings),
        trigger=files.trigger,
        trained_as=trained_as(data),
        sampling=sampled_as(ImageSettings(), settings),
        encoders=plan_encoders(files.base, files.kind, settings),
        settings=settings,
        folder=files.folder(data_dir),
    )


def _track(run: Run, sheet: Path, step: int, report: OnEvent) -> None:
    """Add the sheet to the trackers that the run has; one that cannot be reached is told only."""
    train = run.config.train
    if not (train.tensorboard or train.wandb):
        return
    try:
        with reopened_trackers(train, run) as trackers:
            trackers.log_image(EVALUATION_SHEET, sheet, step)
    except SdloraError as error:
        report(Notice(message=f"The sheet was not logged: {error}"))


def evaluation_task(run: Run, settings: EvaluationSettings, report: OnEvent) -> evaluation.EvaluationTask:
    """Return the task of evaluating ``run``. Raises FileError for a folder with links out of it, as a training does."""
    run.require_inside()
    config = run.config
    files, data = run.checkpoint_files(), concept_data(config, settings.concept)
    adapters = [
        EvaluatedAdapter(run.relative(files[step]), step, files[step])
        for step in choose_steps(run, settings.checkpoints)
    ]
    return evaluation.EvaluationTask(
        name=run.name,
        model=Model(base=config.model.base, **base_settings(config.model)),
        kind=data.concept.kind,
        adapters=adapters,
        training=_training_images(data, report),
        prompts=plan_prompts(config.model.base, data, settings, config.sample.prompts),
        trigger=data.concept.trigger,
        trained_as=trained_as(data),
        sampling=plan_sampling(config, settings),
        encoders=plan_encoders(config.model.base, data.concept.kind, settings),
        settings=settings,
        folder=run.folder / FOLDER,
    )


def _training_images(data: ConceptData, report: OnEvent) -> list[evaluation.TrainingImage]:
    """Return the images to compare with, evenly chosen where there are many."""
    examples, most = data.examples, evaluation.MOST_TRAINING_IMAGES
    if len(examples) > most:
        report(Notice(message=f"Compares with {most} of the {len(examples)} training pictures, evenly chosen."))
        examples = _evenly(examples, most)
    return [evaluation.TrainingImage(each.path, each.caption.split("\n")[0]) for each in examples]


def _evenly(examples: Sequence[Example], most: int) -> tuple[Example, ...]:
    return tuple(examples[number * len(examples) // most] for number in range(most))
