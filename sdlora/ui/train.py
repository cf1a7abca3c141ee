"""The second tab: what to train, Train and Stop, and how it goes, read from the run's folder by a timer."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import pandas as pd

from sdlora import service
from sdlora.config import TrainConfig
from sdlora.data.advice import Kind
from sdlora.data.projects import About, Project
from sdlora.errors import SdloraError
from sdlora.runs.folder import Run
from sdlora.ui import fields, markup, recipe
from sdlora.ui.desk import ACTIVE, Desk, download
from sdlora.ui.pictures import Pictures
from sdlora.ui.watch import RunView, curve

EMPTY = "Nothing has been trained yet. Choose a quality and press Train; its progress appears here."
RESUMABLE = ("new", "stopped", "failed", "interrupted")
COLOURS = {"loss": "#b9c0cf", "smoothed": "#4f6bed"}
QUIET: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
SAVE_FILE = "() => setTimeout(() => document.querySelector('#download-file')?.click(), 100)"
"""Clicks the hidden button that holds the prepared file."""


@dataclass(frozen=True)
class Form:
    """What to train with."""

    base: gr.Dropdown
    quality: gr.Radio
    prompts: list[gr.Textbox]
    advanced: list[Any]
    summary: gr.HTML
    train: gr.Button
    message: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        return [self.base, self.quality, *self.prompts, *self.advanced]


@dataclass(frozen=True)
class Live:
    """How it goes."""

    run: gr.Dropdown
    status: gr.HTML
    stop: gr.Button
    resume: gr.Button
    previews: gr.HTML
    plot: gr.LinePlot
    notices: gr.HTML
    downloads: gr.Row

    @property
    def outputs(self) -> list[Any]:
        return [
            self.run, self.status, self.stop, self.resume, self.previews, self.plot, self.notices, self.downloads,
        ]  # fmt: skip


def build(desk: Desk, demo: gr.Blocks, pictures: Pictures) -> Live:
    """Lay the tab out and wire it; ``page`` brings ``Live`` up to date."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = _form()
        with gr.Column(scale=3, min_width=320):
            live = _live(desk, form.message)
    about = [pictures.kind, pictures.trigger, pictures.class_name]
    suggested = gr.State(["", ""])
    said = [pictures.trigger.change, pictures.class_name.change, pictures.kind.change, form.base.change]
    gr.on(
        [demo.load, *said], _suggest, [form.base, *about, suggested, *form.prompts], [suggested, *form.prompts],
        **QUIET,
    )  # fmt: skip
    chosen = [pictures.version, pictures.name, form.quality, *form.advanced]
    gr.on(
        [demo.load, *said, *(field.change for field in chosen)], partial(_summary, desk),
        [pictures.name, *about, *form.inputs], form.summary, **QUIET,
    )  # fmt: skip
    form.train.click(
        partial(_train, desk), [pictures.name, *about, *form.inputs], [form.message, live.run], api_visibility="private"
    )
    live.stop.click(partial(_stop, desk), live.run, form.message, api_visibility="private")
    live.resume.click(partial(_resume, desk), live.run, form.message, api_visibility="private")
    return live


def _form() -> Form:
    bases = service.bases()
    base = gr.Dropdown(
        bases or ["pocket"], value="pocket", label="Base model", allow_custom_value=True, elem_id="train-base",
        info="pocket, a diffusers folder, a .safetensors file, or a hub id",
    )  # fmt: skip
    quality = gr.Radio(list(recipe.QUALITY), value="Balanced", label="Quality")
    prompts = [gr.Textbox(label=f"Preview {n}", info="Drawn while it trains" if n == 1 else None) for n in (1, 2)]
    summary = gr.HTML(elem_id="train-summary")
    train = gr.Button("Train", variant="primary", size="lg", elem_id="train-button")
    message = gr.HTML(elem_id="train-message")
    with gr.Accordion("Advanced", open=False):
        advanced = [fields.field(setting) for setting in fields.advanced()]
    return Form(base, quality, prompts, advanced, summary, train, message)


def _live(desk: Desk, message: gr.HTML) -> Live:
    run = gr.Dropdown(label="Run", choices=[], visible=False, interactive=True, elem_id="run-choice")
    status = gr.HTML(markup.note([EMPTY]), elem_id="run-status")
    with gr.Row():
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-button")
        resume = gr.Button("Resume", visible=False, elem_id="resume-button")
    with gr.Row(visible=False) as downloads:
        kohya = gr.Button("Download for A1111, ComfyUI", variant="primary", elem_id="download-kohya")
        diffusers = gr.Button("Download for diffusers", elem_id="download-diffusers")
    file = gr.DownloadButton("File", elem_id="download-file", elem_classes="behind")
    previews = gr.HTML(elem_id="run-previews")
    plot = gr.LinePlot(
        x="step", y="loss", color="series", color_map=COLOURS, height=300, visible=False, show_label=False,
        x_title="step", y_title="loss", color_title=" ",
    )  # fmt: skip
    with gr.Accordion("Remarks", open=False):
        notices = gr.HTML(elem_id="run-notices")
    for button, format in ((kohya, "kohya"), (diffusers, "diffusers")):
        button.click(partial(_prepare, desk, format), run, [file, message], api_visibility="private").success(
            None, js=SAVE_FILE, api_visibility="private"
        )
    return Live(run, status, stop, resume, previews, plot, notices, downloads)


