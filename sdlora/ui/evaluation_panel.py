"""Choose a checkpoint of a run, or a scale: what is compared, the progress, the result, and taking a candidate.

The evaluation belongs to the run or file, not to the page: a reload and a second window find it, and its result.
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
    missing_encoders,
    use_proposal,
)
from sdlora.api.file_evaluation import FileEvaluationJob
from sdlora.errors import BusyError, ConfigError, SdloraError
from sdlora.ui import evaluation_html, page_html, tools_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.evaluated import Evaluated, EvaluatedRun
from sdlora.ui.evaluation_fields import LISTS, OF_RUN, evaluation_fields
from sdlora.ui.evaluation_jobs import Evaluating
from sdlora.ui.listeners import HIDDEN, LAST, Changes, Values

SHOW = """() => setTimeout(() => {
  if (document.querySelector("#evaluation-plan")?.offsetParent)
    document.querySelector("#evaluation").scrollIntoView({block: "nearest"});
}, 200)"""
"""Scrolls to the panel where it is unfolded."""


@dataclass(frozen=True)
class PanelWords:
    """Words of a panel for what it evaluates, and the prefix of its elements' ids."""

    prefix: str
    title: str
    purpose: str
    go: str
    noun: str
    """Word for what is evaluated, such as run."""
    compared: str
    """Word for what is compared at each scale, such as checkpoint."""


RUN = PanelWords(
    "evaluation", "Which checkpoint?",
    "Draws the same prompts with the base and with each checkpoint at several scales, measures the pictures, and "
    "proposes one checkpoint and scale, with reasons.",
    "Compare the checkpoints", "run", "checkpoint",
)  # fmt: skip
Find = Callable[[str | None, dict[str, Any]], Evaluated | None]
"""Return what is evaluated, by its name and by what the panel's fields say about it; None if it is gone."""


@dataclass(frozen=True)
class EvaluationPanel:
    """Components of the panel."""

    words: PanelWords
    find: Find
    name: gr.Dropdown | gr.State
    """Component with the name of what is evaluated."""
    about: dict[str, Any]
    """Fields for facts that a run tells by itself."""
    fold: gr.Accordion
    plan: gr.HTML
    fields: dict[str, Any]
    """Fields by the settings that they are of."""
    filled: gr.State
    """Name of what is evaluated, number of its concept, and the prompts, by settings, that the fields were filled with.
    """
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

    def find(name: str | None, about: dict[str, Any]) -> Evaluated | None:
        found = app.run(name)
        return None if found is None else EvaluatedRun(found, app.queue)

    return lay_out(app, RUN, find, run, dict)


def lay_out(
    app: AppState,
    words: PanelWords,
    find: Find,
    name: gr.Dropdown | gr.State,
    lay_out_about: Callable[[], dict[str, Any]],
) -> EvaluationPanel:
    """Lay the panel out for what ``find`` returns for the value of ``name``, and wire it.

    ``lay_out_about`` adds fields for facts that ``find`` needs, and returns them.
    """
    prefix = words.prefix
    with gr.Accordion(words.title, open=False, visible=False, elem_id=prefix) as fold:
        tools_panel.purpose(words.purpose)
        about = lay_out_about()
        plan = gr.HTML(elem_id=f"{prefix}-plan")
        with gr.Accordion("What is compared", open=False, elem_id=f"{prefix}-settings"):
            fields = evaluation_fields(prefix, words is RUN)
        go = gr.Button(words.go, variant="primary", elem_id=f"{prefix}-button")
    status = gr.HTML(elem_id=f"{prefix}-status")
    cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{prefix}-cancel")
    result = gr.HTML(elem_id=f"{prefix}-result")
    with gr.Row(equal_height=False, elem_classes="longer"):
        candidate = gr.Dropdown(
            [], label="Take", visible=False, interactive=True, elem_id=f"{prefix}-candidate",
            info="The proposal, and those that no other beats in everything",
        )  # fmt: skip
        use = gr.Button("Use this", variant="primary", visible=False, elem_id=f"{prefix}-use")
    panel = EvaluationPanel(
        words, find, name, about, fold, plan, fields, gr.State({}), gr.State(False), go, status, cancel, result,
        candidate, use, gr.HTML(elem_id=f"{prefix}-used"), gr.Timer(1.0, active=False),
    )  # fmt: skip
    _wire(app, panel)
    return panel


