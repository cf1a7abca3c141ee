"""In the tab Create: grids of pictures along chosen axes, and the best of a run saved as the adapter."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

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
from sdlora.ui import create_form as fields
from sdlora.ui import page_html
from sdlora.ui.app_state import AppState, cache_file
from sdlora.ui.create_form import NONE
from sdlora.ui.create_tab import CreateTab
from sdlora.ui.listeners import HIDDEN

CHOICES = [("Nothing", ""), *((kind.title, name) for name, kind in AXIS_TYPES.items())]
BEGIN = ("scale", "checkpoint", "")
"""What the axes change at first."""
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
"""Tells which picture is clicked, and marks it at once."""


@dataclass(frozen=True)
class ComparePanel:
    """The components that are wired or brought up to date."""

    subject: gr.Dropdown
    kinds: list[gr.Dropdown]
    values: list[gr.Textbox]
    go: gr.Button
    best: gr.Button
    cancel: gr.Button
    status: gr.HTML
    table: gr.HTML
    sheet: gr.DownloadButton
    choice: gr.Row
    picture: gr.HTML
    parameters: gr.Textbox
    name: gr.Textbox
    save: gr.Button
    saved: gr.HTML
    shown: gr.State
    """What is seen: the grid's name, how many of its pictures, and which is chosen."""
    ticket: gr.State
    timer: gr.Timer

    @property
    def live(self) -> list[Any]:
        return [self.shown, self.status, self.table, self.sheet, self.go, self.best, self.cancel, self.timer]


