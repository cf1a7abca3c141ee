"""The form of the Create tab: its fields, the request that they make, and how an image's settings fill them."""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.generation import GenerationRequest
from sdlora.formats.lora_tags import lora_tag
from sdlora.generation.infotext import RecalledSettings
from sdlora.generation.samplers import SAMPLERS, split_sampler
from sdlora.generation.settings import Engine, ImageSettings
from sdlora.section import settings
from sdlora.ui.adapter_rows import (
    AdapterRows,
    adapter_choices,
    adapter_rows,
    add_words,
    base_values,
    describe_tags,
    preferred_scale,
    row_buttons,
    words_button,
)
from sdlora.ui.app_state import MAX_IMAGES, AppState
from sdlora.ui.listeners import EVERY, HIDDEN, LAST, Changes, Values
from sdlora.ui.setting_fields import (
    SAMPLE_SETTINGS,
    base_setting_fields,
    choice_field,
    label,
    number_field,
    schema,
)

ROWS = 8
"""Adapters that one image can have."""
AUTOMATIC = "Automatic"
START = GenerationRequest()
"""Values of the fields at first."""
SYNTAX = "(word:1.2) weighs more, [word] less, <lora:name:0.8> sets an adapter; Shift+Enter creates"


@dataclass(frozen=True)
class CreateForm:
    """Components of the form."""

    prompt: gr.Textbox
    tags: gr.HTML
    """Line below the prompt on the adapters that it names."""
    negative: gr.Textbox
    rows: AdapterRows
    words: list[gr.Button]
    """Buttons that add an adapter's trigger words to the prompt."""
    count: gr.Slider
    seed: gr.Number
    random: gr.Button
    last: gr.Button
    create: gr.Button
    cancel: gr.Button
    status: gr.HTML
    base: gr.Dropdown
    sampler: gr.Dropdown
    schedule: gr.Dropdown
    numbers: dict[str, gr.Number]
    """Numbers among the settings of an image, by name."""
    base_settings: dict[str, gr.Dropdown]
    """Settings that a base model's own files may leave open, by name."""
    engine: dict[str, gr.Dropdown]
    """Settings of ``Engine``, by name."""

    @property
    def inputs(self) -> set[Block]:
        """Components that ``request`` reads."""
        return {
            self.prompt, self.negative, self.count, self.seed, self.base, self.sampler, self.schedule,
            *self.numbers.values(), *self.base_settings.values(), *self.engine.values(), *self.rows.inputs,
        }  # fmt: skip

    @property
    def filled(self) -> list[Block]:
        """Components that ``fill`` updates."""
        return [
            self.prompt, self.negative, self.seed, self.base, self.sampler, self.schedule, *self.numbers.values(),
            *self.base_settings.values(), self.rows.visible, *self.rows.rows, *self.rows.inputs,
        ]  # fmt: skip


def build(app: AppState) -> CreateForm:
    """Lay the fields out and wire them to each other."""
    prompt = gr.Textbox(
        "", label="Prompt", info=SYNTAX, lines=3, elem_id="prompt", placeholder="ohwx style, a red car on sand"
    )
    tags = gr.HTML(elem_id="prompt-tags")
    negative = gr.Textbox(
        "", label=label(SAMPLE_SETTINGS["negative"]), info=SAMPLE_SETTINGS["negative"].help, lines=2,
        elem_id="negative",
    )  # fmt: skip
    rows, words = _rows()
    with gr.Row(equal_height=False):
        count = gr.Slider(1, MAX_IMAGES, START.count, step=1, label="Pictures", min_width=160, elem_id="count")
        with gr.Column(min_width=160):
            seed = number_field(SAMPLE_SETTINGS["seed"], info="-1: random", maximum=None, elem_id="seed")
            with gr.Row(elem_classes="small-buttons"):
                random = gr.Button("Random", size="sm", min_width=70, elem_id="random-seed")
                last = gr.Button("Last seed", size="sm", min_width=70, elem_id="last-seed")
    with gr.Row():
        create = gr.Button("Create", variant="primary", size="lg", elem_id="create-button")
        cancel = gr.Button("Cancel", variant="stop", size="lg", visible=False, elem_id="cancel-button")
    status = gr.HTML(elem_id="create-status")
    form = CreateForm(
        prompt=prompt, tags=tags, negative=negative, rows=rows, words=words, count=count, seed=seed, random=random,
        last=last, create=create, cancel=cancel, status=status, **_advanced(app),
    )  # fmt: skip
    _wire(app, form)
    return form


