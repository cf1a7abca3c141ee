"""What to draw: the fields of the tab Create, and how they become a request, or are filled from a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

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
from sdlora.ui.listeners import EVERY, HIDDEN, LAST
from sdlora.ui.setting_fields import SAMPLE_SETTINGS, options

ROWS = 8
NONE = ("none", "")
AUTOMATIC = "Automatic"
START = GenerationRequest()
"""What the fields hold at first."""
FILLED = 12 + len(BASE_OVERRIDES) + 3 * ROWS
"""How many fields ``fill`` gives values to."""
SYNTAX = "(word:1.2) weighs more, [word] less, <lora:name:0.8> sets an adapter; Shift+Enter draws"


@dataclass(frozen=True)
class CreateForm:
    """The fields, and the line below the prompt that says which adapters it names."""

    prompt: gr.Textbox
    tags: gr.HTML
    negative: gr.Textbox
    rows: list[gr.Row]
    adapters: list[gr.Dropdown]
    scales: list[gr.Slider]
    words: list[gr.Button]
    shown: gr.State
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
    sizes: list[gr.Number]
    said: list[gr.Dropdown]
    """What is said of the base: ``BASE_OVERRIDES``."""
    engine: list[gr.Dropdown]
    """How it is computed: the settings of ``Engine``."""

    @property
    def values(self) -> list[Any]:
        """What ``request`` takes, in its order."""
        return [
            self.prompt, self.negative, self.count, self.seed, self.base, self.sampler, self.schedule, self.steps,
            self.cfg, self.clip_skip, *self.sizes, *self.said, *self.engine, *self.adapters, *self.scales,
        ]  # fmt: skip

    @property
    def filled(self) -> list[Any]:
        """What ``fill`` gives new values to, in its order."""
        return [
            self.prompt, self.negative, self.seed, self.base, self.sampler, self.schedule, self.steps, self.cfg,
            self.clip_skip, *self.sizes, *self.said, self.shown, *self.rows, *self.adapters, *self.scales,
        ]  # fmt: skip


def build(app: AppState) -> CreateForm:
    """Lay the fields out and wire them among themselves."""
    prompt = gr.Textbox(
        "", label="Prompt", info=SYNTAX, lines=3, elem_id="prompt", placeholder="ohwx style, a red car on sand"
    )
    tags = gr.HTML(elem_id="prompt-tags")
    negative = gr.Textbox(
        "", label="Negative prompt", info=SAMPLE_SETTINGS["negative"].help, lines=2, elem_id="negative"
    )
    rows, adapters, scales, words, shown = _rows()
    with gr.Row(equal_height=False):
        count = gr.Slider(1, 16, START.count, step=1, label="Pictures", min_width=160, elem_id="count")
        with gr.Column(min_width=160):
            seed = gr.Number(
                START.seed, label="Seed", info="-1 draws one", precision=0, minimum=-1, elem_id="seed"
            )  # fmt: skip
            with gr.Row(elem_classes="small-buttons"):
                random = gr.Button("Random", size="sm", min_width=70, elem_id="random-seed")
                last = gr.Button("Last seed", size="sm", min_width=70, elem_id="last-seed")
    with gr.Row():
        create = gr.Button("Create", variant="primary", size="lg", elem_id="create-button")
        cancel = gr.Button("Cancel", variant="stop", size="lg", visible=False, elem_id="cancel-button")
    status = gr.HTML(elem_id="create-status")
    inputs = CreateForm(
        prompt, tags, negative, rows, adapters, scales, words, shown, count, seed, random, last, create, cancel,
        status, **_advanced(app),
    )  # fmt: skip
    _wire(app, inputs)
    return inputs


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
            sizes = [
                gr.Number(0, label=name, info="0: the model's own", precision=0, minimum=0, min_width=120)
                for name in ("Width", "Height")
            ]
        said, engine = said_of_base("create"), _engine()
    return {
        "base": base, "sampler": samplers, "schedule": schedules, "steps": steps, "cfg": cfg, "clip_skip": clip_skip,
        "sizes": sizes, "said": said, "engine": engine,
    }  # fmt: skip


def said_of_base(place: str) -> list[gr.Dropdown]:
    """Fields for what a base's own files do not tell, on the tab ``place``."""
    known = {setting.name: setting for setting in settings(Model)}
    with gr.Row():
        return [
            gr.Dropdown(
                list(options(known[name])), value="auto", label=label, min_width=160,
                info=f"{known[name].help.replace(' (`auto`)', '')} `auto`: as the adapter's run has it, or the base.",
                elem_id=f"{place}-{name.replace('_', '-')}",
            )
            for name, label in BASE_OVERRIDES.items()
        ]  # fmt: skip


def _engine() -> list[gr.Dropdown]:
    """Fields for how pictures are computed; that of xformers is seen where it is installed."""
    labels = {"vae_tiling": "Decode in tiles", "offload": "Offload", "attention": "Attention"}
    with gr.Row():
        return [
            gr.Dropdown(
                list(options(setting)), value=setting.default, label=labels[setting.name], info=setting.help,
                visible=setting.name != "attention" or find_spec("xformers") is not None, min_width=160,
                elem_id=f"create-{setting.name.replace('_', '-')}",
            )
            for setting in settings(Engine)
        ]  # fmt: skip


