"""The progress of a run on the Train tab, which the page's timer reads from its folder, and what to do with the run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import pandas as pd
from gradio.blocks import Block

from sdlora.api.adapters import checkpoint_in_use, run_checkpoints, use_checkpoint
from sdlora.api.training import Run
from sdlora.errors import SdloraError
from sdlora.filesystem.paths import path_problem
from sdlora.ui import evaluation_panel, page_html, queue_panel, run_html, run_measurements
from sdlora.ui.app_state import ACTIVE, AppState, export_to_cache
from sdlora.ui.evaluated import EvaluatedRun
from sdlora.ui.listeners import PRIVATE, Changes, click_later
from sdlora.ui.run_measurements import measurements_html
from sdlora.ui.run_view import RunView, loss_curve

EMPTY = "Nothing has been trained yet. Choose a quality and press Train; its progress appears here."
RESUMABLE = ("new", "stopped", "failed", "interrupted")
COLOURS = {"loss": "#b9c0cf", "smoothed": "#4f6bed"}
LOG_LINES, LOG_BYTES, LAST_LINES = 200, 1 << 16, 15
"""Lines of the log that are shown, bytes that are read for them, and lines that are shown of a failed run."""


@dataclass(frozen=True)
class RunPanel:
    """Components of a run; ``refresh`` updates ``outputs``."""

    message: gr.HTML
    """Answer to a click on this side."""
    waiting: gr.State
    """Rows of the queue."""
    run: gr.Dropdown
    status: gr.HTML
    stop: gr.Button
    resume: gr.Button
    generate: gr.Button
    ended: gr.Row
    more: gr.Number
    checkpoints: gr.Radio
    keep: gr.Button
    evaluation: evaluation_panel.EvaluationPanel
    previews: gr.HTML
    plot: gr.LinePlot
    learnt: gr.LinePlot
    measured: gr.HTML
    notices: gr.HTML
    downloads: gr.Row
    saves: gr.Accordion
    remarks: gr.Accordion
    log: gr.Accordion
    longer: gr.Button
    copy: gr.Button
    reopen: gr.Button

    @property
    def outputs(self) -> list[Block]:
        return [
            self.waiting, self.run, self.status, self.stop, self.resume, self.generate, self.ended, self.more,
            self.checkpoints, self.keep, self.previews, self.plot, self.learnt, self.measured,
            self.notices, self.downloads, self.saves,
            self.remarks, self.log, self.longer, *self.evaluation.outputs,
        ]  # fmt: skip


def build(app: AppState) -> RunPanel:
    """Lay the panel out, and wire what concerns the chosen run alone."""
    message = gr.HTML(elem_id="run-message")
    waiting = queue_panel.build(app, message)
    run = gr.Dropdown(label="Run", choices=[], visible=False, interactive=True, elem_id="run-choice")
    status = gr.HTML(page_html.note([EMPTY]), elem_id="run-status")
    with gr.Row():
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-button")
        resume = gr.Button("Resume", variant="primary", visible=False, elem_id="resume-button")
        generate = gr.Button("Draw a picture with it", variant="primary", visible=False, elem_id="draw-with-it")
    with gr.Row(visible=False) as downloads:
        kohya = gr.Button("Download for A1111, ComfyUI", elem_id="download-kohya")
        diffusers = gr.Button("Download for diffusers", elem_id="download-diffusers")
    file = gr.DownloadButton("File", elem_id="download-file", elem_classes="behind")
    previews = gr.HTML(elem_id="run-previews")
    plot = gr.LinePlot(
        x="step", y="loss", color="series", color_map=COLOURS, height=300, visible=False, show_label=False,
        x_title="step", y_title="loss", color_title=" ",
    )  # fmt: skip
    learnt = gr.LinePlot(
        x="step", y="ratio", color="series", color_map=run_measurements.COLOURS, height=220, visible=False,
        show_label=False, x_title="step", y_title="loss / the base's", color_title=" ", elem_id="run-learnt",
    )  # fmt: skip
    measured = gr.HTML(elem_id="run-measured")
    with gr.Row(visible=False, equal_height=False, elem_classes="longer") as ended:
        more = gr.Number(label="Further steps", precision=0, minimum=1, min_width=110, elem_id="more-steps")
        longer = gr.Button("Train longer", size="sm", min_width=110, elem_id="longer-button")
        copy = gr.Button("Queue a copy", size="sm", min_width=110, elem_id="copy-button")
        reopen = gr.Button("Open its settings", size="sm", min_width=110, elem_id="reopen-button")
    with gr.Accordion("Checkpoints", open=False, visible=False, elem_id="checkpoints") as saves:
        checkpoints = gr.Radio([], label="Steps at which it saved", interactive=True, elem_id="checkpoint-choice")
        keep = gr.Button("Use this checkpoint", size="sm", interactive=False, elem_id="use-checkpoint")
    evaluation = evaluation_panel.build(app, run)
    with gr.Accordion("Remarks", open=False, visible=False) as remarks:
        notices = gr.HTML(elem_id="run-notices")
    log = _log(app, run)
    for button, format in ((kohya, "kohya"), (diffusers, "diffusers")):
        button.click(partial(_prepare, app, format), run, [file, message], **PRIVATE).success(
            None, js=click_later("download-file"), **PRIVATE
        )
    keep.click(partial(_use, app), [run, checkpoints], [message, checkpoints], **PRIVATE)
    evaluation.use.click(
        partial(_use_candidate, app), [run, evaluation.candidate], [evaluation.used, checkpoints], **PRIVATE
    )
    return RunPanel(
        message, waiting, run, status, stop, resume, generate, ended, more, checkpoints, keep, evaluation, previews,
        plot, learnt, measured, notices,
        downloads, saves, remarks, log, longer, copy, reopen,
    )  # fmt: skip


def _log(app: AppState, run: gr.Dropdown) -> gr.Accordion:
    with gr.Accordion("Log", open=False, visible=False, elem_id="log") as fold:
        text = gr.Textbox(
            show_label=False, label="The end of the log", placeholder="Nothing was printed.",
            lines=12, max_lines=20, interactive=False, elem_id="run-log",
            elem_classes="log",
        )  # fmt: skip
        again = gr.Button("Read it again", size="sm", elem_id="read-log")
    gr.on(
        [fold.expand, again.click, run.change], partial(_read_log, app), run, text, show_progress="hidden",
        **PRIVATE,
    )  # fmt: skip
    return fold


def _read_log(app: AppState, name: str) -> str:
    run = app.run(name)
    return "\n".join(log_end(run, LOG_LINES)) if run is not None else ""


def log_end(run: Run, lines: int) -> list[str]:
    """Return the last ``lines`` that the run's process printed, each in the last state of its progress bar."""
    if path_problem(run.log, run.folder):  # In a stranger's run: a pipe, or a link to any file.
        return []
    try:
        with open(run.log, "rb") as file:
            file.seek(max(0, run.log.stat().st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")[:-1]][-lines:]


def _prepare(app: AppState, format: str, name: str) -> list[Any]:
    """Put the finished adapter behind the hidden button."""
    run = app.run(name)
    try:
        return [export_to_cache(run, format) if run is not None else gr.skip(), ""]
    except SdloraError as error:
        return [gr.skip(), page_html.note([str(error)], "bad")]


def _use(app: AppState, name: str, step: int | None) -> list[Any]:
    """Make a checkpoint the run's adapter."""
    run = app.run(name)
    if run is None or step is None:
        return [gr.skip(), gr.skip()]
    try:
        use_checkpoint(run, int(step))
    except SdloraError as error:
        return [page_html.note([str(error)], "bad"), gr.skip()]
    message = f"{run.name} now uses step {step}, on the tab Create and in its files."
    return [page_html.note([message], "good"), _checkpoints(run)]


def _use_candidate(app: AppState, name: str, number: int | None) -> list[Any]:
    """Make a candidate of the run's evaluation its adapter; its checkpoint is then the one in use."""
    told, run = evaluation_panel.take(app, name, number), app.run(name)
    return [told, gr.skip() if run is None else _checkpoints(run)]


def refresh(app: AppState, panel: RunPanel, name: str | None, changes: Changes) -> None:
    """Add to ``changes`` what is new of the run ``name``, or of the current one, and of the queue."""
    now = app.snapshot()
    run = app.run(name) or now.current
    changes.add("queue", panel.waiting, now.waiting, lambda: queue_panel.rows(app))
    if run is None:
        return
    view, state = app.run_view(run), app.queue.state(run)
    stage, idle, saved = (run.name, state), state not in ACTIVE, bool(view.checkpoints)
    saves = (run.name, tuple(sorted(view.checkpoints)), not idle)
    usable = idle and (run.adapter.is_file() or saved)
    rows: list[tuple[str, Block, Any, Callable[[], Any]]] = [
        ("runs", panel.run, (run.name, now.runs), lambda: _choice(now.runs, name, run.name)),
        ("status", panel.status, (*stage, view.events_read), lambda: _card(run, view, state)),
        ("stop", panel.stop, stage, lambda: _stop_button(state)),
        ("resume", panel.resume, stage, lambda: gr.update(visible=state in RESUMABLE, value=_resume_word(state))),
        ("generate", panel.generate, (*stage, saved), lambda: gr.update(visible=usable)),
        ("ended", panel.ended, stage, lambda: gr.update(visible=idle)),
        ("more", panel.more, (view.end, *saves), lambda: gr.update(value=further_steps(view), visible=saved)),
        ("checkpoints", panel.checkpoints, saves, lambda: _checkpoints(run)),
        ("keep", panel.keep, saves, lambda: gr.update(interactive=saved and idle)),
        ("previews", panel.previews, (run.name, len(view.previews)), lambda: _previews(view)),
        ("plot", panel.plot, (run.name, _plot_version(view, state)), lambda: _plot(view)),
        ("learnt", panel.learnt, (run.name, (points := _points(view))), lambda: _learnt(view)),
        ("measured", panel.measured, (run.name, points), lambda: measurements_html(view.measured)),
        ("notices", panel.notices, (run.name, len(view.notices)), lambda: page_html.note(view.notices)),
        ("downloads", panel.downloads, stage, lambda: gr.update(visible=usable)),
        ("saves", panel.saves, (run.name, saved), lambda: gr.update(visible=saved)),
        ("remarks", panel.remarks, (run.name, bool(view.notices)), lambda: gr.update(visible=bool(view.notices))),
        ("log", panel.log, run.name, lambda: gr.update(visible=True)),
        ("longer", panel.longer, saves, lambda: gr.update(visible=saved)),
    ]
    for row in rows:
        changes.add(*row)
    evaluation_panel.refresh(app, panel.evaluation, EvaluatedRun(run, app.queue), saved and idle, changes)


def _card(run: Run, view: RunView, state: str) -> str:
    return run_html.run_card(run.name, view, state, log_end(run, LAST_LINES))


def further_steps(view: RunView) -> int:
    """Return the further steps to offer: those that a run has left out, or half as many as it has had."""
    return max(1, view.steps - view.end or -(-view.steps // 2))


def _choice(runs: tuple[str, ...], chosen: str | None, current: str) -> Any:
    """List the runs. A run that is chosen stays: a click may have changed it in the meantime."""
    value = {} if chosen in runs else {"value": current}
    return gr.update(choices=list(runs), visible=True, **value)


def _stop_button(state: str) -> Any:
    word = "Take it out of the queue" if state == "queued" else "Stop"
    return gr.update(visible=state in ACTIVE, interactive=state != "stopping", value=word)


def _resume_word(state: str) -> str:
    return {"new": "Start it", "failed": "Try again"}.get(state, "Resume")


def _checkpoints(run: Run) -> Any:
    """List the checkpoints; the one that is the run's adapter is chosen."""
    used, steps = checkpoint_in_use(run), list(run_checkpoints(run))
    choices = [(f"{step} (in use)" if step == used else str(step), step) for step in steps]
    return gr.update(choices=choices, value=used if used in steps else None)


def _previews(view: RunView) -> str:
    ordered = sorted(view.previews.items())
    return run_html.previews([preview for _, preview in ordered]) if ordered else ""


def _plot_version(view: RunView, state: str) -> int:
    """Return a number that changes when the plot is worth an update: fifty times a run, and at its end."""
    return view.step // max(1, view.steps // 50) if state == "running" else -1 - view.step


def _points(view: RunView) -> tuple[int, int]:
    """Return what changes with each measurement."""
    return len(view.measured.ratios), view.measured.step


def _learnt(view: RunView) -> Any:
    points = view.measured.curve()
    if len(view.measured.ratios) < 2:
        return gr.update(visible=False)
    return gr.update(value=pd.DataFrame(points, columns=["step", "ratio", "series"]), visible=True)


def _plot(view: RunView) -> Any:
    if len(view.losses) < 2:
        return gr.update(visible=False)
    points = [(step, loss, name) for name, series in loss_curve(view.losses).items() for step, loss in series]
    return gr.update(value=pd.DataFrame(points, columns=["step", "loss", "series"]), visible=True)