def _suggest(base: str, kind: Kind, trigger: str, class_name: str, before: list[str], *prompts: str) -> list[Any]:
    """Preview prompts in the project's words, in place of those that were only suggested."""
    try:
        found = [*recipe.preview_prompts(base or "pocket", About(kind, trigger, class_name)), "", ""][:2]
    except SdloraError:
        return [gr.skip(), *prompts]
    kept = [
        prompt if prompt and prompt != old else new for prompt, old, new in zip(prompts, before, found, strict=True)
    ]
    return [found, *kept]


def _configure(desk: Desk, name: str, about: About, base: str, quality: str, *rest: Any) -> tuple[Project, TrainConfig]:
    project = Project(desk.data_dir, name or "")
    return project, recipe.configure(project, about, base or "", quality, rest[:2], fields.changed(rest[2:]))


def _summary(desk: Desk, name: str, kind: Kind, trigger: str, class_name: str, *values: Any) -> str:
    """What a click on Train would do, or what is missing for it."""
    try:
        project, config = _configure(desk, name, About(kind, trigger, class_name), *values)
        return markup.note([recipe.summary(config, len(project.pictures()))])
    except SdloraError as error:
        return markup.note([str(error)])


def _train(desk: Desk, name: str, kind: Kind, trigger: str, class_name: str, *values: Any) -> list[Any]:
    """Queue a run. What was filled in stays as it is, whatever comes of it."""
    try:
        about = About(kind, trigger, class_name)
        project, config = _configure(desk, name, about, *values)
        project.describe(about)
        run = desk.train(config, project.name)
        return ["", gr.update(value=run.name, choices=list(desk.look().runs))]
    except SdloraError as error:
        return [markup.note([str(error)], "bad"), gr.skip()]


def _stop(desk: Desk, name: str) -> str:
    run = desk.run(name)
    if run is not None:
        desk.queue.stop(run)
        desk.refresh()
    return ""


def _resume(desk: Desk, name: str) -> str:
    run = desk.run(name)
    try:
        if run is not None:
            desk.start(run)
        return ""
    except SdloraError as error:
        return markup.note([str(error)], "bad")


def _prepare(desk: Desk, format: str, name: str) -> list[Any]:
    """Put the finished adapter behind the hidden button."""
    run = desk.run(name)
    try:
        return [download(run, format) if run is not None else gr.skip(), ""]
    except SdloraError as error:
        return [gr.skip(), markup.note([str(error)], "bad")]


def live_updates(desk: Desk, name: str | None, seen: dict[str, Any]) -> list[Any]:
    """New values for ``Live.outputs``, ``gr.skip()`` where nothing changed since ``seen`` (brought up to date)."""
    look = desk.look()
    run = desk.run(name) or look.current
    if run is None:
        return [gr.skip()] * len(Live.__dataclass_fields__)
    view, state = desk.view(run), desk.queue.state(run)
    runs = (run.name, look.runs)
    stage = (run.name, state)
    return [
        _fresh(seen, "runs", runs, lambda: gr.update(choices=list(look.runs), value=run.name, visible=True)),
        _fresh(seen, "status", (*stage, view.seen), lambda: markup.status(run.name, view, state)),
        _fresh(seen, "stop", stage, lambda: gr.update(visible=state in ACTIVE, interactive=state != "stopping")),
        _fresh(seen, "resume", stage, lambda: gr.update(visible=state in RESUMABLE)),
        _fresh(seen, "previews", (run.name, len(view.previews)), lambda: _previews(view)),
        _fresh(seen, "plot", (run.name, _plotted(view, state)), lambda: _plot(view)),
        _fresh(seen, "notices", (run.name, len(view.notices)), lambda: markup.note(view.notices or ["None."])),
        _fresh(seen, "downloads", stage, lambda: gr.update(visible=_saved(run, view, state))),
    ]


def _fresh(seen: dict[str, Any], what: str, mark: Any, make: Any) -> Any:
    if seen.get(what) == mark:
        return gr.skip()
    seen[what] = mark
    return make()


def _previews(view: RunView) -> str:
    ordered = sorted(view.previews.items())
    return markup.previews([preview for _, preview in ordered]) if ordered else ""


def _plotted(view: RunView, state: str) -> int:
    """Changes when the plot is worth drawing anew: fifty times a run, and at its end."""
    return view.step // max(1, view.steps // 50) if state == "running" else -1 - view.step


def _plot(view: RunView) -> Any:
    if len(view.losses) < 2:
        return gr.update(visible=False)
    points = [(step, loss, name) for name, series in curve(view.losses).items() for step, loss in series]
    return gr.update(value=pd.DataFrame(points, columns=["step", "loss", "series"]), visible=True)


def _saved(run: Run, view: RunView, state: str) -> bool:
    return state not in ACTIVE and (run.adapter.is_file() or view.checkpoints > 0)
