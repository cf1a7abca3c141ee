"""Endpoints for the evaluation of a run's checkpoints: start it, follow it, stop it, and take what it proposes."""

from dataclasses import asdict
from typing import Any, TypedDict

from gradio.data_classes import FileData

from sdlora.api.evaluation import (
    EvaluationSettings,
    candidate_to_take,
    evaluation_estimate,
    evaluation_sheet,
    evaluation_stamp,
    outdated_evaluation,
    read_evaluation,
    use_proposal,
)
from sdlora.api.training import Run
from sdlora.errors import ConfigError
from sdlora.ui.app_state import AppState
from sdlora.ui.endpoint_arguments import returned_file, takes_settings
from sdlora.ui.evaluated import EvaluatedRun
from sdlora.ui.evaluation_panel import device_settings, start

CHOSEN = tuple(name for name in EvaluationSettings.model_fields if name not in ("device", "batch_size"))
"""Settings that a program chooses; how the device is used comes from the server."""


class EvaluationStatus(TypedDict):
    """State of a run's evaluation: none, running, finished, stopped or failed, with the reason in ``message``.

    ``result`` has the fields of ``evaluation.json``, and None where the run has no evaluation yet; ``outdated`` says
    where it does not fit the run's checkpoints any more. ``seconds_left`` is None while unknown.
    """

    run: str
    state: str
    phase: str
    done: int
    total: int
    seconds_left: float | None
    message: str
    result: dict[str, Any] | None
    outdated: list[str]
    sheet: FileData | None


class StartedEvaluation(TypedDict):
    """Number of images of an evaluation that was started, and about how many seconds they take, None if unknown."""

    run: str
    images: int
    seconds: float | None
    prompts: list[str]


class UsedAdapter(TypedDict):
    """An adapter that is a checkpoint at a preferred scale."""

    run: str
    step: int
    scale: float


class EvaluationEndpoints:
    """Functions that programs may call."""

    def __init__(self, app: AppState):
        self.app = app

    @takes_settings(EvaluationSettings, names=CHOSEN, first=("run", "checkpoints", "scales", "prompts"))
    def evaluate(self, run: str, **settings: Any) -> StartedEvaluation:
        """Start to compare a run's checkpoints by what they generate; it waits while the device is in use.

        Args:
            run: Name of the run.
        """
        found = self._run(run)
        checked = EvaluationSettings.checked(**settings, **device_settings(self.app))
        estimate = evaluation_estimate(found, checked)
        start(self.app, self._evaluated(found), checked)
        return StartedEvaluation(
            run=found.name, images=estimate.images, seconds=estimate.seconds, prompts=[*estimate.prompts.all]
        )

    def evaluation(self, run: str, sheet: bool = False) -> EvaluationStatus:
        """Return the state of a run's evaluation, and its newest result. The call is cheap without the sheet.

        Args:
            run: Name of the run.
            sheet: Whether to return the contact sheet as a file.
        """
        found = self._run(run)
        now, there = self.app.evaluations.of(self._evaluated(found)), evaluation_stamp(found) is not None
        image = evaluation_sheet(found) if sheet else None
        return EvaluationStatus(
            run=found.name, state=now.state if now else "finished" if there else "none",
            phase=now.progress.phase if now else "", done=now.progress.done if now else 0,
            total=now.progress.total if now else 0, seconds_left=now.left if now else None,
            message=now.message if now else "", result=asdict(read_evaluation(found)) if there else None,
            outdated=outdated_evaluation(found) if there else [], sheet=returned_file(image) if image else None,
        )  # fmt: skip

    def stop_evaluation(self, run: str) -> EvaluationStatus:
        """Stop a run's evaluation. The images made so far are kept, and the next one goes on from there.

        Args:
            run: Name of the run.
        """
        found = self._run(run)
        now = self.app.evaluations.of(self._evaluated(found))
        if now is None or now.state != "running":
            raise ConfigError(f"{found.name}: no evaluation of it runs.")
        now.stop()
        return self.evaluation(found.name)

    def use_proposal(self, run: str, candidate: int | None = None) -> UsedAdapter:
        """Make what a run's evaluation proposes its adapter, with the scale as preferred weight.

        Args:
            run: Name of the run.
            candidate: Number of another one of the result's candidates, counted from 0.
        """
        found = self._run(run)
        taken = candidate_to_take(found, candidate)
        use_proposal(found, candidate)
        self.app.refresh()
        return UsedAdapter(run=found.name, step=taken.step, scale=taken.scale)

    def _evaluated(self, run: Run) -> EvaluatedRun:
        return EvaluatedRun(run, self.app.queue)

    def _run(self, name: str) -> Run:
        snapshot = self.app.refresh()
        found = self.app.run(name)
        if found is None:
            raise ConfigError(f"There is no run {name!r}; there are: {', '.join(snapshot.runs) or 'none yet'}.")
        return found
