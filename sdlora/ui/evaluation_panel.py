"""Choose a checkpoint of a run: what an evaluation compares, its progress, its result, and taking a candidate.

The evaluation belongs to the run, not to the page: a reload and a second window find it, and its result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.evaluation import (
    Evaluation,
    EvaluationJob,
    EvaluationSettings,
    candidate_to_take,
    evaluation_encoders,
    evaluation_estimate,
    evaluation_job,
    evaluation_sheet,
    evaluation_stamp,
    missing_encoders,
    outdated_evaluation,
    read_evaluation,
    use_proposal,
)
from sdlora.api.training import Run
from sdlora.errors import BusyError, ConfigError, SdloraError
from sdlora.ui import evaluation_html, page_html, tools_panel
from sdlora.ui.app_state import ACTIVE, AppState
from sdlora.ui.evaluation_fields import LISTS, OF_RUN, evaluation_fields
from sdlora.ui.evaluation_jobs import Evaluating
from sdlora.ui.listeners import HIDDEN, LAST, Changes, Values

PURPOSE = (
    "Draws the same prompts with the base and with each checkpoint at several scales, measures the pictures, and "
    "proposes one checkpoint and scale, with reasons."
)
SHOW = """() => setTimeout(() => {
  if (document.querySelector("#evaluation-plan")?.offsetParent)
    document.querySelector("#evaluation").scrollIntoView({block: "nearest"});
}, 200)"""
"""Scrolls to the panel where it is unfolded."""


@dataclass(frozen=True)
class EvaluationPanel:
    """Components of the panel."""

    run: gr.Dropdown
    fold: gr.Accordion
    plan: gr.HTML
    fields: dict[str, Any]
    """Fields by the settings that they are of."""
    filled: gr.State
    """Name of the run, number of its concept, and the prompts, by their settings, that the fields were filled with."""
    is_open: gr.State
    go: gr.Button
    status: gr.HTML
    cancel: gr.Button
    result: gr.HTML
    candidate: gr.Dropdown
    use: gr.Button
    used: gr.HTML
    timer: gr.Timer

    @property
    def live(self) -> list[Block]:
        """Components that change as an evaluation goes on and ends."""
        return [self.status, self.cancel, self.go, self.timer, self.result, self.candidate, self.use]

    @property
    def outputs(self) -> list[Block]:
        """Components that a refresh of the page may update."""
        return [self.fold, self.used, *self.live]


def build(app: AppState, run: gr.Dropdown) -> EvaluationPanel:
    """Lay the panel out for the run that is chosen in ``run``, and wire it."""
    with gr.Accordion("Which checkpoint?", open=False, visible=False, elem_id="evaluation") as fold:
        tools_panel.purpose(PURPOSE)
        plan = gr.HTML(elem_id="evaluation-plan")
        with gr.Accordion("What is compared", open=False, elem_id="evaluation-settings"):
            fields = evaluation_fields()
        go = gr.Button("Compare the checkpoints", variant="primary", elem_id="evaluation-button")
    status = gr.HTML(elem_id="evaluation-status")
    cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="evaluation-cancel")
    result = gr.HTML(elem_id="evaluation-result")
    with gr.Row(equal_height=False, elem_classes="longer"):
        candidate = gr.Dropdown(
            [], label="Take", visible=False, interactive=True, elem_id="evaluation-candidate",
            info="The proposal, and those that no other beats in everything",
        )  # fmt: skip
        use = gr.Button("Use this", variant="primary", visible=False, elem_id="evaluation-use")
    panel = EvaluationPanel(
        run, fold, plan, fields, gr.State({}), gr.State(False), go, status, cancel, result, candidate, use,
        gr.HTML(elem_id="evaluation-used"), gr.Timer(1.0, active=False),
    )  # fmt: skip
    _wire(app, panel)
    return panel


def _wire(app: AppState, panel: EvaluationPanel) -> None:
    fields = list(panel.fields.values())
    inputs = {panel.run, panel.filled, panel.is_open, *fields}
    planned = [panel.plan, panel.filled, panel.is_open, *fields]
    panel.fold.expand(lambda: True, None, panel.is_open, **HIDDEN)
    panel.fold.collapse(lambda: False, None, panel.is_open, **HIDDEN)
    # A page that has just loaded knows its run before it knows that the panel was unfolded, or after: either plans.
    changes = [panel.is_open.change, panel.run.change, *(field.change for field in fields)]
    gr.on(changes, partial(_plan, app, panel, False), inputs, planned, **LAST)
    panel.go.click(partial(_start, app, panel), inputs, [panel.used, *panel.live], **HIDDEN)
    panel.cancel.click(partial(_cancel, app, panel), panel.run, panel.live, **HIDDEN)
    panel.timer.tick(partial(_poll, app, panel), panel.run, panel.live, **HIDDEN)


def open_from(app: AppState, panel: EvaluationPanel, event: Any, name: gr.State, wanted: gr.State) -> None:
    """After ``event``, unfold the panel for the run ``name``, if that is ``wanted``."""

    def unfold(values: Values) -> Values:
        if not (values[wanted] and values[name]):
            return gr.skip()
        planned = _plan(app, panel, True, {**values, panel.run: values[name]})
        return {**planned, panel.fold: gr.update(open=True), wanted: False}

    fields = list(panel.fields.values())
    outputs = [panel.fold, panel.plan, panel.filled, panel.is_open, wanted, *fields]
    event.then(unfold, {name, wanted, panel.run, panel.filled, panel.is_open, *fields}, outputs, **HIDDEN).then(
        None, js=SHOW, **HIDDEN
    )


def _plan(app: AppState, panel: EvaluationPanel, opens: bool, values: Values) -> Values:
    """Say what the evaluation takes, and fill in the proposed prompts where nobody has changed them."""
    run, filled = app.run(values[panel.run]), values[panel.filled]
    opens = opens or values[panel.is_open]
    if not opens or run is None or app.queue.state(run) in ACTIVE:
        return {panel.is_open: opens}
    fields, shown = panel.fields, Values({panel.is_open: True})
    if new := filled.get("run") != run.name:
        shown |= _begin(panel, run)
        values = {**values, **{fields[name]: "" for name in OF_RUN}, fields["concept"]: 1}
    if new or filled["concept"] != values[fields["concept"]]:
        filled = {"run": run.name, "concept": values[fields["concept"]]}
    values = {**values, panel.filled: filled}
    try:
        settings = settings_of(app, panel, run, values)
        found = evaluation_estimate(run, settings)
        encoders = evaluation_encoders(run, settings)
    except SdloraError as error:
        return {**shown, panel.plan: page_html.note([str(error)], "bad"), panel.filled: filled}
    texts = {"prompts": found.prompts.triggered, "class_prompts": found.prompts.of_class,
             "unrelated_prompts": found.prompts.unrelated}  # fmt: skip
    for name, lines in texts.items():
        if name not in filled or values[fields[name]] == filled[name]:  # Else somebody has edited it.
            filled = {**filled, name: "\n".join(lines)}
            if values[fields[name]] != filled[name]:
                shown[fields[name]] = filled[name]
    plan = evaluation_html.estimate(found, len(settings.scales), encoders, missing_encoders(encoders))
    return {**shown, panel.plan: plan, panel.filled: filled}


def _begin(panel: EvaluationPanel, run: Run) -> Values:
    """Return what the fields begin with for a run that was just chosen."""
    concepts = run.config.all_concepts
    choices = [(f"{number}: {each.trigger or each.class_name}", number) for number, each in enumerate(concepts, 1)]
    return {
        panel.fields["concept"]: gr.update(choices=choices, value=1, visible=len(choices) > 1),
        **{panel.fields[name]: "" for name in OF_RUN},
    }


def settings_of(app: AppState, panel: EvaluationPanel, run: Run, values: Values) -> EvaluationSettings:
    """Return the settings that the fields say; prompts that nobody has edited are proposed anew.

    Of fields that were filled for another run, only what fits every run counts. Raises ConfigError.
    """
    fields, filled = panel.fields, values[panel.filled]
    filled = filled if filled.get("run") == run.name else {}
    given = ("scales", "seeds", "steps", *((*OF_RUN, "concept") if filled else ()))
    found = {name: values[fields[name]] for name in given if values[fields[name]] is not None}
    for name in LISTS:
        text = values[fields[name]] or ""
        edited = name in filled and text != filled[name]
        found[name] = [line.strip() for line in text.splitlines() if line.strip()] if edited else []
    return EvaluationSettings.checked(**found, **device_settings(app))


def device_settings(app: AppState) -> dict[str, Any]:
    """Return how this page's device is used: one image at a time where it has little memory."""
    return {"device": app.device, **({"batch_size": 1} if app.low_memory else {})}