def _wire(app: AppState, panel: EvaluationPanel) -> None:
    fields = list(panel.fields.values())
    about = list(panel.about.values())
    inputs = {panel.name, panel.filled, panel.is_open, *about, *fields}
    planned = [panel.plan, panel.filled, panel.is_open, *fields]
    panel.fold.expand(lambda: True, None, panel.is_open, **HIDDEN)
    panel.fold.collapse(lambda: False, None, panel.is_open, **HIDDEN)
    # A page that has just loaded knows its run before it knows that the panel was unfolded, or after: either plans.
    changes = [panel.is_open.change, panel.name.change, *(field.change for field in (*about, *fields))]
    gr.on(changes, partial(_plan, app, panel, False), inputs, planned, **LAST)
    panel.go.click(partial(_start, app, panel), inputs, [panel.used, *panel.live], **HIDDEN)
    panel.cancel.click(partial(_cancel, app, panel), panel.name, panel.live, **HIDDEN)
    panel.timer.tick(partial(_poll, app, panel), panel.name, panel.live, **HIDDEN)


def open_from(app: AppState, panel: EvaluationPanel, event: Any, name: gr.State, wanted: gr.State) -> None:
    """After ``event``, unfold the panel for the run ``name``, if that is ``wanted``."""

    def unfold(values: Values) -> Values:
        if not (values[wanted] and values[name]):
            return gr.skip()
        planned = _plan(app, panel, True, {**values, panel.name: values[name]})
        return {**planned, panel.fold: gr.update(open=True), wanted: False}

    fields = list(panel.fields.values())
    outputs = [panel.fold, panel.plan, panel.filled, panel.is_open, wanted, *fields]
    event.then(unfold, {name, wanted, panel.name, panel.filled, panel.is_open, *fields}, outputs, **HIDDEN).then(
        None, js=SHOW, **HIDDEN
    )


def _plan(app: AppState, panel: EvaluationPanel, opens: bool, values: Values) -> Values:
    """Say what the evaluation takes, and fill in the proposed prompts where nobody has changed them."""
    evaluated, filled = _find(panel, values), values[panel.filled]
    opens = opens or values[panel.is_open]
    if not opens or evaluated is None or evaluated.changes:
        return {panel.is_open: opens}
    fields, shown = panel.fields, Values({panel.is_open: True})
    if new := filled.get("name") != evaluated.name:
        shown |= _begin(panel, evaluated)
        values = {**values, **{fields[name]: "" for name in OF_RUN}, fields["concept"]: 1}
    concept = values[fields["concept"]] or 1
    if new or filled["concept"] != concept:
        filled = {"name": evaluated.name, "concept": concept}
    values = {**values, panel.filled: filled}
    try:
        settings = settings_of(app, panel, evaluated.name, values)
        found, encoders = evaluated.estimate(settings), evaluated.encoders(settings)
    except SdloraError as error:
        return {**shown, panel.plan: page_html.note([str(error)], "bad"), panel.filled: filled}
    texts = {"prompts": found.prompts.triggered, "class_prompts": found.prompts.of_class,
             "unrelated_prompts": found.prompts.unrelated}  # fmt: skip
    for name, lines in texts.items():
        if name not in filled or values[fields[name]] == filled[name]:  # Else somebody has edited it.
            filled = {**filled, name: "\n".join(lines)}
            if values[fields[name]] != filled[name]:
                shown[fields[name]] = filled[name]
    missing = missing_encoders(encoders)
    plan = evaluation_html.estimate(found, len(settings.scales), encoders, missing, panel.words.compared)
    return {**shown, panel.plan: plan, panel.filled: filled}


def _find(panel: EvaluationPanel, values: Values) -> Evaluated | None:
    return panel.find(values[panel.name], {name: values[field] for name, field in panel.about.items()})


def _begin(panel: EvaluationPanel, evaluated: Evaluated) -> Values:
    """Return what the fields begin with for a run or file that was just chosen."""
    concepts = evaluated.concepts
    choices = [(f"{number}: {each.trigger or each.class_name}", number) for number, each in enumerate(concepts, 1)]
    return {
        panel.fields["concept"]: gr.update(choices=choices, value=1 if choices else None, visible=len(choices) > 1),
        **{panel.fields[name]: "" for name in OF_RUN},
    }