def _advanced(app: AppState) -> dict[str, Any]:
    with gr.Accordion("Advanced", open=False, elem_id="create-advanced"):
        base = gr.Dropdown(
            app.base_choices(), value=START.base, label="Base model", allow_custom_value=True,
            info="An adapter that is chosen brings its own", elem_id="create-base",
        )  # fmt: skip
        sampler, schedule = split_sampler(START.sampler)
        with gr.Row():
            samplers = gr.Dropdown(list(SAMPLERS), value=sampler, label="Sampler", min_width=140, elem_id="sampler")
            schedules = gr.Dropdown(_schedules(sampler), value=schedule, label="Schedule type", min_width=140)
        numbers, base_settings, engine = _numbers(), base_setting_fields("create"), _engine()
    return {
        "base": base, "sampler": samplers, "schedule": schedules, "numbers": numbers, "base_settings": base_settings,
        "engine": engine,
    }  # fmt: skip


def _numbers() -> dict[str, gr.Number]:
    """Lay out a field for each number among the settings of an image; 0 stands for one that may be left out."""
    numbers = [setting for setting in settings(ImageSettings) if schema(setting)["type"] in ("integer", "number")]
    fields = {setting.name: number_field(setting) for setting in numbers if setting.default is not None}
    own = {"value": 0, "info": "0: the model's own", "minimum": 0, "maximum": None, "min_width": 120}
    with gr.Row():
        return fields | {setting.name: number_field(setting, **own) for setting in numbers if setting.default is None}


def _engine() -> dict[str, gr.Dropdown]:
    """Lay out fields for how images are computed; the one for xformers is visible where that is installed."""
    with gr.Row():
        return {
            setting.name: choice_field(
                setting, visible=setting.name != "attention" or find_spec("xformers") is not None,
                elem_id=f"create-{setting.name.replace('_', '-')}",
            )
            for setting in settings(Engine)
        }  # fmt: skip


def _rows() -> tuple[AdapterRows, list[gr.Button]]:
    """Lay out the rows for adapters, one of them visible, each with a button for its trigger words."""
    rows, words = adapter_rows("adapter", ROWS, 1, "Scale {}"), []
    for number, row in enumerate(rows.rows, 1):
        with row:
            words.append(gr.Button(visible=False, size="sm", elem_id=f"words-{number}", elem_classes="words"))
    row_buttons(rows, 1, "more-adapters", "fewer-adapters")
    return rows, words


def _wire(app: AppState, form: CreateForm) -> None:
    rows = form.rows
    gr.on(
        [form.prompt.change, *(row.change for row in rows.adapters)], partial(describe_tags, app, rows, form.prompt),
        {form.prompt, *rows.inputs}, form.tags, concurrency_limit=None, **LAST,
    )  # fmt: skip
    for row, scale, button in zip(rows.adapters, rows.scales, form.words, strict=True):
        row.select(
            partial(base_values, app, form.base, form.base_settings), [row, form.base],
            [form.base, *form.base_settings.values()], **HIDDEN,
        )  # fmt: skip
        row.select(partial(preferred_scale, app), row, scale, **HIDDEN)
        row.change(partial(words_button, app), row, button, concurrency_limit=None, **EVERY)
        button.click(partial(add_words, app), [form.prompt, row], form.prompt, **HIDDEN)
    form.sampler.select(
        _choose_sampler, [form.sampler, form.schedule], form.schedule, concurrency_limit=None, **HIDDEN
    )  # fmt: skip
    fields = list(form.base_settings.values())
    form.base.select(lambda: dict.fromkeys(fields, "auto"), None, fields, **HIDDEN)
    form.random.click(lambda: -1, None, form.seed, **HIDDEN)


