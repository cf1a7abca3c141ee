"""The left side of the tab Train: the five controls, what a run will take, and every other setting below them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from sdlora.api.models import resolve_base
from sdlora.api.training import estimate_run, planned_disk
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.step_heuristics import Kind
from sdlora.errors import SdloraError
from sdlora.ui import build_config, page_html, run_html, setting_fields
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import EVERY, HIDDEN, LAST
from sdlora.ui.project_panel import ImagesTab

LOOK_SECONDS = 2.0
"""Between two looks at a measurement."""


@dataclass(frozen=True)
class TrainPanel:
    """What to train with."""

    base: gr.Dropdown
    quality: gr.Radio
    prompts: list[gr.Textbox]
    advanced: list[Any]
    summary: gr.HTML
    measure: gr.Button
    timer: gr.Timer
    """Runs while something is measured, or is about to be."""
    train: gr.Button
    message: gr.HTML
    marks: gr.HTML
    reset: gr.Button

    @property
    def inputs(self) -> list[Any]:
        return [self.base, self.quality, *self.prompts, *self.advanced]

    @property
    def told(self) -> list[Any]:
        """What is said of the values that are filled in."""
        return [self.summary, self.marks, self.reset, self.measure, self.timer]


def build(app: AppState) -> TrainPanel:
    """Lay the form out; ``wire`` brings it to life."""
    base = gr.Dropdown(
        app.base_choices(), value="pocket", label="Base model", allow_custom_value=True, elem_id="train-base",
        info="One of the list, a diffusers folder, a .safetensors file, or a hub id",
    )  # fmt: skip
    quality = gr.Radio(list(build_config.QUALITY), value="Balanced", label="Quality")
    prompts = [gr.Textbox("", label=f"Preview {n}", info="Drawn while it trains" if n == 1 else None) for n in (1, 2)]
    summary = gr.HTML(elem_id="train-summary")
    measure = gr.Button("Measure time and memory", size="sm", visible=False, elem_id="measure-button")
    train = gr.Button("Train", variant="primary", size="lg", elem_id="train-button")
    message = gr.HTML(elem_id="train-message")
    advanced: dict[str, Any] = {}
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        gr.HTML(run_html.SEARCH)
        with gr.Row(elem_classes="tally"):
            marks = gr.HTML(elem_id="settings-changed")
            reset = gr.Button("Reset all", size="sm", visible=False, min_width=90, scale=0, elem_id="reset-settings")
        with gr.Column(elem_classes="all-settings"):
            for heading, settings in setting_fields.by_section().items():
                with gr.Group(elem_classes="settings", elem_id=f"settings-{heading.split()[0].lower()}"):
                    gr.HTML(f"<h3>{heading}</h3>", elem_classes="heading")
                    advanced |= {setting.name: setting_fields.setting_field(setting) for setting in settings}
    in_order = [advanced[setting.name] for setting in setting_fields.advanced_settings()]
    return TrainPanel(
        base, quality, prompts, in_order, summary, measure, gr.Timer(LOOK_SECONDS, active=False), train, message,
        marks, reset,
    )  # fmt: skip


def wire(app: AppState, demo: gr.Blocks, form: TrainPanel, pictures: ImagesTab) -> None:
    """Suggestions, the preset's values, the estimate and the marks follow what is chosen."""
    about = [pictures.kind, pictures.trigger, pictures.class_name]
    suggested = gr.State(["", ""])
    said = [pictures.trigger.change, pictures.class_name.change, pictures.kind.change, form.base.change]
    gr.on(
        [demo.load, *said], _suggest, [form.base, *about, suggested, *form.prompts], [suggested, *form.prompts],
        **EVERY,
    )  # fmt: skip
    gr.on(
        [demo.load, form.base.change, pictures.kind.change], _preset, [form.base, pictures.kind], form.advanced, **EVERY
    )
    demo.load(app.base_update, None, form.base, **HIDDEN)
    chosen = [form.quality, *form.prompts, *form.advanced]
    values = [pictures.project, *about, *form.inputs]
    gr.on([*said, *(field.change for field in chosen)], partial(_changed, app), values, form.told, **LAST)
    other = [demo.load, pictures.open_project.change, pictures.images_version.change]
    gr.on(other, partial(_changed, app), values, form.told, **EVERY)
    form.timer.tick(partial(told, app), values, form.told, concurrency_limit=None, **HIDDEN)
    form.measure.click(partial(_measure, app), values, [form.message, *form.told], **HIDDEN)
    form.reset.click(lambda: [""] * len(form.advanced), None, form.advanced, **HIDDEN)


