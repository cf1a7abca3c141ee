"""The class pictures of a run on the Train tab: those made so far, and a way to make the others before it starts."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.api.training import class_images_job
from sdlora.errors import SdloraError
from sdlora.formatting import pluralize
from sdlora.ui import job_widget, page_html, tools_panel, train_panel
from sdlora.ui.app_state import AppState, adapt_to_device, thumbnail
from sdlora.ui.listeners import Values
from sdlora.ui.train_panel import TrainPanel

MOST_SHOWN = 100
"""Pictures that are shown; of more, the first."""
PURPOSE = (
    "Pictures of the class, such as ordinary cats, keep the base's idea of it while it learns yours (prior "
    "preservation). Look at them before a run learns from them."
)


@dataclass(frozen=True)
class ClassImagesPanel:
    """Components of the fold: two jobs, and the pictures of both."""

    show: job_widget.JobWidget
    make: job_widget.JobWidget
    gallery: gr.Gallery


def build(app: AppState, form: TrainPanel) -> ClassImagesPanel:
    """Lay the fold out below the form, and wire it."""
    with gr.Accordion("Class pictures", open=False, elem_id="class-pictures"):
        tools_panel.purpose(PURPOSE)
        show = job_widget.job_widget("Show those made so far", "show-class-pictures", "secondary")
        make = job_widget.job_widget("Make the missing ones now", "make-class-pictures", "secondary")
        gallery = gr.Gallery(
            label="Class pictures", show_label=False, elem_id="class-picture-gallery", elem_classes="creations",
            interactive=False, object_fit="contain", columns=4, height="auto", buttons=["fullscreen"], visible=False,
        )  # fmt: skip
    panel = ClassImagesPanel(show, make, gallery)
    for widget, other, makes in ((show, make, False), (make, show, True)):
        start, finish = partial(_start, app, form, makes), partial(_finish, panel, widget)
        job_widget.wire(app, widget, start, finish, form.inputs, [gallery, other.status])
    return panel


def _start(app: AppState, form: TrainPanel, make: bool, values: Values) -> Any:
    """Return the job for the run that the form describes."""
    _, config = train_panel.configure(app, form, values)
    if make:
        app.inference.release_memory()
    return class_images_job(adapt_to_device(config, app.device, app.low_memory), app.data_dir, make)


def _finish(panel: ClassImagesPanel, widget: job_widget.JobWidget, job: Any) -> Values:
    """Show the pictures with their prompts, and say how many there are and where they lie."""
    found = job.result
    shown = []
    for path, prompt in found["images"][:MOST_SHOWN]:
        try:
            shown.append((thumbnail(Path(path)), prompt))
        except (SdloraError, OSError):  # Removed since it was listed.
            continue
    made, missing = found["count"] - found["missing"], found["missing"]
    lines = [f"{made} of {pluralize(found['count'], 'class picture')} made{'.' if missing else ': all of them.'}"]
    lines += [f"The run makes the other {missing}, or you do now."] if missing else []
    lines += (
        [f"They lie in {', '.join(found['folders'][:4])}{', ...' if len(found['folders']) > 4 else ''}."]
        if made
        else []
    )
    lines += [f"The first {MOST_SHOWN} are shown."] if made > MOST_SHOWN else []
    other = panel.make if widget is panel.show else panel.show
    return {
        widget.status: page_html.note([*lines, *job.notices], "info" if missing else "good"), other.status: "",
        panel.gallery: gr.update(value=shown, visible=bool(shown)),
    }  # fmt: skip