def _rows() -> tuple[list[gr.Row], list[gr.Dropdown], list[gr.Slider], list[gr.Button], gr.State]:
    """Eight rows, of which as many are seen as are asked for: what they hold is kept as they come and go."""
    rows, adapters, scales, words = [], [], [], []
    for number in range(1, ROWS + 1):
        with gr.Row(visible=number == 1, elem_classes="adapter") as row:
            named: dict[str, Any] = {"label": f"Adapter {number}", "elem_id": f"adapter-{number}", "scale": 2}
            # Custom values, as Gradio refuses every event of a page that has a name chosen that was deleted since.
            adapters.append(gr.Dropdown([NONE], value="", allow_custom_value=True, **named))
            scales.append(gr.Slider(-2, 2, 1.0, step=0.05, label=f"Scale {number}", scale=3, min_width=140))
            words.append(gr.Button(visible=False, size="sm", elem_id=f"words-{number}", elem_classes="words"))
        rows.append(row)
    shown = gr.State(1)
    with gr.Row(elem_classes="small-buttons"):
        more = gr.Button("+ Adapter", size="sm", min_width=100, elem_id="more-adapters")
        fewer = gr.Button("− Adapter", size="sm", min_width=100, elem_id="fewer-adapters")
    for button, change in ((more, 1), (fewer, -1)):
        button.click(partial(_show, change), shown, [shown, *rows], **HIDDEN)
    return rows, adapters, scales, words, shown


def _wire(app: AppState, inputs: CreateForm) -> None:
    gr.on(
        [inputs.prompt.change, *(row.change for row in inputs.adapters)], partial(_tags, app),
        [inputs.prompt, *inputs.adapters, *inputs.scales], inputs.tags, concurrency_limit=None, **LAST,
    )  # fmt: skip
    for row, scale, button in zip(inputs.adapters, inputs.scales, inputs.words, strict=True):
        row.select(partial(_base_of, app), [row, inputs.base], [inputs.base, *inputs.said], **HIDDEN)
        row.select(partial(_weight_of, app), row, scale, **HIDDEN)
        row.change(partial(_words_of, app), row, button, concurrency_limit=None, **EVERY)
        button.click(partial(_say, app), [inputs.prompt, row], inputs.prompt, **HIDDEN)
    inputs.sampler.select(
        _choose_sampler, [inputs.sampler, inputs.schedule], inputs.schedule, concurrency_limit=None, **HIDDEN
    )
    inputs.base.select(lambda: ["auto"] * len(BASE_OVERRIDES), None, inputs.said, **HIDDEN)
    inputs.random.click(lambda: -1, None, inputs.seed, **HIDDEN)


def request(*values: Any) -> tuple[GenerationRequest, list[tuple[str, float]]]:
    """The request that ``CreateForm.values`` hold, and the adapters chosen, by name and scale."""
    prompt, negative, count, seed, base, sampler, schedule, steps, cfg, clip_skip, width, height = values[:12]
    said, rest = values[12 : 12 + len(BASE_OVERRIDES)], values[12 + len(BASE_OVERRIDES) :]
    engine, adapters, scales = rest[: -2 * ROWS], rest[-2 * ROWS : -ROWS], rest[-ROWS:]
    computed = Engine.model_validate(dict(zip(Engine.model_fields, engine, strict=True)))
    asked = GenerationRequest.checked(
        prompt=prompt or "", negative=negative or "", seed=-1 if seed is None else seed, steps=steps, cfg=cfg,
        width=width or None, height=height or None, count=count, sampler=f"{sampler} {schedule or ''}",
        base=(base or "").strip(), clip_skip=clip_skip,
        base_settings={name: value for name, value in zip(BASE_OVERRIDES, said, strict=True) if value != "auto"},
        engine=computed.model_dump(exclude_defaults=True),
    )  # fmt: skip
    return asked, [(name, float(scale)) for name, scale in zip(adapters, scales, strict=True) if name]


def fill(app: AppState, recalled: RecalledSettings) -> list[Any]:
    """New values for ``CreateForm.filled``; what ``recalled`` does not say stays, but the adapters are its alone."""
    sampler, schedule = split_sampler(recalled.sampler) if recalled.sampler else ("", "")
    chosen, rest = list(recalled.scales.items())[:ROWS], list(recalled.scales.items())[ROWS:]
    tags = (lora_tag(name, scale) for name, scale in rest)
    rows = [*chosen, *[("", 1.0)] * (ROWS - len(chosen))]
    choices = _choices(app)
    numbers = {"clip_skip": START.clip_skip, **recalled.numbers}  # A1111 writes it only where it is not 1.
    seed, *others = (numbers.get(name, gr.skip()) for name in ("seed", "steps", "cfg", "clip_skip", "width", "height"))
    return [
        " ".join([recalled.prompt, *tags]), recalled.negative, seed, base_called(app, recalled) or gr.skip(),
        sampler or gr.skip(), gr.update(choices=_schedules(sampler), value=schedule) if sampler else gr.skip(),
        *others, *(recalled.base_settings.get(name, "auto") for name in BASE_OVERRIDES), *_show(0, len(chosen)),
        *(gr.update(choices=choices, value=name) for name, _ in rows), *(scale for _, scale in rows),
    ]  # fmt: skip