def configure(
    app: AppState, name: str, about: ProjectInfo, base: str, quality: str, *rest: Any
) -> tuple[Project, TrainConfig]:
    """The project and the config of what is filled in: ``rest`` are the prompts and the fields of ``advanced``."""
    project = Project(app.data_dir, name or "")
    base = resolve_base(base or "", app.data_dir)
    return project, build_config.configure(
        project, about, base, quality, rest[:2], setting_fields.parse_changes(rest[2:])
    )


def opened(config: TrainConfig) -> list[Any]:
    """Values for the base, the prompts and the fields of ``advanced``, as a run of ``config`` had them."""
    known = build_config.load_preset(config.model.base, config.data.kind)
    prompts = [*config.sample.prompts, "", ""][:2]
    return [config.model.base, *prompts, *setting_fields.field_values(config, known, build_config.DERIVED)]


def _suggest(base: str, kind: Kind, trigger: str, class_name: str, before: list[str], *prompts: str) -> list[Any]:
    """Preview prompts in the project's words, in place of those that were only suggested.

    What a person wrote is not written back: they may have written on while this was under way.
    """
    try:
        found = [*build_config.preview_prompts(base or "pocket", ProjectInfo(kind, trigger, class_name)), "", ""][:2]
    except SdloraError:
        return [gr.skip()] * 3
    pairs = zip(prompts, before, found, strict=True)
    return [found, *(new if prompt in ("", old) and prompt != new else gr.skip() for prompt, old, new in pairs)]


def _preset(base: str, kind: Kind) -> list[Any]:
    """What the empty fields stand for."""
    try:
        return setting_fields.placeholders(build_config.load_preset(base or "pocket", kind), build_config.DERIVED)
    except SdloraError:
        return [gr.skip()] * len(setting_fields.advanced_settings())


def _changed(app: AppState, *values: Any) -> list[Any]:
    """Something was filled in: it is measured if it is left so for a moment, and that is quickly done."""
    return told(app, *values, wish=True)


def told(
    app: AppState, name: str, kind: Kind, trigger: str, class_name: str, *values: Any, wish: bool = False
) -> list[Any]:
    """What a click on Train would do and take, or what is missing for it; and which settings are changed."""
    filled = setting_fields.parse_changes(values[4:])
    marked = [run_html.changed_settings(filled), gr.update(visible=bool(filled))]
    try:
        _, config = configure(app, name, ProjectInfo(kind, trigger, class_name), *values)
        found = estimate_run(config, app.data_dir)
        if wish and found.measured is None:
            app.profiler.request(config)
        pending = found.measured is None and (app.profiler.measures(config) or app.profiler.is_pending(config))
        failure = app.profiler.failure(config)
        known = found.measured if found.measured is not None and found.measured.resolution else None
        more = (
            []
            if known is None
            else [build_config.describe_disk(planned_disk(known.as_chosen(config), known)), *known.told]
        )
    except SdloraError as error:
        return [page_html.note([str(error)]), *marked, gr.update(visible=False), gr.Timer(active=False)]
    unknown = "" if pending else "How long that takes is not measured yet."
    lines = [
        build_config.describe_plan(config, found.pictures),
        build_config.describe_estimate(found) or unknown,
        *more,
    ]
    lines.append("One step is being measured ..." if pending else "")
    lines.append(f"It could not be measured: {failure}" if failure else "")
    offers = found.measured is None and not pending
    return [page_html.note(lines), *marked, gr.update(visible=offers), gr.Timer(active=pending)]


def _measure(app: AppState, name: str, kind: Kind, trigger: str, class_name: str, *values: Any) -> list[Any]:
    said = ""
    try:
        _, config = configure(app, name, ProjectInfo(kind, trigger, class_name), *values)
        app.measure(config)
    except SdloraError as error:
        said = page_html.note([str(error)], "bad")
    return [said, *told(app, name, kind, trigger, class_name, *values)]
