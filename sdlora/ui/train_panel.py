"""The form of the Train tab: the main controls, what a run will take, and all other settings below them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.models import resolve_base
from sdlora.api.training import RunEstimate, estimate_run, planned_disk, planned_prompt_notices
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo, list_projects
from sdlora.data.settings import Kind
from sdlora.errors import SdloraError
from sdlora.ui import base_models_panel, build_config, page_html, run_html, setting_fields
from sdlora.ui.app_state import AppState
from sdlora.ui.base_models_panel import BaseModelsPanel
from sdlora.ui.listeners import EVERY, HIDDEN, LAST, Values
from sdlora.ui.project_panel import ImagesTab, projects_beside

POLL_SECONDS = 2.0
"""Seconds between two looks at a running measurement."""


@dataclass(frozen=True)
class TrainPanel:
    """Components of the form; with those of the Pictures tab they make a run's config."""

    images: ImagesTab
    base: gr.Dropdown
    base_models: BaseModelsPanel
    together: gr.Dropdown
    """Projects that are trained beside the open one, each a concept of its own."""
    quality: gr.Radio
    prompts: list[gr.Textbox]
    suggested: gr.State
    """Preview prompts that were suggested last."""
    settings: dict[str, Any]
    """Fields of all other settings, by name."""
    summary: gr.HTML
    measure: gr.Button
    timer: gr.Timer
    """Active while a measurement runs or is about to."""
    train: gr.Button
    message: gr.HTML
    marks: gr.HTML
    reset: gr.Button

    @property
    def inputs(self) -> set[Block]:
        """Components that ``configure`` reads."""
        fields = [self.base, self.together, self.quality, *self.prompts, *self.settings.values()]
        return {self.images.project, *self.images.words, *fields}

    @property
    def description(self) -> list[Block]:
        """Components that ``describe`` updates."""
        return [self.summary, self.marks, self.reset, self.measure, self.timer]

    def others(self, app: AppState, values: Values) -> list[Project]:
        """Return the projects that are trained beside the open one. Raises ConfigError for a name that is none."""
        return projects_beside(app, values[self.images.project], values[self.together])

    def changes(self, values: Values) -> dict[str, Any]:
        """Return the settings that are filled in, by name."""
        return setting_fields.parse_changes({name: values[field] for name, field in self.settings.items()})


def build(app: AppState, images: ImagesTab) -> TrainPanel:
    """Lay the form out; ``wire`` adds its listeners."""
    base = gr.Dropdown(
        app.base_choices(), value="pocket", label="Base model", allow_custom_value=True, elem_id="train-base",
        info="One of the list, a diffusers folder, a .safetensors file, or a hub id",
    )  # fmt: skip
    base_models = base_models_panel.build(app, base)
    together = gr.Dropdown(
        [], value=[], multiselect=True, label="Add another concept", elem_id="train-together", visible=False,
        info="Train another project beside this one, into the same adapter: each keeps its own trigger word",
    )  # fmt: skip
    quality = gr.Radio(list(build_config.QUALITY), value="Balanced", label="Quality")
    prompts = [
        gr.Textbox("", label=f"Preview {n}", info="Generated during training" if n == 1 else None) for n in (1, 2)
    ]  # fmt: skip
    summary = gr.HTML(elem_id="train-summary")
    measure = gr.Button("Measure time and memory", size="sm", visible=False, elem_id="measure-button")
    train = gr.Button("Train", variant="primary", size="lg", elem_id="train-button")
    message = gr.HTML(elem_id="train-message")
    fields: dict[str, Any] = {}
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        gr.HTML(run_html.SEARCH)
        with gr.Row(elem_classes="tally"):
            marks = gr.HTML(elem_id="settings-changed")
            reset = gr.Button("Reset all", size="sm", visible=False, min_width=90, scale=0, elem_id="reset-settings")
        with gr.Column(elem_classes="all-settings"):
            for heading, settings in setting_fields.by_section().items():
                with gr.Group(elem_classes="settings", elem_id=f"settings-{heading.split()[0].lower()}"):
                    gr.HTML(f"<h3>{heading}</h3>", elem_classes="heading")
                    fields |= {setting.name: setting_fields.setting_field(setting) for setting in settings}
    return TrainPanel(
        images, base, base_models, together, quality, prompts, gr.State(["", ""]), fields, summary, measure,
        gr.Timer(POLL_SECONDS, active=False), train, message, marks, reset,
    )  # fmt: skip


