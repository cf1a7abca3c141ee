"""Captions that a model writes for the project's pictures: the button, its settings, and what it says afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.captioning import (
    HUB_CAPTIONER,
    CaptionJob,
    CaptionReport,
    CaptionSettings,
    caption_job,
    default_captioner,
    require_captioner,
)
from sdlora.config import TrainConfig
from sdlora.data.projects import Project
from sdlora.errors import DatasetError, SdloraError
from sdlora.events import Progress
from sdlora.ui import job_widget, page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN, Values
from sdlora.ui.project_panel import ImagesTab

MODELS = [("pocket's own, for its small world", "pocket"), (f"{HUB_CAPTIONER} (downloaded once)", HUB_CAPTIONER)]
MODES = [("Only pictures without one", "empty"), ("Add to them", "append"), ("Write all anew", "replace")]
DEFAULTS = CaptionSettings()


@dataclass(frozen=True)
class CaptionPanel:
    """Components of the panel."""

    widget: job_widget.JobWidget
    model: gr.Dropdown
    mode: gr.Radio
    trigger_first: gr.Checkbox
    threshold: gr.Slider
    blacklist: gr.Textbox
    before_training: gr.Checkbox

    @property
    def inputs(self) -> set[Block]:
        return {self.model, self.mode, self.trigger_first, self.threshold, self.blacklist}


def build() -> CaptionPanel:
    """Lay the panel out."""
    widget = job_widget.job_widget("Caption the pictures", "caption", "secondary")
    with gr.Accordion("How they are captioned", open=False, elem_id="caption-settings"):
        with gr.Row():
            model = gr.Dropdown(
                MODELS, value=DEFAULTS.model, label="Captioner", allow_custom_value=True, elem_id="caption-model",
                info="or the folder or hub id of a BLIP, a Florence-2 or a WD14 tagger",
            )  # fmt: skip
            mode = gr.Radio(MODES, value=DEFAULTS.mode, label="Captions", elem_id="caption-mode")
        with gr.Row():
            threshold = gr.Slider(
                0, 1, DEFAULTS.threshold, step=0.05, label="Leave out what is less likely than",
                elem_id="caption-threshold",
            )  # fmt: skip
            blacklist = gr.Textbox(
                "", label="Words to leave out", placeholder="separated by commas", elem_id="caption-blacklist"
            )  # fmt: skip
        trigger_first = gr.Checkbox(
            False, label="Write the trigger word first", elem_id="caption-trigger",
            info="Not needed: training puts it before captions that lack it",
        )  # fmt: skip
        before_training = gr.Checkbox(
            True, label="Caption before training", elem_id="caption-before",
            info="where no picture has a caption, and the base is pocket, which can write them",
        )  # fmt: skip
    return CaptionPanel(widget, model, mode, trigger_first, threshold, blacklist, before_training)


def wire(app: AppState, tab: ImagesTab, panel: CaptionPanel) -> None:
    """Start the job, and have the cards and the tab's Undo read what it wrote, however it ends."""
    inputs = {tab.project, *tab.words, tab.base, *panel.inputs}
    start, finish = partial(_start, app, tab, panel), partial(_finish, panel)
    ended = job_widget.wire(app, panel.widget, start, finish, inputs)
    ended.then(lambda *numbers: [number + 1 for number in numbers], tab.versions, tab.versions, **HIDDEN)


def _start(app: AppState, tab: ImagesTab, panel: CaptionPanel, values: Values) -> CaptionJob:
    info = tab.info(values)
    settings: dict[str, Any] = {
        "model": (values[panel.model] or "").strip(), "mode": values[panel.mode], "threshold": values[panel.threshold],
        "trigger": info.trigger if values[panel.trigger_first] else "",
        "blacklist": tuple(word.strip() for word in values[panel.blacklist].split(",") if word.strip()),
    }  # fmt: skip
    require_captioner(settings["model"], values[tab.base] or "pocket")
    return project_job(app, Project(app.data_dir, values[tab.project] or ""), info.subject_class, **settings)


def project_job(app: AppState, project: Project, class_name: str, **settings: Any) -> CaptionJob:
    """Return the job that captions ``project``. Raises DatasetError if it has no pictures, ConfigError for settings."""
    if not project.images():
        raise DatasetError(project.status())
    checked = CaptionSettings.checked(**settings, class_name=class_name, device=app.device)
    return caption_job(project.folder, checked, app.data_dir)


def _finish(panel: CaptionPanel, job: CaptionJob) -> Values:
    return {panel.widget.status: page_html.note(report_lines(job), "good")}


def report_lines(job: CaptionJob) -> list[str]:
    """Return what a finished ``job`` did, in sentences."""
    report = CaptionReport(**job.result)
    look = "Look at them below; Undo takes them back." if report.written else ""
    return [str(report), *job.notices, look]


def caption_before_training(
    app: AppState, projects: Sequence[Project], config: TrainConfig, progress: gr.Progress
) -> list[str]:
    """Caption each project of a run of which no picture has a caption, if the base brings a captioner.

    Return what was done. Training goes on without captions where that fails. Raises BusyError while the same project
    is captioned so.
    """
    if default_captioner(config.model.base) != config.model.base:
        return []
    told: list[str] = []
    for project, concept in zip(projects, config.all_concepts, strict=True):
        if concept.prompt or any(map(project.caption, project.images())):
            continue
        job = project_job(app, project, concept.class_name, model=config.model.base)
        lines = _caption_first(app, project, job, progress)
        told += [f"{project.name}: {line}" for line in lines] if len(projects) > 1 else lines
    return told


def _caption_first(app: AppState, project: Project, job: CaptionJob, progress: gr.Progress) -> list[str]:
    """Run ``job`` on ``project`` to its end; return what it did, or why it could not."""
    words = "Writing captions first"
    with app.track_job(f"captions of {project.name}", job):
        progress(0, desc=words)
        try:
            for event in job:
                if isinstance(event, Progress) and event.total:
                    progress((event.done, event.total), desc=words, unit="pictures")
        except SdloraError as error:
            return [f"No captions were written: {error}"]
    told = str(CaptionReport(**job.result))
    return [f"No picture had a caption. {told} They are on the tab Pictures, where Undo takes them back.", *job.notices]