def start(app: AppState, run: Run, settings: EvaluationSettings) -> Evaluating:
    """Start an evaluation, which waits for the device if another job has it.

    Raises BusyError while the run is trained or evaluated, and as ``evaluation_job`` does.
    """
    if app.queue.state(run) in ACTIVE:
        raise BusyError(f"{run.name} is queued or trained, and may change its checkpoints; evaluate it when it ends")

    def make() -> EvaluationJob:
        job = evaluation_job(run, settings)
        app.inference.release_memory()
        return job

    return app.evaluations.start(run, make)


def _start(app: AppState, panel: EvaluationPanel, values: Values) -> Values:
    run = app.run(values[panel.run])
    try:
        if run is None:
            raise ConfigError("This run is gone; choose another.")
        start(app, run, settings_of(app, panel, run, values))
    except SdloraError as error:
        return {panel.status: page_html.note([str(error)], "bad"), panel.used: ""}
    return {**_live(app, panel, run), panel.used: ""}


def _cancel(app: AppState, panel: EvaluationPanel, name: str | None) -> Values:
    run = app.run(name)
    if run is not None and (found := app.evaluations.of(run)) is not None:
        found.stop()
    return _poll(app, panel, name)


def _poll(app: AppState, panel: EvaluationPanel, name: str | None) -> Values:
    """Show how far the evaluation of the run is; once it has ended, its result."""
    run = app.run(name)
    if run is None:
        return {panel.timer: gr.Timer(active=False)}
    found = app.evaluations.of(run)
    if found is not None and found.state == "running":
        return {panel.status: evaluation_html.progress(found), panel.cancel: gr.update(visible=True)}
    return {**_live(app, panel, run), **_result(panel, run)}


