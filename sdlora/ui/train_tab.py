"""The second tab: what to train on the left, how it goes on the right, and what its buttons do."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from sdlora.data.projects import ProjectInfo
from sdlora.data.step_heuristics import Kind
from sdlora.errors import SdloraError
from sdlora.ui import page_html, run_panel, setting_fields, train_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import PRIVATE
from sdlora.ui.project_panel import ImagesTab
from sdlora.ui.run_panel import RunPanel
from sdlora.ui.train_panel import TrainPanel


@dataclass(frozen=True)
class TrainTab:
    """The tab. A button anywhere trains by ``button.click(partial(train, app), tab.inputs, tab.outputs)``."""

    form: TrainPanel
    live: RunPanel
    inputs: list[Any]
    """What ``train`` takes: the project, what it shows, and the form."""
    outputs: list[Any]
    """What ``train`` gives: what is said next to the button, and the run that is shown."""


def build(app: AppState, demo: gr.Blocks, pictures: ImagesTab) -> TrainTab:
    """Lay the tab out and wire it; ``page`` brings ``TrainTab.live`` up to date."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = train_panel.build(app)
        with gr.Column(scale=3, min_width=320):
            shown = run_panel.build(app)
    train_panel.wire(app, demo, form, pictures)
    inputs = [pictures.project, pictures.kind, pictures.trigger, pictures.class_name, *form.inputs]
    tab = TrainTab(form, shown, inputs, [form.message, shown.run])
    form.train.click(partial(train, app), tab.inputs, tab.outputs, **PRIVATE)
    shown.stop.click(partial(_stop, app), shown.run, shown.message, **PRIVATE)
    shown.resume.click(partial(_resume, app), shown.run, shown.message, **PRIVATE)
    shown.longer.click(partial(_longer, app), [shown.run, shown.more], shown.message, **PRIVATE)
    shown.copy.click(partial(_copy, app), shown.run, [shown.message, shown.run], **PRIVATE)
    shown.reopen.click(
        partial(_reopen, app), shown.run, [form.message, form.base, *form.prompts, *form.advanced],
        show_progress_on=form.message, **PRIVATE,
    )  # fmt: skip
    return tab


def train(app: AppState, name: str, kind: Kind, trigger: str, class_name: str, *values: Any) -> list[Any]:
    """Queue a run. What was filled in stays as it is, whatever comes of it."""
    try:
        about = ProjectInfo(kind, trigger, class_name)
        project, config = train_panel.configure(app, name, about, *values)
        project.set_info(about)
        return _shown(app, app.train(config, project.name).name)
    except SdloraError as error:
        return _refused(error)


def _stop(app: AppState, name: str) -> str:
    run = app.run(name)
    if run is not None:
        app.queue.stop(run)
        app.refresh()
    return ""


def _resume(app: AppState, name: str) -> str:
    run = app.run(name)
    try:
        if run is not None:
            app.start(run)
        return ""
    except SdloraError as error:
        return page_html.note([str(error)], "bad")


def _longer(app: AppState, name: str, more: float | None) -> str:
    """Let a run that has ended go on for so many ``more`` steps."""
    run = app.run(name)
    try:
        if run is not None:
            app.extend(run, app.run_view(run).steps + int(more or 0))
        return ""
    except SdloraError as error:
        return page_html.note([str(error)], "bad")


def _copy(app: AppState, name: str) -> list[Any]:
    """Queue a new run with the settings of this one."""
    run = app.run(name)
    try:
        return _shown(app, app.duplicate(run).name) if run is not None else [gr.skip(), gr.skip()]
    except SdloraError as error:
        return _refused(error)


def _reopen(app: AppState, name: str) -> list[Any]:
    """Fill the form with the settings of a run; the pictures stay those of the open project."""
    run, fields = app.run(name), 3 + len(setting_fields.advanced_settings())
    try:
        if run is None:
            return [gr.skip()] * (fields + 1)
        said = f"The settings of {run.name} are in the form. Train takes the project that is open on the tab Pictures."
        return [page_html.note([said]), *train_panel.opened(run.config)]
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), *[gr.skip()] * fields]


def _shown(app: AppState, name: str) -> list[Any]:
    return ["", gr.update(value=name, choices=list(app.snapshot().runs))]


def _refused(error: SdloraError) -> list[Any]:
    return [page_html.note([str(error)], "bad"), gr.skip()]
