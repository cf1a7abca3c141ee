"""The form of the Create tab: its fields, the request that they make, and how an image's settings fill them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.adapters import preferred_weight, trigger_words
from sdlora.api.generation import GenerationRequest
from sdlora.errors import SdloraError
from sdlora.families.settings import Model
from sdlora.formats.lora_tags import lora_tag, parse_lora_tags
from sdlora.formatting import one_line
from sdlora.generation.infotext import BASE_OVERRIDES, RecalledSettings
from sdlora.generation.samplers import SAMPLERS, split_sampler
from sdlora.generation.settings import Engine
from sdlora.section import settings
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import EVERY, HIDDEN, LAST, Changes, Values
from sdlora.ui.setting_fields import SAMPLE_SETTINGS, options

ROWS = 8
NONE = ("none", "")
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
    rows: list[gr.Row]
    adapters: list[gr.Dropdown]
    scales: list[gr.Slider]
    words: list[gr.Button]
    """Buttons that add an adapter's trigger words to the prompt."""
    visible_rows: gr.State
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
    steps: gr.Number
    cfg: gr.Number
    clip_skip: gr.Number
    width: gr.Number
    height: gr.Number
    base_settings: dict[str, gr.Dropdown]
    """Settings that a base model's own files may leave open, by name."""
    engine: dict[str, gr.Dropdown]
    """Settings of ``Engine``, by name."""

    @property
    def inputs(self) -> set[Block]:
        """Components that ``request`` reads."""
        return {
            self.prompt, self.negative, self.count, self.seed, self.base, self.sampler, self.schedule, self.steps,
            self.cfg, self.clip_skip, self.width, self.height, *self.base_settings.values(), *self.engine.values(),
            *self.adapters, *self.scales,
        }  # fmt: skip

    @property
    def filled(self) -> list[Block]:
        """Components that ``fill`` updates."""
        return [
            self.prompt, self.negative, self.seed, self.base, self.sampler, self.schedule, self.steps, self.cfg,
            self.clip_skip, self.width, self.height, *self.base_settings.values(), self.visible_rows, *self.rows,
            *self.adapters, *self.scales,
        ]  # fmt: skip


