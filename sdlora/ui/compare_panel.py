"""Grids of images along chosen axes on the Create tab, and the best image of a run saved as its adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sdlora.api.adapters import preferred_weight
from sdlora.api.generation import GenerationRequest, JobStatus
from sdlora.api.grids import (
    AxisSpec,
    begin_grid,
    best_checkpoint_grid,
    grid_folder,
    keep_best,
    list_grids,
    read_grid,
    save_contact_sheet,
)
from sdlora.errors import ConfigError, SdloraError
from sdlora.formatting import format_duration
from sdlora.generation.axes import AXIS_TYPES
from sdlora.generation.infotext import format_parameters, read_parameters
from sdlora.ui import create_form, page_html
from sdlora.ui.adapter_rows import NONE, adapter_choices
from sdlora.ui.app_state import AppState, cache_file
from sdlora.ui.create_form import CreateForm
from sdlora.ui.create_tab import CreateTab
from sdlora.ui.listeners import HIDDEN, Values

CHOICES = [("Nothing", ""), *((kind.title, name) for name, kind in AXIS_TYPES.items())]
BEGIN = ("scale", "checkpoint", "")
"""Kinds of the axes at first."""
PLACEHOLDERS = {
    "": "",
    "checkpoint": "all; or steps: 200, 400",
    "prompt": "a prompt a line",
    "replace": "red, blue, green: the first is replaced",
}
CHOOSE = """
element.addEventListener("click", (event) => {
  const chosen = event.target.closest("[data-cell]");
  if (!chosen) return;
  for (const cell of element.querySelectorAll("[data-cell]")) cell.setAttribute("aria-pressed", cell === chosen);
  trigger("click", { cell: chosen.dataset.cell });
});
"""
"""Reports which image is clicked, and marks it at once."""


@dataclass(frozen=True)
class ComparePanel:
    """Components of the panel."""

    subject: gr.Dropdown
    picked: gr.State
    """True once a person has chosen the subject."""
    kinds: list[gr.Dropdown]
    values: list[gr.Textbox]
    go: gr.Button
    best: gr.Button
    cancel: gr.Button
    status: gr.HTML
    table: gr.HTML
    download: gr.DownloadButton
    choice: gr.Row
    picture: gr.HTML
    parameters: gr.Textbox
    name: gr.Textbox
    save: gr.Button
    saved: gr.HTML
    shown: gr.State
    """Name of the visible grid, number of its images that are visible, and the chosen one's file."""
    number: gr.State
    """Number of the grid's request."""
    timer: gr.Timer

    @property
    def live(self) -> list[Block]:
        """Components that the timer updates."""
        return [self.shown, self.status, self.table, self.download, self.go, self.best, self.cancel, self.timer]


def build(app: AppState, demo: gr.Blocks, tab: CreateTab) -> ComparePanel:
    """Lay the panel out below the images of the tab, whose form has all that is not compared."""
    with gr.Accordion("Compare, and pick the best", open=False, elem_id="compare") as fold:
        fields = _inputs()
        status = gr.HTML(elem_id="compare-status")
        table = gr.HTML(elem_id="compare-grid", js_on_load=CHOOSE)
        download = gr.DownloadButton("Download the sheet", size="sm", visible=False, elem_id="compare-sheet")
        choice = _choice()
    panel = ComparePanel(
        **fields, **choice, status=status, table=table, download=download,
        picked=gr.State(False), shown=gr.State(("", 0, "")), number=gr.State(0), timer=gr.Timer(1.0, active=False),
    )  # fmt: skip
    _wire(app, demo, tab, panel, fold)
    return panel


def _inputs() -> dict[str, Any]:
    subject = gr.Dropdown(
        [NONE], value="", label="Adapter to compare", elem_id="compare-subject",
        info="Prompt, size and all else come from above, further adapters too",
    )  # fmt: skip
    kinds, values = [], []
    for way, where, kind in zip(("X", "Y", "Z"), ("columns", "rows", "pages"), BEGIN, strict=True):
        with gr.Row():
            kinds.append(gr.Dropdown(CHOICES, value=kind, label=f"{way}: {where}", elem_id=f"axis-{way}", scale=1))
            values.append(gr.Textbox(
                AXIS_TYPES[kind].start if kind else "", label=f"{way} values", placeholder=PLACEHOLDERS.get(kind, ""),
                elem_id=f"values-{way}", scale=2, max_lines=6,
            ))  # fmt: skip
    with gr.Row():
        go = gr.Button("Create grid", variant="primary", elem_id="compare-button")
        best = gr.Button("Pick the best", elem_id="best-button")
        cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="compare-cancel")
    return {"subject": subject, "kinds": kinds, "values": values, "go": go, "best": best, "cancel": cancel}