def _live(app: AppState, panel: EvaluationPanel, run: Run) -> Values:
    """Return the status of the run's evaluation, with the buttons that go with it."""
    found = app.evaluations.of(run)
    runs = found is not None and found.state == "running"
    return {
        panel.status: evaluation_html.progress(found), panel.cancel: gr.update(visible=runs),
        panel.go: gr.update(interactive=not runs), panel.timer: gr.Timer(active=runs),
    }  # fmt: skip


def _result(panel: EvaluationPanel, run: Run) -> Values:
    """Return the result of the newest evaluation of the run, and what can be taken of it."""
    hidden = gr.update(visible=False)
    if evaluation_stamp(run) is None:
        return {panel.result: "", panel.candidate: hidden, panel.use: hidden}
    try:
        found = read_evaluation(run)
        shown = evaluation_html.result(found, evaluation_sheet(run), outdated_evaluation(run))
    except (SdloraError, OSError) as error:
        return {panel.result: page_html.note([str(error)], "bad"), panel.candidate: hidden, panel.use: hidden}
    choices = _choices(found)
    return {
        panel.result: shown,
        panel.candidate: gr.update(choices=choices, value=found.proposal.chosen, visible=len(choices) > 1),
        panel.use: gr.update(visible=bool(choices)),
    }


def _choices(found: Evaluation) -> list[tuple[str, int]]:
    """Return the candidates to take, the proposed one first."""
    chosen, front = found.proposal.chosen, found.proposal.front
    names = [evaluation_html.candidate_name(candidate) for candidate in found.candidates]
    first = [] if chosen is None else [(f"{names[chosen]} (proposed)", chosen)]
    return [*first, *((names[each], each) for each in front if each != chosen)]


def take(app: AppState, name: str | None, number: int | None) -> str:
    """Make a candidate of the run's evaluation its adapter, and return a note on it."""
    run = app.run(name)
    try:
        if run is None:
            raise ConfigError("This run is gone; choose another.")
        taken = candidate_to_take(run, number)
        use_proposal(run, number)
    except SdloraError as error:
        return page_html.note([str(error)], "bad")
    app.refresh()
    said = f"{run.name} now uses {evaluation_html.candidate_name(taken)}, on the tab Create and in its files."
    return page_html.note([said], "good")


def refresh(app: AppState, panel: EvaluationPanel, run: Run, usable: bool, changes: Changes) -> None:
    """Add to ``changes`` what is new of the evaluation of ``run``, which has checkpoints to compare if ``usable``."""
    found, stamp = app.evaluations.of(run), evaluation_stamp(run)
    state = (run.name, usable, found.state if found else "")
    result = (run.name, stamp, tuple(run.checkpoint_files()) if stamp else ())
    live, shown = _once(lambda: _live(app, panel, run)), _once(lambda: _result(panel, run))
    changes.add("evaluation", panel.fold, (run.name, usable), lambda: gr.update(visible=usable))
    changes.add("evaluation-used", panel.used, run.name, lambda: "")
    for number, component in enumerate((panel.status, panel.cancel, panel.go, panel.timer)):
        changes.add(f"evaluation-{number}", component, state, partial(_part, live, component))
    for number, component in enumerate((panel.result, panel.candidate, panel.use)):
        changes.add(f"evaluated-{number}", component, result, partial(_part, shown, component))


def _once(make: Callable[[], Values]) -> Callable[[], Values]:
    """Return ``make``, which is called only once."""
    made: list[Values] = []

    def get() -> Values:
        if not made:
            made.append(make())
        return made[0]

    return get


def _part(made: Callable[[], Values], component: Block) -> Any:
    return made()[component]
