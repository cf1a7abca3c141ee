"""Masks that a model makes for the project's pictures: the button, its settings, and what it says afterwards."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.masking import FACES, HUB_SEGMENTER, MaskJob, MaskReport, MaskSettings, mask_job
from sdlora.data.projects import Project
from sdlora.errors import DatasetError
from sdlora.ui import job_widget, page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import EVERY, HIDDEN, Values
from sdlora.ui.project_panel import ImagesTab

MODELS = [(f"{HUB_SEGMENTER}: what you name (downloaded once)", HUB_SEGMENTER), ("faces (needs OpenCV)", FACES)]
MODES = [("Only pictures without one", "empty"), ("Make all anew", "replace")]
DEFAULTS = MaskSettings()


@dataclass(frozen=True)
class AutoMaskPanel:
    """Components of the panel."""

    widget: job_widget.JobWidget
    model: gr.Dropdown
    words: gr.Textbox
    mode: gr.Radio
    threshold: gr.Slider
    grow: gr.Slider
    soft: gr.Checkbox

    @property
    def inputs(self) -> set[Block]:
        return {self.model, self.words, self.mode, self.threshold, self.grow, self.soft}


def build() -> AutoMaskPanel:
    """Lay the panel out."""
    widget = job_widget.job_widget("Mask the pictures", "auto-mask", "secondary")
    with gr.Accordion("How they are masked", open=False, elem_id="auto-mask-settings"):
        with gr.Row():
            model = gr.Dropdown(
                MODELS, value=DEFAULTS.model, label="Model that finds what counts", allow_custom_value=True,
                elem_id="auto-mask-model", info="or a CLIPSeg's folder, or an ONNX file of rembg's (u2net.onnx)",
            )  # fmt: skip
            words = gr.Textbox(
                "", label="What counts", placeholder="such as a dog, a ball", elem_id="auto-mask-words",
                info="Needed by a CLIPSeg; commas part several things",
            )  # fmt: skip
        mode = gr.Radio(MODES, value=DEFAULTS.mode, label="Masks", elem_id="auto-mask-mode")
        with gr.Row():
            threshold = gr.Slider(
                0, 1, DEFAULTS.threshold, step=0.05, label="Leave out what is less likely than",
                elem_id="auto-mask-threshold",
            )  # fmt: skip
            grow = gr.Slider(
                0, 0.2, DEFAULTS.grow, step=0.01, label="Grow by this share of the longer side",
                elem_id="auto-mask-grow",
            )  # fmt: skip
        soft = gr.Checkbox(
            DEFAULTS.soft, label="Weight by the model's certainty", elem_id="auto-mask-soft",
            info="Else all of a mask counts in full",
        )  # fmt: skip
    return AutoMaskPanel(widget, model, words, mode, threshold, grow, soft)


def wire(app: AppState, tab: ImagesTab, panel: AutoMaskPanel) -> None:
    """Start the job, and have the cards and the tab's Undo read what it wrote, however it ends."""
    inputs = {tab.project, *tab.words, *panel.inputs}
    start, finish = partial(_start, app, tab, panel), partial(_finish, panel)
    ended = job_widget.wire(app, panel.widget, start, finish, inputs)
    ended.then(lambda version: version + 1, tab.images_version, tab.images_version, **HIDDEN)
    tab.class_name.change(_words_of_class, tab.class_name, panel.words, **EVERY)


def _words_of_class(class_name: str) -> str:
    """Return what a CLIPSeg looks for where the subject is of this class."""
    return ", ".join(MaskSettings(class_name=class_name or "").asked)


def _start(app: AppState, tab: ImagesTab, panel: AutoMaskPanel, values: Values) -> MaskJob:
    info = tab.info(values)
    settings: dict[str, Any] = {
        "model": (values[panel.model] or "").strip(), "words": values[panel.words] or "", "mode": values[panel.mode],
        "threshold": values[panel.threshold], "grow": values[panel.grow], "soft": values[panel.soft],
    }  # fmt: skip
    return project_job(app, Project(app.data_dir, values[tab.project] or ""), info.subject_class, **settings)


def project_job(app: AppState, project: Project, class_name: str, **settings: Any) -> MaskJob:
    """Return the job that masks ``project``. Raises DatasetError if it has no pictures, ConfigError for settings."""
    if not project.images():
        raise DatasetError(project.status())
    checked = MaskSettings.checked(**settings, class_name=class_name, device=app.device)
    return mask_job(project.folder, checked, app.data_dir)


def _finish(panel: AutoMaskPanel, job: MaskJob) -> Values:
    report = MaskReport(**job.result)
    look = "Look at them on the cards below; Undo takes them back." if report.written else ""
    crop = "To train on what they mark alone, set data.crop to subject on the tab Train." if report.written else ""
    return {panel.widget.status: page_html.note([str(report), *job.notices, look, crop], "good")}
