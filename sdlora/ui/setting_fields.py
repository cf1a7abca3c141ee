"""Form fields made from the declarations of settings, which alone state type, range and help."""

import math
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import gradio as gr
from gradio.components import Component
from pydantic import TypeAdapter

from sdlora.config import TrainConfig, all_settings, value_of
from sdlora.families.settings import Model
from sdlora.generation.infotext import BASE_OVERRIDES
from sdlora.generation.settings import GenerationSettings
from sdlora.section import Setting, settings

SAMPLE_SETTINGS = {setting.name: setting for setting in settings(GenerationSettings)}
"""The settings of an image, by name."""
MAIN_CONTROLS = {"model.base", "data.folder", "data.trigger", "data.class_name", "train.epochs", "sample.prompts"}
"""Settings that the main controls set; the quality sets the number of steps."""
SECTIONS = {
    "model": "Base model", "data": "Pictures and captions", "prior": "Class pictures", "adapter": "Adapter",
    "train": "Training", "loss": "Loss", "optimizer": "Optimizer", "schedule": "Learning-rate schedule",
    "checkpoint": "Checkpoints", "sample": "Previews", "monitor": "Measurements",
}  # fmt: skip
"""The headings of the config's sections."""
CHOICES = {"yes": True, "no": False}
LABELS = {"negative": "Negative prompt", "cfg": "CFG", "vae_tiling": "Decode in tiles"}
"""Labels that differ from the setting's name."""


@cache
def advanced_settings() -> tuple[Setting, ...]:
    """Return the settings of a run, in order of declaration.

    Paths, settings of the main controls and settings without a choice are left out.
    """
    return tuple(
        setting
        for setting in all_settings()
        if setting.name not in MAIN_CONTROLS and Path not in _types(setting) and len(options(setting)) != 1
    )


def by_section() -> dict[str, list[Setting]]:
    """Return ``advanced_settings()`` by the heading of their section."""
    found: dict[str, list[Setting]] = {}
    for setting in advanced_settings():
        section = setting.name.split(".")[0]
        found.setdefault(SECTIONS.get(section, section.capitalize()), []).append(setting)
    return found


def _types(setting: Setting) -> tuple[Any, ...]:
    return (setting.field.annotation, *get_args(setting.field.annotation))


def options(setting: Setting) -> tuple[str, ...]:
    """Return the words to choose from; none if ``setting`` takes free text or numbers."""
    if schema(setting).get("type") == "boolean":
        return tuple(CHOICES)
    return tuple(schema(setting).get("enum") or ([schema(setting)["const"]] if "const" in schema(setting) else []))


def schema(setting: Setting) -> dict[str, Any]:
    """Return the JSON schema of a setting that is not None: ``{"type": "integer", "minimum": 1, ...}``."""
    declared: Any = Annotated[setting.field.annotation, setting.name, *setting.field.metadata]
    whole = TypeAdapter(declared).json_schema()
    return next((part for part in whole.get("anyOf", ()) if part.get("type") != "null"), whole)


def label(setting: Setting) -> str:
    """Return ``Learning rate`` for ``train.learning_rate``, ``Prior weight`` for ``prior.weight``."""
    if setting.name in LABELS:
        return LABELS[setting.name]
    section, _, name = setting.name.rpartition(".")
    words = name if section in ("train", "data", "model") else f"{section} {name}"
    return words.replace("_", " ").strip().capitalize()


def elem_id(name: str) -> str:
    """Return the element id of the field of setting ``name``."""
    return f"set-{name.replace('.', '-')}"


def number_field(setting: Setting, **own: Any) -> gr.Number:
    """Return a field for a number with its default, bounds and help; ``own`` are options that differ."""
    whole, (least, most) = schema(setting)["type"] == "integer", setting.bounds
    declared = {
        "value": setting.default, "label": label(setting), "info": setting.help, "step": 1 if whole else 0.5,
        "precision": 0 if whole else None, "minimum": least if math.isfinite(least) else None,
        "maximum": most if math.isfinite(most) else None,
    }  # fmt: skip
    return gr.Number(**{**declared, **own})


def text_field(setting: Setting, **own: Any) -> gr.Textbox:
    """Return a field for a text with its default and help; ``own`` are options that differ."""
    declared = {"value": setting.default, "label": label(setting), "info": setting.help, "max_lines": 1}
    return gr.Textbox(**{**declared, **own})


def choice_field(setting: Setting, **own: Any) -> gr.Dropdown:
    """Return a field for one of a setting's values, with its default and help; ``own`` are options that differ."""
    declared = {"value": setting.default, "label": label(setting), "info": setting.help, "min_width": 160}
    return gr.Dropdown(list(options(setting)), **{**declared, **own})


def base_setting_fields(prefix: str) -> dict[str, gr.Dropdown]:
    """Lay out fields for settings that a base model's own files may leave open; ``prefix`` begins their element ids."""
    declared = {setting.name: setting for setting in settings(Model)}
    with gr.Row():
        return {
            name: choice_field(
                declared[name], label=title, elem_id=f"{prefix}-{name.replace('_', '-')}",
                info=f"{declared[name].help.replace(' (`auto`)', '')} `auto`: as the adapter's run or the base has it.",
            )
            for name, title in BASE_OVERRIDES.items()
        }  # fmt: skip


def setting_field(setting: Setting) -> Component:
    """Return a field for ``setting``; while it is empty, the preset's value applies."""
    named: dict[str, Any] = {
        "label": label(setting), "info": setting.help, "elem_id": elem_id(setting.name), "interactive": True,
    }  # fmt: skip
    if options(setting):
        return gr.Dropdown(_choices(setting, "as the preset"), value="", **named)
    return gr.Textbox("", placeholder="as the preset", **named)  # A number field cannot be left empty.


def _choices(setting: Setting, empty: str) -> list[tuple[str, str]]:
    return [(empty, ""), *((option, option) for option in options(setting))]


def placeholders(config: TrainConfig, derived: Mapping[str, str]) -> dict[str, Any]:
    """Return updates by setting that show what an empty field stands for: the preset's value, or ``derived``."""
    updates = {}
    for setting in advanced_settings():
        value = derived.get(setting.name) or format_value(value_of(config, setting))
        if options(setting):
            updates[setting.name] = gr.update(choices=_choices(setting, f"as the preset: {value}"))
        else:
            updates[setting.name] = gr.update(placeholder=value)
    return updates


def format_value(value: Any) -> str:
    """Return a value as a person would type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "not set" if value is None else "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_values(config: TrainConfig, preset: TrainConfig, derived: Collection[str]) -> dict[str, str]:
    """Return the text of each field, by setting, so that the form describes ``config``.

    A field stays empty where ``config`` agrees with ``preset``, unless the page derives that setting for every run. A
    setting that is an empty text cannot be filled in.
    """
    values = {}
    for setting in advanced_settings():
        value, usual = (value_of(source, setting) for source in (config, preset))
        as_usual = value == usual and setting.name not in derived
        text = "none" if value is None else format_value(value)
        values[setting.name] = "" if as_usual or value == "" else text
    return values


def parse_changes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the fields that are filled in, by setting. The text ``none`` leaves a setting unset."""
    changes: dict[str, Any] = {}
    for setting in advanced_settings():
        value = values.get(setting.name)
        value = value.strip() if isinstance(value, str) else value
        if value in (None, ""):
            continue
        if setting.field.annotation is bool:
            value = CHOICES.get(value, value)
        elif NoneType in _types(setting) and str(value).lower() == "none":
            value = None
        changes[setting.name] = value
    return changes