def build(app: AppState, demo: gr.Blocks, tab: CreateTab) -> ComparePanel:
    """Lay the panel out below the tab's pictures and wire it. What is not compared comes from the tab's fields."""
    with gr.Accordion("Compare, and pick the best", open=False, elem_id="compare") as fold:
        asked = _inputs()
        status = gr.HTML(elem_id="compare-status")
        table = gr.HTML(elem_id="compare-grid", js_on_load=CHOOSE)
        sheet = gr.DownloadButton("Download the sheet", size="sm", visible=False, elem_id="compare-sheet")
        chosen = _choice()
    panel = ComparePanel(
        **asked, **chosen, status=status, table=table, sheet=sheet,
        shown=gr.State(("", 0, "")), ticket=gr.State(0), timer=gr.Timer(1.0, active=False),
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
    """What is seen of the picture that is clicked."""
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
    started = [panel.ticket, panel.choice, *panel.live]
    panel.go.click(
        partial(_begin, app), [panel.subject, *panel.kinds, *panel.values, *tab.inputs.values], started, **HIDDEN,
    )  # fmt: skip
    panel.best.click(partial(_best, app), panel.subject, started, **HIDDEN)
    panel.cancel.click(app.inference.cancel, panel.ticket, None, **HIDDEN)
    panel.timer.tick(partial(_poll, app), [panel.ticket, panel.shown], panel.live, concurrency_limit=None, **HIDDEN)
    demo.load(partial(_attach, app), None, [panel.ticket, *panel.live], **HIDDEN)
    gr.on([demo.load, fold.expand], partial(_subjects, app), panel.subject, panel.subject, **HIDDEN)
    for kind, values in zip(panel.kinds, panel.values, strict=True):
        kind.change(_values_for, [kind, tab.inputs.prompt], values, **HIDDEN)

    def choose(shown: Sequence[Any], event: gr.EventData) -> list[Any]:  # Gradio finds the event by its annotation.
        return _choose(app, shown, str(getattr(event, "cell", "")))

    panel.table.click(
        choose, panel.shown,
        [panel.shown, panel.choice, panel.picture, panel.parameters, panel.name, panel.save, panel.saved], **HIDDEN,
    )  # fmt: skip
    gr.on([panel.save.click, panel.name.submit], partial(_save, app), [panel.shown, panel.name], panel.saved, **HIDDEN)


def _values_for(kind: str, prompt: str) -> Any:
    """Values to begin with for an axis that has just been chosen."""
    value = prompt if kind == "prompt" else AXIS_TYPES[kind].start if kind else ""
    return gr.update(value=value, placeholder=PLACEHOLDERS.get(kind, ""))


def _subjects(app: AppState, chosen: str) -> Any:
    """The adapters that there are now; the newest is taken where none was."""
    names = [adapter.name for adapter in app.snapshot().adapters if adapter.path.parent.name != "checkpoints"]
    value = chosen if chosen in names else next(iter(names), "")
    return gr.update(choices=[NONE, *((name, name) for name in names)], value=value)


def _begin(app: AppState, *values: Any) -> list[Any]:
    """Queue a grid of what the fields say."""
    subject, kinds, texts = values[0] or "", values[1:4], values[4:7]
    try:
        request, chosen = fields.request(*values[7:])
        if subject and subject not in dict(chosen):
            chosen.append((subject, 1.0))
            own = next((adapter.base for adapter in app.snapshot().adapters if adapter.name == subject), "")
            request = request.model_copy(update={"base": own or request.base})
        wishes = [AxisSpec(kind or "", text or "") for kind, text in zip(kinds, texts, strict=True)]
        if not any(wish.kind for wish in wishes):
            raise ConfigError("Choose what the columns or the rows change.")
        mixed = app.with_adapters(request, chosen)
        return _started(app, begin_grid(app.data_dir, mixed, wishes, subject, app.run(subject)))
    except SdloraError as error:
        return _refused(error)


def _best(app: AppState, subject: str | None) -> list[Any]:
    """Queue the grid from which a run's best is picked."""
    try:
        run = app.run(subject)
        if run is None:
            raise ConfigError("Choose a run of yours as the adapter to compare: the best is picked of its checkpoints.")
        request, wishes = best_checkpoint_grid(run)
        return _started(app, begin_grid(app.data_dir, request, wishes, run.name, run))
    except SdloraError as error:
        return _refused(error)


def _started(app: AppState, request: GenerationRequest) -> list[Any]:
    ticket = app.submit(request)
    return [ticket.number, gr.update(visible=False), *_poll(app, ticket.number, (Path(request.grid).name, -1, ""))]


def _refused(error: SdloraError) -> list[Any]:
    """Say why; everything else stays as it is."""
    return [gr.skip(), gr.skip(), gr.skip(), page_html.note([str(error)], "bad"), *[gr.skip()] * 6]


def _attach(app: AppState) -> list[Any]:
    """After a load: the grid that is being drawn, or the last one."""
    drawn = next((ticket for ticket in app.inference.open() if ticket.request.grid), None)
    folders = list_grids(app.data_dir)
    if drawn is None and not folders:
        return [gr.skip()] * 9
    name = Path(drawn.request.grid).name if drawn else folders[0].name
    number = drawn.number if drawn else 0
    return [number, *_poll(app, number, (name, -1, ""))]


def _poll(app: AppState, number: int, shown: Sequence[Any]) -> list[Any]:
    """Where the grid stands: its table where a picture is new, and at its end the sheet."""
    name, before, chosen = shown
    ticket = app.inference.ticket(number)
    ended = ticket is None or ticket.ended
    try:
        folder = grid_folder(app.data_dir, name)
        grid = read_grid(folder)
        there = sum((folder / cell.file).is_file() for cell in grid.cells)
        table = page_html.grid_table(grid, folder, chosen) if there != before else gr.skip()
        sheet = gr.update(visible=False)
        if ended and there:
            sheet = gr.update(value=cache_file(save_contact_sheet(folder)), visible=True)
    except (SdloraError, OSError) as error:
        return [("", 0, ""), page_html.note([str(error)], "bad"), "", gr.update(visible=False), *_buttons(False)]
    said = _told(app, ticket, there, len(grid.cells), folder) if ticket else ""
    return [(name, there, chosen), said, table, sheet, *_buttons(not ended)]


def _buttons(busy: bool) -> list[Any]:
    free = gr.update(interactive=not busy)
    return [free, free, gr.update(visible=busy), gr.Timer(active=busy)]


def _told(app: AppState, ticket: JobStatus, there: int, total: int, folder: Path) -> str:
    """Where a grid stands, in plain words."""
    if ticket.state == "failed":
        return page_html.note([ticket.message], "bad")
    if ticket.ended:
        end = "The grid is finished" if there == total else f"Cancelled; {there} of {total} pictures are kept"
        return page_html.note(
            [f"{end}. Click a picture to see it whole, and to save its adapter.", ticket.message], "good"
        )
    ahead = app.inference.queued_before(ticket.number)
    if ticket.state != "drawing":
        waiting = f"Waiting its turn: {ahead} before this one" if ahead else ticket.message or "Getting ready"
        return page_html.progress_note(waiting, None)
    share = ticket.done / ticket.total if ticket.total else 0.0
    return page_html.progress_note(f"{there} of {total} pictures drawn{_left(total - there, folder)}", share)


def _left(missing: int, folder: Path) -> str:
    """How long ``missing`` pictures will take, by what those before them took; "" as yet."""
    done = [path.stat().st_mtime for path in folder.glob("*.png")]
    if len(done) < 2:
        return ""
    each = (max(done) - min(done)) / (len(done) - 1)
    return f" · {format_duration(max(1.0, each * missing - (time.time() - max(done))))} left"


def _choose(app: AppState, shown: Sequence[Any], file: str) -> list[Any]:
    """The clicked picture in full, what it was made from, and its adapter's name to be."""
    name, there, _ = shown
    try:
        folder = grid_folder(app.data_dir, name)
        grid = read_grid(folder)
        cell = grid.cell(file)
        known = read_parameters(folder / file)
    except SdloraError:
        return [gr.skip()] * 7
    weighed = " ".join(f"<lora:{name}:{scale:g}>" for name, scale in cell.scales.items() if scale)
    picture = page_html.image_link(folder / file, f"{cell.prompt} {weighed}")
    able = bool(cell.adapter)
    return [
        (name, there, file), gr.update(visible=True), picture, format_parameters(known) if known else "",
        gr.update(value=f"{grid.subject}-best", visible=able), gr.update(visible=able), "",
    ]  # fmt: skip


def _save(app: AppState, shown: Sequence[Any], name: str) -> str:
    """Keep the adapter behind the chosen picture."""
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