def settings_of(app: AppState, panel: EvaluationPanel, name: str, values: Values) -> EvaluationSettings:
    """Return the settings that the fields say; prompts that nobody has edited are proposed anew.

    Of fields that were filled for another than ``name``, only what fits all counts. Raises ConfigError.
    """
    fields, filled = panel.fields, values[panel.filled]
    filled = filled if filled.get("name") == name else {}
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


def start(app: AppState, evaluated: Evaluated, settings: EvaluationSettings) -> Evaluating:
    """Start an evaluation, which waits for the device if another job has it.

    Raises BusyError while it is trained or evaluated, and as its ``job`` does.
    """
    if evaluated.changes:
        name = evaluated.name
        raise BusyError(f"{name} is queued or trained, and may change its checkpoints; evaluate it when it ends")

    def make() -> EvaluationJob | FileEvaluationJob:
        job = evaluated.job(settings)
        app.inference.release_memory()
        return job

    return app.evaluations.start(evaluated, make)


def _start(app: AppState, panel: EvaluationPanel, values: Values) -> Values:
    evaluated = _find(panel, values)
    try:
        if evaluated is None:
            raise ConfigError(f"This {panel.words.noun} is gone; choose another.")
        start(app, evaluated, settings_of(app, panel, evaluated.name, values))
    except SdloraError as error:
        return {panel.status: page_html.note([str(error)], "bad"), panel.used: ""}
    return {**_live(app, panel, evaluated), panel.used: ""}


def _cancel(app: AppState, panel: EvaluationPanel, name: str | None) -> Values:
    evaluated = panel.find(name, {})
    if evaluated is not None and (found := app.evaluations.of(evaluated)) is not None:
        found.stop()
    return _poll(app, panel, name)


def _poll(app: AppState, panel: EvaluationPanel, name: str | None) -> Values:
    """Show how far the evaluation is; once it has ended, its result."""
    evaluated = panel.find(name, {})
    if evaluated is None:
        return {panel.timer: gr.Timer(active=False)}
    found = app.evaluations.of(evaluated)
    if found is not None and found.state == "running":
        return {panel.status: evaluation_html.progress(found), panel.cancel: gr.update(visible=True)}
    return state_of(app, panel, evaluated)


def state_of(app: AppState, panel: EvaluationPanel, evaluated: Evaluated) -> Values:
    """Return the status of the newest evaluation and its result."""
    return {**_live(app, panel, evaluated), **_result(panel, evaluated)}


def _live(app: AppState, panel: EvaluationPanel, evaluated: Evaluated) -> Values:
    """Return the status of the evaluation, with the buttons that go with it."""
    found = app.evaluations.of(evaluated)
    runs = found is not None and found.state == "running"
    return {
        panel.status: evaluation_html.progress(found), panel.cancel: gr.update(visible=runs),
        panel.go: gr.update(interactive=not runs), panel.timer: gr.Timer(active=runs),
    }  # fmt: skip


def _result(panel: EvaluationPanel, evaluated: Evaluated) -> Values:
    """Return the result of the newest evaluation, and what can be taken of it: of a run, a checkpoint."""
    hidden = gr.update(visible=False)
    if evaluated.stamp() is None:
        return {panel.result: "", panel.candidate: hidden, panel.use: hidden}
    try:
        found = evaluated.read()
        shown = evaluation_html.result(found, evaluated.sheet(), evaluated.outdated(), panel.words.noun)
    except (SdloraError, OSError) as error:
        return {panel.result: page_html.note([str(error)], "bad"), panel.candidate: hidden, panel.use: hidden}
    choices = _choices(found) if panel.words is RUN else []
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


def refresh(app: AppState, panel: EvaluationPanel, run: EvaluatedRun, usable: bool, changes: Changes) -> None:
    """Add to ``changes`` what is new of the evaluation of ``run``, which has checkpoints to compare if ``usable``."""
    found = app.evaluations.of(run)
    state, result = (run.name, usable, found.state if found else ""), (run.name, run.stamp())
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
