"""HTML of the library: cards, details, reports; all text from elsewhere is escaped."""

import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sdlora.api.adapter_jobs import AdapterCheck
from sdlora.api.adapters import ImportResult, LibraryEntry
from sdlora.api.storage import KEPT_DAYS, TrashItem
from sdlora.errors import SdloraError
from sdlora.formatting import format_bytes, one_line, pluralize
from sdlora.ui.app_state import file_url, thumbnail
from sdlora.ui.page_html import note

SHOWN = 60
"""Cards that are shown at most; a search finds the others."""
ACT = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]');
  if (button) trigger('click', {act: button.dataset.do, name: button.dataset.name});
});"""
"""One listener for all buttons in a piece of HTML, which reports the clicked one."""


def adapters(found: Sequence[tuple[LibraryEntry, Path | None]], total: int, search: str) -> str:
    """Return a card for each adapter, which opens its details."""
    if not total:
        return note(
            [f"No adapter is called {search!r}." if search else "No adapters yet: train one, or import a file."]
        )
    cards = "".join(_adapter(entry, picture) for entry, picture in found)
    return f"<div class='shelf'>{cards}</div>{_more(len(found), total, 'adapters')}"


def _adapter(entry: LibraryEntry, picture: Path | None) -> str:
    card = entry.summary
    words = ", ".join(card.triggers) if card else ""
    facts = [
        one_line(Path(entry.base).name or (card.base if card else ""), 80),
        f"rank {card.rank}" if card and card.rank else "",
        format_bytes(entry.size),
        day(entry.changed),
    ]
    status = entry.problem or " · ".join(filter(None, facts))
    state = " broken" if entry.problem else ""
    return (
        f"<button type='button' class='tile{state}' data-do='details' data-name='{escape(entry.name, quote=True)}'>"
        f"{_thumbnail(entry.name, picture)}<b>{escape(entry.name)}</b><span>{escape(one_line(words, 80))}</span>"
        f"<span class='quiet'>{escape(one_line(status, 160))}</span></button>"
    )


def runs(found: Sequence[tuple[str, str, str, Path | None, str]], total: int, search: str) -> str:
    """Return a card for each run (name, state, date, image, word for going on), with buttons."""
    if not total:
        return note([f"No run is called {search!r}." if search else "No runs yet: press Train, and it is kept here."])
    cards = "".join(_run(*each) for each in found)
    return f"<div class='shelf'>{cards}</div>{_more(len(found), total, 'runs')}"


def _run(name: str, status: str, date: str, picture: Path | None, go_on: str) -> str:
    acts = {"open": "Open", **({"resume": go_on} if go_on else {}), "evaluate": "Which checkpoint?"}
    acts |= {"duplicate": "Duplicate", "delete": "Delete"}
    named = escape(name, quote=True)
    buttons = "".join(
        f"<button type='button' data-do='{act}' data-name='{named}' aria-label='{word} {named}'>{word}</button>"
        for act, word in acts.items()
    )
    return (
        f"<article class='tile'>{_thumbnail(name, picture)}<b>{escape(name)}</b>"
        f"<span>{escape(one_line(status, 160))}</span>"
        f"<span class='quiet'>{escape(date)}</span><span class='acts'>{buttons}</span></article>"
    )


def details(entry: LibraryEntry, picture: Path | None) -> str:
    """Return the facts in the header of an adapter's file."""
    card = entry.summary
    rows = {
        "Kind": "trained here" if entry.kind == "run" else "imported",
        "Trigger words": (", ".join(card.triggers) or "none given") if card else "",
        "Base": entry.base or (card.base if card else "") or "unknown",
        "Method": f"{card.method}, rank {card.rank}, alpha {card.alpha or 'as the rank'}" if card else "",
        "Layers": str(card.layers) if card else "",
        "Size": format_bytes(entry.size),
        "Date": day(entry.changed),
    }
    problem = note([f"This file cannot be used: {entry.problem}"], "bad") if entry.problem else ""
    return (
        f"<div class='sheet'>{_thumbnail(entry.name, picture)}<div><h3>{escape(entry.name)}</h3>"
        f"{facts(rows.items())}</div></div>{problem}"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return the names and values of a list, without empty values."""
    cells = (f"<dt>{escape(name)}</dt><dd>{escape(one_line(value, 300))}</dd>" for name, value in rows if value)
    return f"<dl class='facts'>{''.join(cells)}</dl>"


def inspection(check: AdapterCheck) -> str:
    """Return the text of ``sdlora inspect``."""
    return note([check.refusal], "bad") or f"<pre class='inspection' tabindex='0'>{escape(check.said)}</pre>"


def layers(rows: Sequence[Sequence[Any]], plot: str) -> str:
    """Return a table of layers (path, norm, rank, effective rank, rank for 95 %), and the ``plot`` of it."""
    source = escape(f"gradio_api/file={quote(plot)}", quote=True)
    picture = (
        f"<div class='spectra' tabindex='0' role='region' aria-label='Plot of the layers'><a href='{source}' "
        f"target='_blank' rel='noopener'><img src='{source}' alt='Norm and singular values of each layer'></a></div>"
    )
    heads = ("Layer", "Norm", "Rank", "Effective", "95\u00a0%")
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    body = "".join(
        f"<tr><th scope='row'>{escape(str(path)).replace('.', '.<wbr>')}</th><td>{norm:.4g}</td>"
        f"<td>{'–' if rank is None else rank}</td><td>{effective:.1f}</td><td>{needed}</td></tr>"
        for path, norm, rank, effective, needed in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    named = "role='region' aria-label='Layers, the strongest first'"
    words = "Norm: how much a layer is changed. Effective: directions in use. 95\u00a0%: the rank that has that share."
    return f"{picture}<p class='quiet'>{words}</p><div class='layers' tabindex='0' {named}>{table}</div>"


def import_report(results: Sequence[ImportResult]) -> str:
    """Return the results of an import."""
    return "".join(_result(one) for one in results)


def _result(one: ImportResult) -> str:
    check = one.check
    if check.refusal:
        reason = check.refusal.removeprefix(f"{one.file}: ")
        head, kind = f"{one.file} is not kept: {reason}", "bad"
    else:
        head, kind = f"{one.file} is in the library as {one.name}.", "good"
    lines = [head]
    if check.base and check.layers:
        lines.append(f"{check.fitting} of {check.layers} layers match {check.base}.")
    elif check.layers:
        lines.append(f"{pluralize(check.layers, 'layer')}, all finite; not compared with any base.")
    folded = _folded(f"{pluralize(check.layers - check.fitting, 'layer')} not matching", check.misfits)
    folded += _folded(f"{pluralize(check.unknown, 'key')} without a layer, left out", check.strange)
    return f"<div class='report'>{note(lines, kind)}{facts(check.facts)}{folded}</div>"


def _folded(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    body = "".join(f"<li>{escape(one_line(line, 300))}</li>" for line in lines)
    return f"<details><summary>{escape(title)}</summary><ul>{body}</ul></details>"


def trash(items: Sequence[TrashItem]) -> str:
    """Return what is in the trash, with buttons to restore it."""
    if not items:
        return note(["The trash is empty."])
    rows = "".join(
        f"<li><span>{escape(item.what)} "
        f"<span class='quiet'>{day(item.deleted)} · {format_bytes(item.size)}</span></span>"
        f"<button type='button' data-do='undo' data-name='{escape(item.folder.name, quote=True)}' "
        f"aria-label='Bring back {escape(item.what, quote=True)}'>Undo</button></li>"
        for item in items[:SHOWN]
    )
    note_on_age = f"<p class='quiet'>After {KEPT_DAYS} days in the trash, things are deleted for good.</p>"
    return f"<ul class='trash'>{rows}</ul>{_more(min(SHOWN, len(items)), len(items), 'things')}{note_on_age}"


def _more(shown: int, total: int, what: str) -> str:
    return note([f"The first {shown} of {total} {what} are shown; search for the others."]) if shown < total else ""


def _thumbnail(name: str, picture: Path | None) -> str:
    """Return a thumbnail, or the initial of the name if no image can be read."""
    if picture is not None:
        try:
            source = escape(file_url(Path(thumbnail(picture))), quote=True)
            return f"<img src='{source}' alt='' loading='lazy'>"
        except (SdloraError, OSError):  # The image is damaged or gone: the initial stands in.
            pass
    return f"<i class='initial' aria-hidden='true'>{escape(name[:1].upper())}</i>"


def day(seconds: float) -> str:
    """Return a date as ``3 Oct 2026``, in local time."""
    try:
        moment = time.localtime(seconds)
        return f"{moment.tm_mday} {time.strftime('%b %Y', moment)}" if seconds else ""
    except (OSError, OverflowError, ValueError):  # A time that no calendar has.
        return ""