def request(form: CreateForm, values: Values) -> tuple[GenerationRequest, list[tuple[str, float]]]:
    """Return the request that is filled in, and the names and scales of the chosen adapters."""
    seed, base_settings = values[form.seed], {name: values[field] for name, field in form.base_settings.items()}
    engine = Engine.model_validate({name: values[field] for name, field in form.engine.items()})
    numbers = {name: values[field] for name, field in form.numbers.items()}
    numbers |= {name: numbers[name] or None for name in numbers if SAMPLE_SETTINGS[name].default is None}
    filled = GenerationRequest.checked(
        prompt=values[form.prompt] or "",
        negative=values[form.negative] or "",
        seed=-1 if seed is None else seed,
        count=values[form.count],
        sampler=f"{values[form.sampler]} {values[form.schedule] or ''}",
        base=(values[form.base] or "").strip(),
        base_settings={name: value for name, value in base_settings.items() if value != "auto"},
        engine=engine.model_dump(exclude_defaults=True),
        **numbers,
    )
    return filled, form.rows.chosen(values)


def fill(app: AppState, form: CreateForm, recalled: RecalledSettings) -> Values:
    """Fill the form with ``recalled``: its adapters replace the chosen ones, and what it leaves out stays."""
    scales = list(recalled.scales.items())
    chosen, rest = scales[:ROWS], scales[ROWS:]
    filled: Values = {
        form.prompt: " ".join([recalled.prompt, *(lora_tag(name, scale) for name, scale in rest)]),
        form.negative: recalled.negative,
        **form.rows.show(max(1, len(chosen))),
    }
    choices = adapter_choices(app.snapshot().adapters)
    empty = [("", 1.0)] * (ROWS - len(chosen))
    for adapter, slider, (name, scale) in zip(form.rows.adapters, form.rows.scales, [*chosen, *empty], strict=True):
        filled |= {adapter: gr.update(choices=choices, value=name), slider: scale}
    if base := base_called(app, recalled):
        filled[form.base] = base
    if recalled.sampler:
        sampler, schedule = split_sampler(recalled.sampler)
        filled |= {form.sampler: sampler, form.schedule: gr.update(choices=_schedules(sampler), value=schedule)}
    numbers = {"clip_skip": START.clip_skip, **recalled.numbers}  # A1111 writes it only where it is not 1.
    fields = {"seed": form.seed, **form.numbers}
    filled |= {field: numbers[name] for name, field in fields.items() if name in numbers}
    for name, field in form.base_settings.items():
        filled[field] = recalled.base_settings.get(name, "auto")
    return filled


def base_called(app: AppState, recalled: RecalledSettings) -> str:
    """Return the base model that ``recalled`` names by its last part, or that of its adapters; "" for neither."""
    adapters = app.snapshot().adapters
    bases = [*(base for _, base in app.base_choices()), *(adapter.base for adapter in adapters)]
    of_adapters = [*(adapter.base for adapter in adapters if adapter.name in recalled.scales), ""]
    return next((base for base in bases if recalled.model and base_name(base) == recalled.model), of_adapters[0])


def base_name(base: str) -> str:
    """Return the last part of ``base``, as the parameters of images have it."""
    return Path(base).name.removesuffix(".safetensors")


def _schedules(sampler: str) -> list[str]:
    return [AUTOMATIC, *SAMPLERS[sampler].schedules]


def _choose_sampler(sampler: str, schedule: str) -> Any:
    """List the schedule types of a sampler; the chosen one stays if it is among them."""
    choices = _schedules(sampler)
    return gr.update(choices=choices, value=schedule if schedule in choices else AUTOMATIC)


def refresh_adapters(app: AppState, form: CreateForm, first: str | None, changes: Changes) -> None:
    """List new adapters in all rows, and choose the newest with its base if the ``first`` row is empty."""
    adapters = app.snapshot().adapters
    names = tuple(adapter.name for adapter in adapters)
    if changes.seen.get("adapters") == names:
        return
    changes.seen["adapters"] = names
    choices = adapter_choices(adapters)
    changes.updates |= {row: gr.update(choices=choices) for row in form.rows.adapters}
    if adapters and not first:
        changes.updates |= {
            form.rows.adapters[0]: gr.update(choices=choices, value=names[0]), form.base: adapters[0].base,
        }  # fmt: skip