def wire(app: AppState, demo: gr.Blocks, panel: TrainPanel) -> None:
    """Suggest prompts, show the preset's values, and describe the run whenever a field changes."""
    images, fields = panel.images, list(panel.settings.values())
    words = [images.trigger.change, images.class_name.change, images.kind.change, panel.base.change]
    shown = [demo.load, images.open_project.change, images.images_version.change]
    gr.on(shown, partial(_offer_projects, app), [images.project, panel.together], panel.together, **EVERY)
    gr.on(
        [demo.load, *words, panel.together.change], partial(_suggest_prompts, app, panel),
        panel.inputs | {panel.suggested}, [panel.suggested, *panel.prompts], **EVERY,
    )  # fmt: skip
    preset = [demo.load, panel.base.change, images.kind.change]
    gr.on(preset, partial(_show_preset, panel), [panel.base, images.kind], fields, **EVERY)
    demo.load(app.base_update, None, panel.base, **HIDDEN)
    edits = [*words, *(field.change for field in (panel.together, panel.quality, *panel.prompts, *fields))]
    base_models_panel.wire(demo, panel.base_models)
    changed = partial(describe, app, panel, measure=True)
    gr.on(edits, changed, panel.inputs, panel.description, **LAST)
    other = [demo.load, images.open_project.change, images.images_version.change]
    gr.on(other, changed, panel.inputs, panel.description, **EVERY)
    panel.timer.tick(partial(describe, app, panel), panel.inputs, panel.description, concurrency_limit=None, **HIDDEN)
    panel.measure.click(partial(_measure, app, panel), panel.inputs, [panel.message, *panel.description], **HIDDEN)
    panel.reset.click(lambda: dict.fromkeys(fields, ""), None, fields, **HIDDEN)


def configure(app: AppState, panel: TrainPanel, values: Values) -> tuple[list[Project], TrainConfig]:
    """Return the projects and the config of a run, as filled in; the open project is the first.

    Raises DatasetError or ConfigError with what to do about it.
    """
    project = Project(app.data_dir, values[panel.images.project] or "")
    base = resolve_base(values[panel.base] or "", app.data_dir)
    prompts = [values[prompt] for prompt in panel.prompts]
    info, others = panel.images.info(values), panel.others(app, values)
    config = build_config.configure(
        project, info, base, values[panel.quality], prompts, panel.changes(values), others
    )  # fmt: skip
    return [project, *others], config


def form_values(panel: TrainPanel, config: TrainConfig) -> Values:
    """Return values for base, prompts and settings, as a run of ``config`` had them."""
    preset = build_config.load_preset(config.model.base, config.data.kind)
    settings = setting_fields.field_values(config, preset, build_config.DERIVED)
    return {
        panel.base: config.model.base,
        **dict(zip(panel.prompts, _two(config.sample.prompts), strict=True)),
        **{panel.settings[name]: value for name, value in settings.items()},
    }


def reopened_projects(app: AppState, panel: TrainPanel, config: TrainConfig, opened: str) -> tuple[Values, list[str]]:
    """Return values that choose the projects of a run of ``config``, and their names, the one to open first.

    The open one stays if the run learnt it, or learnt one project alone.
    """
    folders = [concept.folder for concept in config.all_concepts]
    learnt = [project.name for project in list_projects(app.data_dir) if project.folder in folders and project.images()]
    if len(folders) == 1 or not learnt:
        return {panel.together: []}, []
    first = opened if opened in learnt else learnt[0]
    beside, choices = [name for name in learnt if name != first], _offered(app, first)
    together = gr.update(choices=choices, value=beside, visible=bool(choices))
    return {panel.images.project: first, panel.together: together}, [first, *beside]