def base_called(app: AppState, recalled: RecalledSettings) -> str:
    """The base that ``recalled`` names by its last part, or the one of its adapters; empty if neither is known."""
    adapters = app.snapshot().adapters
    known = [*(base for _, base in app.base_choices()), *(adapter.base for adapter in adapters)]
    own = [adapter.base for adapter in adapters if adapter.name in recalled.scales]
    return next((base for base in known if recalled.model and base_name(base) == recalled.model), *own[:1] or [""])


def base_name(base: str) -> str:
    """What pictures call a ``base``: its last part."""
    return Path(base).name.removesuffix(".safetensors")


def _choices(app: AppState) -> list[tuple[str, str]]:
    return [NONE, *((adapter.name, adapter.name) for adapter in app.snapshot().adapters)]


def _schedules(sampler: str) -> list[str]:
    return [AUTOMATIC, *SAMPLERS[sampler].schedules]


def _choose_sampler(sampler: str, schedule: str) -> Any:
    """The schedule types that a sampler takes; the chosen one stays where it can."""
    choices = _schedules(sampler)
    return gr.update(choices=choices, value=schedule if schedule in choices else AUTOMATIC)


def _show(change: int, shown: int) -> list[Any]:
    shown = min(ROWS, max(1, shown + change))
    return [shown, *(gr.update(visible=number < shown) for number in range(ROWS))]


def _tags(app: AppState, prompt: str, *rows: Any) -> str:
    """Which adapters the prompt names, at which scales, and what is wrong with that."""
    try:
        asked = parse_lora_tags(prompt or "").scales
    except SdloraError as error:
        return page_html.note([str(error)], "bad")
    chosen = {name: scale for name, scale in zip(rows[:ROWS], rows[ROWS:], strict=True) if name}
    known = [adapter.name for adapter in app.snapshot().adapters]
    lines = []
    for name, scale in asked.items():
        numbers = lora_tag(name, scale).removeprefix(f"<lora:{name}:").removesuffix(">").replace(":", " and ")
        if name not in known:
            others = ", ".join(known) or "none yet"
            lines.append(f"{one_line(name, 60)}: there is no adapter of this name; there are: {others}")
        else:
            lines.append(f"{name}: {numbers} from the prompt{', not its slider' if name in chosen else ''}")
    return page_html.note(lines, "info" if asked.keys() <= set(known) else "bad")


def _base_of(app: AppState, name: str, before: str) -> list[Any]:
    """An adapter brings the base that it was trained on; what was said of another base is no more."""
    base = next((adapter.base for adapter in app.snapshot().adapters if adapter.name == name), "")
    if not base or base == before:
        return [gr.skip()] * (1 + len(BASE_OVERRIDES))
    return [base, *["auto"] * len(BASE_OVERRIDES)]


def _weight_of(app: AppState, name: str) -> Any:
    """An adapter brings the scale that its file prefers."""
    path = next((adapter.path for adapter in app.snapshot().adapters if adapter.name == name), None)
    return preferred_weight(path) if path else gr.skip()


def _trigger(app: AppState, name: str | None) -> str:
    path = next((adapter.path for adapter in app.snapshot().adapters if adapter.name == name), None)
    return trigger_words(path) if path else ""


def _words_of(app: AppState, name: str | None) -> Any:
    """The button that adds an adapter's trigger words to the prompt."""
    words = _trigger(app, name)
    return gr.update(value=f"Add “{words}” to the prompt", visible=bool(words))


def _say(app: AppState, prompt: str | None, name: str) -> str:
    """The prompt with the adapter's trigger words in front, unless they are in it."""
    words, prompt = _trigger(app, name), (prompt or "").strip()
    return prompt if words.lower() in prompt.lower() else ", ".join(filter(None, (words, prompt)))


def adapter_updates(app: AppState, first: str | None, seen: dict[str, Any]) -> list[Any]:
    """New choices for the eight rows and the base where the adapters changed; the newest fills an empty first row."""
    known = app.snapshot().adapters
    names: Sequence[str] = tuple(adapter.name for adapter in known)
    if seen.get("adapters") == names:
        return [gr.skip()] * (ROWS + 1)
    seen["adapters"] = names
    choices = _choices(app)
    take = bool(known) and not first
    rows = [gr.update(choices=choices) for _ in range(ROWS)]
    if take:
        rows[0] = gr.update(choices=choices, value=names[0])
    return [*rows, known[0].base if take else gr.skip()]
