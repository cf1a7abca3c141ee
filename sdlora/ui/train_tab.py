"""The Train tab: what to train on the left, the progress of a run on the right, and what its buttons do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import gradio as gr

from sdlora.api.training import Run
from sdlora.errors import SdloraError
from sdlora.ui import caption_panel, class_images_panel, page_html, run_panel, train_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import PRIVATE, PROGRESS, Values
from sdlora.ui.project_panel import ImagesTab
from sdlora.ui.run_panel import RunPanel
from sdlora.ui.train_panel import TrainPanel


@dataclass(frozen=True)
class TrainTab:
    """The two sides of the tab."""

    form: TrainPanel
    run: RunPanel


def build(app: AppState, demo: gr.Blocks, images: ImagesTab) -> TrainTab:
    """Lay the tab out and wire it; the page's timer updates ``TrainTab.run``."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = train_panel.build(app, images)
            class_images_panel.build(app, form)
        with gr.Column(scale=3, min_width=320):
            shown = run_panel.build(app)
    train_panel.wire(app, demo, form)
    tab = TrainTab(form, shown)
    form.train.click(
        partial(train, app, tab), form.inputs | images.at_training, [form.message, shown.run, *images.versions],
        show_progress_on=form.message, **PRIVATE,
    )  # fmt: skip
    shown.stop.click(partial(_act, app, _stop), shown.run, shown.message, **PRIVATE)
    shown.resume.click(partial(_act, app, AppState.start), shown.run, shown.message, **PRIVATE)
    shown.longer.click(partial(_train_longer, app), [shown.run, shown.more], shown.message, **PRIVATE)
    shown.copy.click(partial(_duplicate, app, shown), shown.run, [shown.message, shown.run], **PRIVATE)
    shown.reopen.click(
        partial(_open_settings, app, form), [shown.run, images.project],
        [form.message, images.project, form.together, form.base, *form.prompts, *form.settings.values()],
        show_progress_on=form.message, **PRIVATE,
    )  # fmt: skip
    return tab


def train(app: AppState, tab: TrainTab, values: Values, progress: gr.Progress = PROGRESS) -> Values:
    """Queue a run and show it, or say in ``tab.form.message`` why not; the form stays as it is.

    Pictures without any caption are captioned first, where the base can do that.
    """
    images = tab.form.images
    told: list[str] = []
    try:
        projects, config = train_panel.configure(app, tab.form, values)
        projects[0].set_info(images.info(values))
        if values[images.caption_first]:
            told = caption_panel.caption_before_training(app, projects, config, progress)
        run = app.train(config, projects[0].name)
    except SdloraError as error:
        updates: Values = {tab.form.message: page_html.note([*told, str(error)], "bad")}
    else:
        updates = {tab.form.message: page_html.note(told), tab.run.run: _choose(app, run)}
    return updates | ({version: values[version] + 1 for version in images.versions} if told else {})


def _act(app: AppState, act: Callable[[AppState, Run], None], name: str) -> str:
    """Do something with a run; return the message for it."""
    run = app.run(name)
    try:
        if run is not None:
            act(app, run)
        return ""
    except SdloraError as error:
        return page_html.note([str(error)], "bad")


def _stop(app: AppState, run: Run) -> None:
    app.queue.stop(run)
    app.refresh()


def _train_longer(app: AppState, name: str, more: float | None) -> str:
    """Train a run that has ended for ``more`` steps."""
    return _act(app, lambda app, run: app.extend(run, app.run_view(run).end + int(more or 0)), name)


def _duplicate(app: AppState, panel: RunPanel, name: str) -> Values:
    """Queue a new run with the settings of this one, and show it."""
    run = app.run(name)
    try:
        return {panel.message: "", panel.run: _choose(app, app.duplicate(run))} if run is not None else gr.skip()
    except SdloraError as error:
        return {panel.message: page_html.note([str(error)], "bad")}


def _open_settings(app: AppState, form: TrainPanel, name: str, opened: str) -> Values:
    """Fill the form with the settings of a run; of several concepts, choose their projects too."""
    run = app.run(name)
    try:
        if run is None:
            return gr.skip()
        chosen, names = train_panel.reopened_projects(app, form, run.config, opened)
        lines = [f"The form has the settings of {run.name}.", *_pictures_of(run, names)]
        return {form.message: page_html.note(lines), **train_panel.form_values(form, run.config), **chosen}
    except SdloraError as error:
        return {form.message: page_html.note([str(error)], "bad")}


def _pictures_of(run: Run, projects: Sequence[str]) -> list[str]:
    """Say which pictures Train would use with the settings of ``run``, whose ``projects`` are chosen again."""
    if not projects:
        return ["Train uses the project that is open on the tab Pictures."]
    lost = len(run.config.all_concepts) > len(projects)
    left_out = "What else it learnt is left out: its pictures are in no project here." if lost else ""
    return [f"Train uses the pictures of {' and '.join(projects)}.", left_out]


def _choose(app: AppState, run: Run) -> object:
    return gr.update(value=run.name, choices=list(app.snapshot().runs))
