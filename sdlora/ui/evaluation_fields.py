"""Fields for what an evaluation compares, and by which models."""

from typing import Any

import gradio as gr

from sdlora.api.evaluation import EvaluationSettings
from sdlora.section import settings
from sdlora.ui.setting_fields import text_field

DEFAULTS = EvaluationSettings()
DECLARED = {setting.name: setting for setting in settings(EvaluationSettings)}
SCALES = ", ".join(f"{scale:g}" for scale in DEFAULTS.scales)
LISTS = ("prompts", "class_prompts", "unrelated_prompts")
"""Settings with a prompt a line, which are proposed."""
ENCODERS = {"encoder": "Compares pictures", "clip": "Compares pictures with prompts"}
"""Labels of the models that judge."""
OF_RUN = ("checkpoints", *ENCODERS)
"""Settings that begin empty for each run."""


def evaluation_fields(prefix: str, of_run: bool) -> dict[str, Any]:
    """Lay the fields out, and return them by the settings that they are of; only a run has checkpoints to choose."""
    concept = gr.Dropdown([], label="Concept", visible=False, interactive=True, elem_id=f"{prefix}-concept")
    with gr.Row():
        checkpoints = gr.Textbox(
            "", label="Checkpoints", placeholder="all", elem_id=f"{prefix}-checkpoints", info="Steps, such as 60, 120",
            visible=of_run,
        )  # fmt: skip
        scales = gr.Textbox(
            SCALES,
            label="Scales",
            elem_id=f"{prefix}-scales",
            info="Each checkpoint at each" if of_run else "Such as 0.6, 1",
        )
    prompts = gr.Textbox(
        "", label="Prompts with the trigger, one a line", lines=3, max_lines=8, elem_id=f"{prefix}-prompts",
        info="What no training picture shows",
    )  # fmt: skip
    with gr.Row():
        of_class = gr.Textbox(
            "", label="Without the trigger", lines=2, max_lines=8, elem_id=f"{prefix}-class-prompts",
            info="What is to stay as the base has it",
        )  # fmt: skip
        unrelated = gr.Textbox(
            "", label="Of other things", lines=2, max_lines=8, elem_id=f"{prefix}-unrelated-prompts",
            info="By which drift of the base is seen",
        )  # fmt: skip
    with gr.Row():
        seeds = gr.Number(
            DEFAULTS.seeds, label="Pictures of each prompt", precision=0, minimum=1, maximum=16,
            elem_id=f"{prefix}-seeds",
        )  # fmt: skip
        steps = gr.Number(
            DEFAULTS.steps, label="Sampling steps", precision=0, minimum=1, elem_id=f"{prefix}-steps",
        )  # fmt: skip
    with gr.Accordion("Models that judge", open=False, elem_id=f"{prefix}-encoders"), gr.Row():
        encoders = {
            name: text_field(
                DECLARED[name], label=title, placeholder="as suits the base model", elem_id=f"{prefix}-{name}"
            )
            for name, title in ENCODERS.items()
        }
    return {
        "concept": concept, "checkpoints": checkpoints, "scales": scales, "prompts": prompts,
        "class_prompts": of_class, "unrelated_prompts": unrelated, "seeds": seeds, "steps": steps,
        **encoders,
    }  # fmt: skip