def _two(prompts: Sequence[str]) -> list[str]:
    return [*prompts, "", ""][:2]


def _offer_projects(app: AppState, opened: str, chosen: Sequence[str] | None) -> Any:
    """Offer the projects beside the open one that have pictures; nothing is shown while there is none.

    The choice is sent back only if it changes: somebody may have gone on choosing.
    """
    names = _offered(app, opened)
    kept = [name for name in chosen or () if name in names]
    changed: dict[str, Any] = {} if kept == [*(chosen or ())] else {"value": kept}
    return gr.update(choices=names, visible=bool(names), **changed)


def _offered(app: AppState, opened: str) -> list[str]:
    return [project.name for project in list_projects(app.data_dir) if project.name != opened and project.images()]


def _suggest_prompts(app: AppState, panel: TrainPanel, values: Values) -> Values:
    """Suggest preview prompts with the project's words, in place of those that were suggested before.

    A prompt that a person wrote is not sent back: they may have gone on typing.
    """
    try:
        info = panel.images.info(values)
        others = [other.info or ProjectInfo() for other in panel.others(app, values)]
        suggested = _two(build_config.preview_prompts_of_all(values[panel.base] or "pocket", [info, *others]))
    except SdloraError:
        return gr.skip()
    updates: Values = {panel.suggested: suggested}
    for field, before, prompt in zip(panel.prompts, values[panel.suggested], suggested, strict=True):
        if values[field] in ("", before) and values[field] != prompt:
            updates[field] = prompt
    return updates


def _show_preset(panel: TrainPanel, base: str, kind: Kind) -> Values:
    """Show the preset's values in the empty fields."""
    try:
        preset = build_config.load_preset(base or "pocket", kind)
    except SdloraError:
        return gr.skip()
    updates = setting_fields.placeholders(preset, build_config.DERIVED)
    return {panel.settings[name]: update for name, update in updates.items()}


def describe(app: AppState, panel: TrainPanel, values: Values, measure: bool = False) -> Values:
    """Describe what Train would do and take, or what it lacks, and mark the changed settings.

    With ``measure``, a run that is not measured yet is measured once the form has rested for a moment.
    """
    changes = panel.changes(values)
    marks: Values = {
        panel.marks: run_html.changed_settings(changes), panel.reset: gr.update(visible=bool(changes)),
    }  # fmt: skip
    try:
        _, config = configure(app, panel, values)
        estimate = estimate_run(config, app.data_dir)
        if measure and estimate.measured is None:
            app.profiler.request(config)
        unmeasured = estimate.measured is None
        pending = unmeasured and (app.profiler.measures(config) or app.profiler.is_pending(config))
        lines = _lines(config, estimate, pending, app.profiler.failure(config))
    except SdloraError as error:
        return {
            panel.summary: page_html.note([str(error)]), **marks, panel.measure: gr.update(visible=False),
            panel.timer: gr.Timer(active=False),
        }  # fmt: skip
    return {
        panel.summary: page_html.note(lines), **marks, panel.measure: gr.update(visible=unmeasured and not pending),
        panel.timer: gr.Timer(active=pending),
    }  # fmt: skip


def _lines(config: TrainConfig, estimate: RunEstimate, pending: bool, failure: str | None) -> list[str]:
    unknown = "" if pending else "How long that takes is not measured yet."
    lines = [
        build_config.describe_plan(config, estimate.pictures), build_config.describe_estimate(estimate) or unknown,
    ]  # fmt: skip
    measured = estimate.measured
    if measured is not None and measured.resolution:
        disk = planned_disk(measured.as_chosen(config), measured)
        lines += [build_config.describe_disk(disk), *measured.told]
    lines += planned_prompt_notices(config)
    lines.append("One step is being measured ..." if pending else "")
    lines.append(f"It could not be measured: {failure}" if failure else "")
    return lines


def _measure(app: AppState, panel: TrainPanel, values: Values) -> Values:
    message = ""
    try:
        _, config = configure(app, panel, values)
        app.measure(config)
    except SdloraError as error:
        message = page_html.note([str(error)], "bad")
    return {panel.message: message, **describe(app, panel, values)}
