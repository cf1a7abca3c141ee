"""Form fields made from the declarations of settings: type, range and help stand there, and only there."""

from typing import Annotated, Any, get_args

import gradio as gr
from gradio.components import Component
from pydantic import TypeAdapter

from sdlora.config import all_settings
from sdlora.generation.settings import Sample
from sdlora.section import Setting, settings

DRAWING = {setting.name: setting for setting in settings(Sample)}
"""The settings of drawing, by name."""
ADVANCED = (
    "train.steps",
    "adapter.rank",
    "train.learning_rate",
    "train.text_encoder_learning_rate",
    "train.batch_size",
    "data.resolution",
    "prior.weight",
    "train.seed",
    "data.flip",
)
"""What the page's first advanced form shows; any setting of ``TrainConfig`` may be added."""
CHOICES = {"yes": True, "no": False}


def advanced() -> list[Setting]:
    """The settings in ``ADVANCED``, in its order."""
    known = {setting.name: setting for setting in all_settings()}
    return [known[name] for name in ADVANCED]


def schema(setting: Setting) -> dict[str, Any]:
    """A setting's JSON schema without the option to leave it out: ``{"type": "integer", "minimum": 1, ...}``."""
    declared: Any = Annotated[setting.field.annotation, setting.name, *setting.field.metadata]
    whole = TypeAdapter(declared).json_schema()
    return next((part for part in whole.get("anyOf", ()) if part.get("type") != "null"), whole)


def label(setting: Setting) -> str:
    """``train.learning_rate`` as ``Learning rate``, ``prior.weight`` as ``Prior weight``."""
    section, _, name = setting.name.rpartition(".")
    words = name if section in ("train", "data", "model") else f"{section} {name}"
    return words.replace("_", " ").strip().capitalize()


def field(setting: Setting) -> Component:
    """An empty field for ``setting``: what is not filled in stays as the preset has it."""
    named: dict[str, Any] = {
        "label": label(setting),
        "info": setting.help,
        "elem_id": f"set-{setting.name.replace('.', '-')}",
    }
    kind = schema(setting).get("type")
    if kind == "boolean":
        return gr.Dropdown([("as the preset", ""), "yes", "no"], value="", interactive=True, **named)
    options = get_args(setting.field.annotation)
    if options and all(isinstance(option, str) for option in options):
        return gr.Dropdown([("as the preset", ""), *options], value="", interactive=True, **named)
    return gr.Textbox(placeholder="as the preset", **named)  # A number field cannot be left empty.


def changed(values: "tuple[Any, ...] | list[Any]") -> dict[str, Any]:
    """What was filled in of the fields of ``advanced()``, by the settings' names."""
    pairs = zip(ADVANCED, values, strict=True)
    given = {name: value.strip() if isinstance(value, str) else value for name, value in pairs}
    return {name: CHOICES.get(value, value) for name, value in given.items() if value not in (None, "")}
