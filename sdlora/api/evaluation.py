"""Evaluation of a run's checkpoints: prompts, the job, its result, and taking what it proposes."""

from collections.abc import Iterable
from pathlib import Path

from sdlora.api.adapters import use_checkpoint
from sdlora.errors import ConfigError
from sdlora.evaluation.encoder_sources import POCKET as POCKET
from sdlora.evaluation.encoder_sources import EncoderNames as EncoderNames
from sdlora.evaluation.encoder_sources import missing_encoders as missing_encoders
from sdlora.evaluation.encoder_sources import require_encoders
from sdlora.evaluation.figures import MEASURES as MEASURES
from sdlora.evaluation.figures import Candidate as Candidate
from sdlora.evaluation.figures import Figure as Figure
from sdlora.evaluation.prompts import EvaluationPrompts as EvaluationPrompts
from sdlora.evaluation.proposal import Alarm as Alarm
from sdlora.evaluation.proposal import Proposal as Proposal
from sdlora.evaluation.report import FILE, FOLDER, result_sheet, result_stamp
from sdlora.evaluation.report import Evaluation as Evaluation
from sdlora.evaluation.report import read_evaluation as _read_evaluation
from sdlora.evaluation.settings import EvaluationSettings as EvaluationSettings
from sdlora.evaluation.table import evaluation_table as evaluation_table
from sdlora.evaluation.table import format_figure as format_figure
from sdlora.events import OnEvent, ignore
from sdlora.filesystem.reading import modified_ns
from sdlora.jobs.evaluation_estimate import EvaluationEstimate as EvaluationEstimate
from sdlora.jobs.evaluation_estimate import estimate_evaluation
from sdlora.jobs.evaluation_plan import choose_steps, concept_data, find_concept, plan_encoders, plan_prompts
from sdlora.jobs.tool_process import EvaluationJob as EvaluationJob
from sdlora.section import quote_value
from sdlora.storage.run_folder import Run

DEFAULTS = EvaluationSettings()


def evaluation_prompts(run: Run, settings: EvaluationSettings = DEFAULTS) -> EvaluationPrompts:
    """Return the prompts that an evaluation of ``run`` would use: those of ``settings``, the others as proposed.

    Raises ConfigError for a concept that the run does not have, DatasetError for unusable training images.
    """
    config = run.config
    data = concept_data(config, settings.concept)
    return plan_prompts(config.model.base, data, settings, config.sample.prompts)


def evaluation_estimate(run: Run, settings: EvaluationSettings = DEFAULTS) -> EvaluationEstimate:
    """Estimate the number of images of an evaluation of ``run``, and its time; images of an earlier one come off.

    Raises ConfigError for a run without checkpoints or a concept that it does not have, DatasetError.
    """
    return estimate_evaluation(run, settings)


def evaluation_encoders(run: Run, settings: EvaluationSettings = DEFAULTS) -> EncoderNames:
    """Return the names of the models that an evaluation of ``run`` compares images with, and images with prompts.

    ``missing_encoders`` tells which of them would be downloaded. Raises ConfigError for a concept that the run does
    not have, ModelError for what is no encoder.
    """
    names = plan_encoders(run.config.model.base, find_concept(run.config, settings.concept).kind, settings)
    require_encoders(names)
    return names


def evaluation_job(run: Run, settings: EvaluationSettings = DEFAULTS) -> EvaluationJob:
    """Return the job that evaluates the checkpoints of ``run``, which has not started.

    Raises ConfigError for a run without checkpoints, or a setting that does not go with it, ModelError for what is no
    encoder.
    """
    run.require_there()
    choose_steps(run, settings.checkpoints)
    evaluation_encoders(run, settings)
    return EvaluationJob(run.folder, settings, run.data_dir)


def evaluate_run(run: Run, settings: EvaluationSettings = DEFAULTS, on_event: OnEvent = ignore) -> Evaluation:
    """Evaluate the checkpoints of ``run`` in a process of its own, and return the result.

    Images that an earlier evaluation generated are reused. Raises as ``evaluation_job`` does, ModelError for a base or
    an encoder that cannot be loaded, DatasetError for unusable training images.
    """
    evaluation_job(run, settings).finish(on_event)
    return read_evaluation(run)


def read_evaluation(run: Run) -> Evaluation:
    """Return the newest evaluation of ``run``. Raises ConfigError if there is none, FormatError if it is damaged."""
    return _read_evaluation(run.folder / FOLDER)


def evaluation_stamp(run: Run) -> tuple[int, int] | None:
    """Return what changes with each evaluation of ``run``; None if there is none."""
    return result_stamp(run.folder / FOLDER)


def evaluation_sheet(run: Run) -> Path | None:
    """Return the contact sheet of the newest evaluation of ``run``; None if there is none."""
    return result_sheet(run.folder / FOLDER)


def outdated_evaluation(run: Run) -> list[str]:
    """Say where the newest evaluation of ``run`` does not fit its checkpoints any more; empty if it does.

    Raises as ``read_evaluation`` does.
    """
    evaluated = {candidate.step for candidate in read_evaluation(run).candidates}
    files, written = run.checkpoint_files(), modified_ns(run.folder / FOLDER / FILE)
    newer = {step for step, path in files.items() if modified_ns(path) > written}
    told = {
        "gone since": evaluated - files.keys(),
        "changed since": evaluated & newer,
        "saved since": newer - evaluated,
    }
    return [f"{_steps(steps)} {what}" for what, steps in told.items() if steps]


def _steps(steps: Iterable[int]) -> str:
    ordered = sorted(steps)
    return f"{'checkpoint' if len(ordered) == 1 else 'checkpoints'} {', '.join(map(str, ordered))}"


def candidate_to_take(run: Run, number: int | None = None) -> Candidate:
    """Return what the newest evaluation of ``run`` proposes, or another one of its candidates by its ``number``.

    Raises ConfigError if nothing is proposed, or there is no such candidate, and as ``read_evaluation`` does.
    """
    evaluation = read_evaluation(run)
    taken = evaluation.proposal.chosen if number is None else number
    if taken is None:
        raise ConfigError(f"{run.name}: its evaluation proposes no checkpoint; choose one by its pictures")
    if not 0 <= taken < len(evaluation.candidates):
        raise ConfigError(f"candidate {quote_value(taken)}: the evaluation has 0 to {len(evaluation.candidates) - 1}")
    return evaluation.candidates[taken]


def use_proposal(run: Run, number: int | None = None) -> Path:
    """Make the ``candidate_to_take`` the adapter of ``run``, with its scale as preferred weight; return the file.

    Raises as that does, and as ``use_checkpoint`` does.
    """
    chosen = candidate_to_take(run, number)
    return use_checkpoint(run, chosen.step, chosen.scale)
