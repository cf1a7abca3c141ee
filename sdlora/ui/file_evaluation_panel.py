"""Choose a scale of an adapter file that has no run: the evaluation panel, with fields for facts a run would tell."""

from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.file_evaluation import file_facts
from sdlora.data.projects import list_projects
from sdlora.errors import SdloraError
from sdlora.ui import evaluation_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.evaluated import EvaluatedFile
from sdlora.ui.evaluation_panel import EvaluationPanel, PanelWords
from sdlora.ui.listeners import Values

WORDS = PanelWords(
    "file-evaluation", "Which scale?",
    "Draws the same prompts with the base and with this adapter at several scales, measures the pictures, and proposes "
    "a scale, with reasons.",
    "Compare the scales", "adapter", "adapter",
)  # fmt: skip
NO_PICTURES = ("none", "")


def build(app: AppState, name: gr.State) -> EvaluationPanel:
    """Lay the panel out for the adapter that is called ``name``, and wire it."""

    def find(name: str | None, about: dict[str, Any]) -> EvaluatedFile | None:
        return find_file(app, name, about)

    return evaluation_panel.lay_out(app, WORDS, find, name, partial(_fields, app))


def find_file(app: AppState, name: str | None, about: dict[str, Any]) -> EvaluatedFile | None:
    """Return the adapter file called ``name``; None for one of a run, one that cannot be read, and one that is gone."""
    try:
        entry = app.library.find(name) if name else None
    except SdloraError:
        return None
    if entry is None or entry.kind == "run" or entry.problem:
        return None
    return EvaluatedFile(entry.name, entry.path, app.data_dir, about)


def _fields(app: AppState) -> dict[str, Any]:
    prefix = WORDS.prefix
    project = gr.Dropdown(
        [NO_PICTURES], value="", label="Training pictures", interactive=True, elem_id=f"{prefix}-project",
        info="Without them only prompts kept, drift and diversity are measured, and nothing is proposed",
    )  # fmt: skip
    with gr.Row():
        trigger = gr.Textbox("", label="Trigger word", elem_id=f"{prefix}-trigger")
        class_name = gr.Textbox(
            "", label="Class", placeholder="of a subject, such as cat", elem_id=f"{prefix}-class",
            info="Leave it empty for a style",
        )  # fmt: skip
    base = gr.Dropdown(
        app.base_choices(), value=None, label="Base model", interactive=True, elem_id=f"{prefix}-base",
    )  # fmt: skip
    return {"project": project, "trigger": trigger, "class_name": class_name, "base": base}


def outputs(panel: EvaluationPanel) -> list[Block]:
    """Return the components that ``show`` updates."""
    return [*panel.outputs, *panel.about.values()]


def show(app: AppState, panel: EvaluationPanel, name: str) -> Values:
    """Offer the evaluation of the adapter ``name``, filled in with what its file tells, and show its newest result."""
    file = find_file(app, name, {})
    if file is None:
        hidden: Values = dict.fromkeys((panel.fold, panel.cancel, panel.candidate, panel.use), gr.update(visible=False))
        empty: Values = dict.fromkeys((panel.status, panel.result, panel.used), "")
        return {**hidden, **empty, panel.timer: gr.Timer(active=False)}
    facts = file_facts(file.source, app.data_dir)
    projects = {project.name: project for project in list_projects(app.data_dir) if project.images()}
    trained_on = next((folder for folder in facts.folders if folder in projects), "")
    info = projects[trained_on].info if trained_on else None
    bases = app.base_choices()
    if facts.base and facts.base not in {value for _, value in bases}:
        bases = [*bases, (facts.base, facts.base)]
    about = panel.about
    return {
        panel.fold: gr.update(visible=True),
        panel.used: "",
        about["project"]: gr.update(choices=[NO_PICTURES, *((each, each) for each in projects)], value=trained_on),
        about["trigger"]: facts.trigger,
        about["class_name"]: facts.class_name or (info.subject_class if info else ""),
        about["base"]: gr.update(choices=bases, value=facts.base or None),
        **evaluation_panel.state_of(app, panel, file),
    }