def _choice() -> dict[str, Any]:
    """Lay out what is shown of the image that is clicked."""
    with gr.Row(visible=False, elem_id="compare-choice") as choice:
        with gr.Column(min_width=260):
            picture = gr.HTML(elem_id="compare-picture")
        with gr.Column(min_width=260):
            parameters = gr.Textbox(label="Made from", lines=4, max_lines=10, interactive=False)
            name = gr.Textbox("", label="Name of the adapter", max_lines=1, elem_id="best-name")
            save = gr.Button("Save as the adapter", variant="primary", elem_id="best-save")
            saved = gr.HTML(elem_id="best-saved")
    return {
        "choice": choice, "picture": picture, "parameters": parameters, "name": name, "save": save, "saved": saved,
    }  # fmt: skip


def _wire(app: AppState, demo: gr.Blocks, tab: CreateTab, panel: ComparePanel, fold: gr.Accordion) -> None:
    started = [panel.number, panel.choice, *panel.live]
    fields = {panel.subject, *panel.kinds, *panel.values, *tab.form.inputs}
    panel.go.click(partial(_begin, app, panel, tab.form), fields, started, **HIDDEN)
    panel.best.click(partial(_pick_best, app, panel), panel.subject, started, **HIDDEN)
    panel.cancel.click(app.inference.cancel, panel.number, None, **HIDDEN)
    panel.timer.tick(
        partial(_poll, app, panel), [panel.number, panel.shown], panel.live, concurrency_limit=None, **HIDDEN
    )  # fmt: skip
    demo.load(partial(_attach, app, panel), None, [panel.number, *panel.live], **HIDDEN)
    panel.subject.input(lambda: True, None, panel.picked, **HIDDEN)
    gr.on(
        [demo.load, fold.expand], partial(_subjects, app), [panel.subject, panel.picked, tab.form.rows.adapters[0]],
        panel.subject, **HIDDEN,
    )  # fmt: skip
    for kind, values in zip(panel.kinds, panel.values, strict=True):
        kind.change(_start_values, [kind, tab.form.prompt], values, **HIDDEN)

    def choose(shown: Sequence[Any], event: gr.EventData) -> Values:  # Gradio finds the event by its annotation.
        return _choose(app, panel, shown, str(getattr(event, "cell", "")))

    panel.table.click(
        choose, panel.shown,
        [panel.shown, panel.choice, panel.picture, panel.parameters, panel.name, panel.save, panel.saved], **HIDDEN,
    )  # fmt: skip
    gr.on([panel.save.click, panel.name.submit], partial(_save, app), [panel.shown, panel.name], panel.saved, **HIDDEN)


def _start_values(kind: str, prompt: str) -> Any:
    """Fill in values for an axis that has just been chosen."""
    value = prompt if kind == "prompt" else AXIS_TYPES[kind].start if kind else ""
    return gr.update(value=value, placeholder=PLACEHOLDERS.get(kind, ""))


def _subjects(app: AppState, chosen: str | None, picked: bool, first: str | None) -> Any:
    """List the adapters. Where nobody has picked one, that of the form's first row is chosen, or else the newest."""
    adapters = [adapter for adapter in app.snapshot().adapters if adapter.path.parent.name != "checkpoints"]
    names = [adapter.name for adapter in adapters]
    wanted = [chosen] if picked else [first, chosen]
    value = next((name for name in (*wanted, *names) if name in names), "")
    return gr.update(choices=adapter_choices(adapters), value=value)


def _begin(app: AppState, panel: ComparePanel, form: CreateForm, values: Values) -> Values:
    """Queue the grid that is filled in."""
    subject = values[panel.subject] or ""
    try:
        request, chosen = create_form.request(form, values)
        if subject and subject not in dict(chosen):
            chosen.append((subject, 1.0))
            base = next((adapter.base for adapter in app.snapshot().adapters if adapter.name == subject), "")
            request = request.model_copy(update={"base": base or request.base})
        axes = [
            AxisSpec(values[kind] or "", values[text] or "")
            for kind, text in zip(panel.kinds, panel.values, strict=True)
        ]  # fmt: skip
        if not any(axis.kind for axis in axes):
            raise ConfigError("Choose what the columns or the rows change.")
        mixed = app.with_adapters(request, chosen)
        return _start(app, panel, begin_grid(app.data_dir, mixed, axes, subject, app.run(subject)))
    except SdloraError as error:
        return {panel.status: page_html.note([str(error)], "bad")}


def _pick_best(app: AppState, panel: ComparePanel, subject: str | None) -> Values:
    """Queue the grid from which the best image of a run is picked."""
    try:
        run = app.run(subject)
        if run is None:
            raise ConfigError("Choose a run of yours as the adapter to compare: the best is picked of its checkpoints.")
        request, axes = best_checkpoint_grid(run)
        return _start(app, panel, begin_grid(app.data_dir, request, axes, run.name, run))
    except SdloraError as error:
        return {panel.status: page_html.note([str(error)], "bad")}


