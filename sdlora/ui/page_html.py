"""HTML of the page; all text from elsewhere is escaped."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from sdlora.api.grids import GridCell, ImageGrid
from sdlora.formatting import format_bytes
from sdlora.ui.app_state import ACTIVE, file_url, thumbnail
from sdlora.ui.run_view import RunView, short_status


def header(run: str, view: RunView | None, state: str) -> str:
    """Return the line above the tabs: the name, the device, and the current job."""
    if view is None:
        job = "<span class='quiet'>no training yet</span>"
    else:
        mark = "live" if state in ACTIVE else "idle"
        job = f"<span class='dot {mark}'></span>{escape(run)} · {escape(short_status(view, state))}"
    device = f"<span class='quiet'>{escape(_device(view, state))}</span>" if view and view.started else ""
    return f"<div class='top'><span class='brand'>sdlora</span>{device}<span class='job'>{job}</span></div>"


def _device(view: RunView, state: str) -> str:
    """Device, precision and, while it trains, memory: ``cuda:0 · bf16 · 6.20 GiB``."""
    memory = format_bytes(view.memory) if view.memory and state in ACTIVE else ""
    known = [view.started.device, view.started.precision] if view.started else []
    return " · ".join([*known, memory] if memory else known)


def note(lines: Iterable[str], kind: str = "info") -> str:
    """Return sentences as a note of ``kind`` info, good or bad; "" if there are none."""
    body = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    role = "alert" if kind == "bad" else "status"
    return f"<div class='note {kind}' role='{role}'>{body}</div>" if body else ""


def progress_bar(share: float | None) -> str:
    """Return a progress bar; one without a value for an unknown ``share``."""
    if share is None:
        return "<div class='bar moving' role='progressbar' aria-label='progress'><i></i></div>"
    percent = round(100 * min(1.0, max(0.0, share)))
    named = f"role='progressbar' aria-label='progress' aria-valuenow='{percent}'"
    return f"<div class='bar' {named}><i style='width:{percent}%'></i></div>"


def progress_note(sentence: str, share: float | None, kind: str = "info") -> str:
    """Return a sentence with a progress bar."""
    return f"<div class='note {kind}' role='status'><p>{escape(sentence)}</p>{progress_bar(share)}</div>"


def grid_table(grid: ImageGrid, folder: Path, chosen: str = "") -> str:
    """Return a grid as one table per page. Images are buttons with their file names; ``chosen`` is marked."""
    columns, rows, pages = grid.labels
    by_place = {cell.place: cell for cell in grid.cells}
    tables = []
    for page, title in enumerate(pages):
        head = "".join(f"<th scope='col'>{escape(label)}</th>" for label in columns) if any(columns) else ""
        body = ""
        for row, label in enumerate(rows):
            cells = (by_place[page, row, column] for column in range(len(columns)))
            side = f"<th scope='row'>{escape(label)}</th>" if any(rows) else ""
            named = ((cell, f"{columns[cell.place[2]]} {label} {title}") for cell in cells)
            body += (
                f"<tr>{side}{''.join(f'<td>{_button(cell, folder, name, chosen)}</td>' for cell, name in named)}</tr>"
            )
        corner = "<th></th>" if any(rows) and head else ""
        caption = f"<caption>{escape(title)}</caption>" if title else ""
        tables.append(f"<table>{caption}<thead><tr>{corner}{head}</tr></thead><tbody>{body}</tbody></table>")
    return f"<div class='compared' tabindex='0' role='region' aria-label='Grid'>{''.join(tables)}</div>"


def _button(cell: GridCell, folder: Path, name: str, chosen: str) -> str:
    """Return the image of a cell as a button, or a gap for one that is not finished."""
    if not (folder / cell.file).is_file():
        return "<span class='hole'></span>"
    source = escape(f"gradio_api/file={quote(thumbnail(folder / cell.file))}", quote=True)
    alt, pressed = escape(name.strip() or "picture", quote=True), str(cell.file == chosen).lower()
    return (
        f"<button type='button' data-cell='{escape(cell.file, quote=True)}' aria-pressed='{pressed}'>"
        f"<img src='{source}' alt='{alt}' loading='lazy'></button>"
    )


def image_link(image: Path, name: str) -> str:
    """Return an image as large as fits, linked to its file."""
    source, alt = escape(file_url(image), quote=True), escape(name, quote=True)
    return f"<a class='full' href='{source}' target='_blank' rel='noopener'><img src='{source}' alt='{alt}'></a>"