def build(app: AppState) -> CreateForm:
    """Lay the fields out and wire them to each other."""
    prompt = gr.Textbox(
        "", label="Prompt", info=SYNTAX, lines=3, elem_id="prompt", placeholder="ohwx style, a red car on sand"
    )
    tags = gr.HTML(elem_id="prompt-tags")
    negative = gr.Textbox(
        "", label="Negative prompt", info=SAMPLE_SETTINGS["negative"].help, lines=2, elem_id="negative"
    )
    rows = _rows()
    with gr.Row(equal_height=False):
        count = gr.Slider(1, 16, START.count, step=1, label="Pictures", min_width=160, elem_id="count")
        with gr.Column(min_width=160):
            seed = gr.Number(
                START.seed, label="Seed", info="-1: random", precision=0, minimum=-1, elem_id="seed"
            )  # fmt: skip
            with gr.Row(elem_classes="small-buttons"):
                random = gr.Button("Random", size="sm", min_width=70, elem_id="random-seed")
                last = gr.Button("Last seed", size="sm", min_width=70, elem_id="last-seed")
    with gr.Row():
        create = gr.Button("Create", variant="primary", size="lg", elem_id="create-button")
        cancel = gr.Button("Cancel", variant="stop", size="lg", visible=False, elem_id="cancel-button")
    status = gr.HTML(elem_id="create-status")
    form = CreateForm(
        prompt=prompt, tags=tags, negative=negative, **rows, count=count, seed=seed, random=random, last=last,
        create=create, cancel=cancel, status=status, **_advanced(app),
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
        steps, cfg, clip_skip = (
            gr.Number(
                SAMPLE_SETTINGS[name].default,
                label=label,
                info=SAMPLE_SETTINGS[name].help,
                step=step,
                precision=precision,
                minimum=SAMPLE_SETTINGS[name].bounds[0],
                maximum=SAMPLE_SETTINGS[name].bounds[1],
            )
            for name, label, step, precision in (
                ("steps", "Steps", 1, 0),
                ("cfg", "CFG", 0.5, None),
                ("clip_skip", "Clip skip", 1, 0),
            )
        )
        with gr.Row():
            width, height = (
                gr.Number(0, label=name, info="0: the model's own", precision=0, minimum=0, min_width=120)
                for name in ("Width", "Height")
            )
        base_settings, engine = base_setting_fields("create"), _engine()
    return {
        "base": base, "sampler": samplers, "schedule": schedules, "steps": steps, "cfg": cfg, "clip_skip": clip_skip,
        "width": width, "height": height, "base_settings": base_settings, "engine": engine,
    }  # fmt: skip


def base_setting_fields(prefix: str) -> dict[str, gr.Dropdown]:
    """Lay out fields for settings that a base model's own files may leave open; ``prefix`` begins their element ids."""
    declared = {setting.name: setting for setting in settings(Model)}
    with gr.Row():
        return {
            name: gr.Dropdown(
                list(options(declared[name])), value="auto", label=label, min_width=160,
                info=f"{declared[name].help.replace(' (`auto`)', '')} `auto`: as the adapter's run or the base has it.",
                elem_id=f"{prefix}-{name.replace('_', '-')}",
            )
            for name, label in BASE_OVERRIDES.items()
        }  # fmt: skip


def _engine() -> dict[str, gr.Dropdown]:
    """Lay out fields for how images are computed; the one for xformers is visible where that is installed."""
    labels = {"vae_tiling": "Decode in tiles", "offload": "Offload", "attention": "Attention"}
    with gr.Row():
        return {
            setting.name: gr.Dropdown(
                list(options(setting)), value=setting.default, label=labels[setting.name], info=setting.help,
                visible=setting.name != "attention" or find_spec("xformers") is not None, min_width=160,
                elem_id=f"create-{setting.name.replace('_', '-')}",
            )
            for setting in settings(Engine)
        }  # fmt: skip


def _rows() -> dict[str, Any]:
    """Lay out eight rows for adapters, one of them visible; hidden rows keep their values."""
    rows: list[gr.Row] = []
    adapters, scales, words = [], [], []
    for number in range(1, ROWS + 1):
        with gr.Row(visible=number == 1, elem_classes="adapter") as row:
            named: dict[str, Any] = {"label": f"Adapter {number}", "elem_id": f"adapter-{number}", "scale": 2}
            # Custom values: Gradio refuses every event of a page on which a deleted adapter is chosen.
            adapters.append(gr.Dropdown([NONE], value="", allow_custom_value=True, **named))
            scales.append(gr.Slider(-2, 2, 1.0, step=0.05, label=f"Scale {number}", scale=3, min_width=140))
            words.append(gr.Button(visible=False, size="sm", elem_id=f"words-{number}", elem_classes="words"))
        rows.append(row)
    visible_rows = gr.State(1)
    with gr.Row(elem_classes="small-buttons"):
        more = gr.Button("+ Adapter", size="sm", min_width=100, elem_id="more-adapters")
        fewer = gr.Button("− Adapter", size="sm", min_width=100, elem_id="fewer-adapters")

    def show(change: int, number: int) -> Values:
        return row_values(visible_rows, rows, min(ROWS, max(1, number + change)))

    for button, change in ((more, 1), (fewer, -1)):
        button.click(partial(show, change), visible_rows, [visible_rows, *rows], **HIDDEN)
    return {"rows": rows, "adapters": adapters, "scales": scales, "words": words, "visible_rows": visible_rows}


def row_values(visible_rows: gr.State, rows: Sequence[gr.Row], number: int) -> Values:
    """Show the first ``number`` rows."""
    return {visible_rows: number, **{row: gr.update(visible=n < number) for n, row in enumerate(rows)}}


def _wire(app: AppState, form: CreateForm) -> None:
    gr.on(
        [form.prompt.change, *(row.change for row in form.adapters)], partial(_describe_tags, app, form),
        {form.prompt, *form.adapters, *form.scales}, form.tags, concurrency_limit=None, **LAST,
    )  # fmt: skip
    for row, scale, button in zip(form.adapters, form.scales, form.words, strict=True):
        row.select(
            partial(base_values, app, form.base, form.base_settings), [row, form.base],
            [form.base, *form.base_settings.values()], **HIDDEN,
        )  # fmt: skip
        row.select(partial(_preferred_scale, app), row, scale, **HIDDEN)
        row.change(partial(_words_button, app), row, button, concurrency_limit=None, **EVERY)
        button.click(partial(_add_words, app), [form.prompt, row], form.prompt, **HIDDEN)
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
    filled = GenerationRequest.checked(
        prompt=values[form.prompt] or "",
        negative=values[form.negative] or "",
        seed=-1 if seed is None else seed,
        steps=values[form.steps],
        cfg=values[form.cfg],
        width=values[form.width] or None,
        height=values[form.height] or None,
        count=values[form.count],
        sampler=f"{values[form.sampler]} {values[form.schedule] or ''}",
        base=(values[form.base] or "").strip(),
        clip_skip=values[form.clip_skip],
        base_settings={name: value for name, value in base_settings.items() if value != "auto"},
        engine=engine.model_dump(exclude_defaults=True),
    )
    return filled, chosen_adapters(form.adapters, form.scales, values)


def chosen_adapters(
    adapters: Sequence[gr.Dropdown], scales: Sequence[gr.Slider], values: Values
) -> list[tuple[str, float]]:
    """Return the names and scales of the rows in which an adapter is chosen."""
    rows = zip(adapters, scales, strict=True)
    return [(values[name], float(values[scale])) for name, scale in rows if values[name]]


def fill(app: AppState, form: CreateForm, recalled: RecalledSettings) -> Values:
    """Fill the form with ``recalled``: its adapters replace the chosen ones, and what it leaves out stays."""
    scales = list(recalled.scales.items())
    chosen, rest = scales[:ROWS], scales[ROWS:]
    filled: Values = {
        form.prompt: " ".join([recalled.prompt, *(lora_tag(name, scale) for name, scale in rest)]),
        form.negative: recalled.negative,
        **row_values(form.visible_rows, form.rows, max(1, len(chosen))),
    }
    choices = _choices(app)
    empty = [("", 1.0)] * (ROWS - len(chosen))
    for adapter, slider, (name, scale) in zip(form.adapters, form.scales, [*chosen, *empty], strict=True):
        filled |= {adapter: gr.update(choices=choices, value=name), slider: scale}
    if base := base_called(app, recalled):
        filled[form.base] = base
    if recalled.sampler:
        sampler, schedule = split_sampler(recalled.sampler)
        filled |= {form.sampler: sampler, form.schedule: gr.update(choices=_schedules(sampler), value=schedule)}
    numbers = {"clip_skip": START.clip_skip, **recalled.numbers}  # A1111 writes it only where it is not 1.
    filled |= {
        getattr(form, name): numbers[name]
        for name in ("seed", "steps", "cfg", "clip_skip", "width", "height") if name in numbers
    }  # fmt: skip
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


def _choices(app: AppState) -> list[tuple[str, str]]:
    return [NONE, *((adapter.name, adapter.name) for adapter in app.snapshot().adapters)]


def _schedules(sampler: str) -> list[str]:
    return [AUTOMATIC, *SAMPLERS[sampler].schedules]


def _choose_sampler(sampler: str, schedule: str) -> Any:
    """List the schedule types of a sampler; the chosen one stays if it is among them."""
    choices = _schedules(sampler)
    return gr.update(choices=choices, value=schedule if schedule in choices else AUTOMATIC)


def _describe_tags(app: AppState, form: CreateForm, values: Values) -> str:
    """Describe the adapters that the prompt names, with their scales, and what is wrong with them."""
    try:
        tags = parse_lora_tags(values[form.prompt] or "").scales
    except SdloraError as error:
        return page_html.note([str(error)], "bad")
    chosen = dict(chosen_adapters(form.adapters, form.scales, values))
    names = [adapter.name for adapter in app.snapshot().adapters]
    lines = []
    for name, scale in tags.items():
        numbers = lora_tag(name, scale).removeprefix(f"<lora:{name}:").removesuffix(">").replace(":", " and ")
        if name not in names:
            others = ", ".join(names) or "none yet"
            lines.append(f"{one_line(name, 60)}: there is no adapter of this name; there are: {others}")
        else:
            lines.append(f"{name}: {numbers} from the prompt{', not its slider' if name in chosen else ''}")
    return page_html.note(lines, "info" if tags.keys() <= set(names) else "bad")


def base_values(
    app: AppState, base: gr.Dropdown, base_settings: Mapping[str, gr.Dropdown], adapter: str, before: str
) -> Values:
    """Choose the base model of an adapter; settings that were made for another base go back to ``auto``."""
    found = next((each.base for each in app.snapshot().adapters if each.name == adapter), "")
    if not found or found == before:
        return gr.skip()
    return {base: found, **dict.fromkeys(base_settings.values(), "auto")}


def _path(app: AppState, name: str | None) -> Path | None:
    return next((adapter.path for adapter in app.snapshot().adapters if adapter.name == name), None)


def _preferred_scale(app: AppState, name: str) -> Any:
    """Return the scale that an adapter's file prefers."""
    path = _path(app, name)
    return preferred_weight(path) if path else gr.skip()


def _trigger(app: AppState, name: str | None) -> str:
    path = _path(app, name)
    return trigger_words(path) if path else ""


def _words_button(app: AppState, name: str | None) -> Any:
    """Show the button that adds the adapter's trigger words, if it has some."""
    words = _trigger(app, name)
    return gr.update(value=f"Add “{words}” to the prompt", visible=bool(words))


def _add_words(app: AppState, prompt: str | None, name: str) -> str:
    """Put the adapter's trigger words in front of the prompt, unless it has them."""
    words, prompt = _trigger(app, name), (prompt or "").strip()
    return prompt if words.lower() in prompt.lower() else ", ".join(filter(None, (words, prompt)))


def refresh_adapters(app: AppState, form: CreateForm, first: str | None, changes: Changes) -> None:
    """List new adapters in all rows, and choose the newest with its base if the ``first`` row is empty."""
    adapters = app.snapshot().adapters
    names = tuple(adapter.name for adapter in adapters)
    if changes.seen.get("adapters") == names:
        return
    changes.seen["adapters"] = names
    choices = _choices(app)
    changes.updates |= {row: gr.update(choices=choices) for row in form.adapters}
    if adapters and not first:
        changes.updates |= {
            form.adapters[0]: gr.update(choices=choices, value=names[0]), form.base: adapters[0].base,
        }  # fmt: skip