def _start(app: AppState, panel: ComparePanel, request: GenerationRequest) -> Values:
    number = app.submit(request).number
    shown = (Path(request.grid).name, -1, "")
    return {panel.number: number, panel.choice: gr.update(visible=False), **_poll(app, panel, number, shown)}


def _attach(app: AppState, panel: ComparePanel) -> Values:
    """Show the running grid, or the last one, on a page that was just loaded."""
    running = next((status for status in app.inference.open() if status.request.grid), None)
    folders = list_grids(app.data_dir)
    if running is None and not folders:
        return gr.skip()
    name = Path(running.request.grid).name if running else folders[0].name
    number = running.number if running else 0
    return {panel.number: number, **_poll(app, panel, number, (name, -1, ""))}


def _poll(app: AppState, panel: ComparePanel, number: int, shown: Sequence[Any]) -> Values:
    """Describe the grid, show its table when an image is new, and offer the sheet at its end."""
    name, before, chosen = shown
    status = app.inference.status(number)
    ended = status is None or status.ended
    updates: Values = {panel.download: gr.update(visible=False)}
    try:
        folder = grid_folder(app.data_dir, name)
        grid = read_grid(folder)
        finished = sum((folder / cell.file).is_file() for cell in grid.cells)
        if finished != before:
            updates[panel.table] = page_html.grid_table(grid, folder, chosen)
        if ended and finished:
            updates[panel.download] = gr.update(value=cache_file(save_contact_sheet(folder)), visible=True)
    except (SdloraError, OSError) as error:
        return {
            panel.shown: ("", 0, ""), panel.status: page_html.note([str(error)], "bad"), panel.table: "",
            panel.download: gr.update(visible=False), **_busy(panel, False),
        }  # fmt: skip
    text = _describe(app, status, finished, len(grid.cells)) if status else ""
    return {panel.shown: (name, finished, chosen), panel.status: text, **updates, **_busy(panel, not ended)}


def _busy(panel: ComparePanel, busy: bool) -> Values:
    free = gr.update(interactive=not busy)
    return {
        panel.go: free, panel.best: free, panel.cancel: gr.update(visible=busy), panel.timer: gr.Timer(active=busy),
    }  # fmt: skip


def _describe(app: AppState, status: JobStatus, finished: int, total: int) -> str:
    """Return the progress or the result of a grid as a note."""
    if status.state == "failed":
        return page_html.note([status.message], "bad")
    if status.ended:
        end = "The grid is finished" if finished == total else f"Cancelled; {finished} of {total} pictures are kept"
        return page_html.note(
            [f"{end}. Click a picture to see it whole, and to save its adapter.", status.message], "good"
        )
    ahead = app.inference.queued_before(status.number)
    if status.state != "drawing":
        waiting = f"Waiting its turn: {ahead} before this one" if ahead else status.message or "Getting ready"
        return page_html.progress_note(waiting, None)
    share = status.done / status.total if status.total else 0.0
    left = f" · {format_duration(status.left)} left" if status.left is not None else ""
    return page_html.progress_note(f"{finished} of {total} pictures drawn{left}", share)


def _choose(app: AppState, panel: ComparePanel, shown: Sequence[Any], file: str) -> Values:
    """Show the clicked image in full with its parameters, and suggest a name for its adapter."""
    name, number, _ = shown
    try:
        folder = grid_folder(app.data_dir, name)
        grid = read_grid(folder)
        cell = grid.cell(file)
        parameters = read_parameters(folder / file)
    except SdloraError:
        return gr.skip()
    scales = " ".join(f"<lora:{name}:{scale:g}>" for name, scale in cell.scales.items() if scale)
    saves = bool(cell.adapter)
    return {
        panel.shown: (name, number, file),
        panel.choice: gr.update(visible=True),
        panel.picture: page_html.image_link(folder / file, f"{cell.prompt} {scales}"),
        panel.parameters: format_parameters(parameters) if parameters else "",
        panel.name: gr.update(value=f"{grid.subject}-best", visible=saves),
        panel.save: gr.update(visible=saves),
        panel.saved: "",
    }


def _save(app: AppState, shown: Sequence[Any], name: str) -> str:
    """Save the adapter of the chosen image under ``name``."""
    grid, _, file = shown
    try:
        if not (name or "").strip():
            raise ConfigError("Give the adapter a name.")
        path = keep_best(app.data_dir, grid_folder(app.data_dir, grid), file, name)
    except SdloraError as error:
        return page_html.note([str(error)], "bad")
    app.refresh()
    weight = f"{preferred_weight(path):g}"
    return page_html.note(
        [f"Saved as {path.stem}, with the scale {weight}. It is among the adapters of Create."], "good"
    )
