"""The page's own pieces of HTML. Every word that is not written here is escaped."""

from collections.abc import Iterable
from html import escape

from sdlora.ui.desk import ACTIVE
from sdlora.ui.watch import RunView, short


def header(run: str, view: RunView | None, state: str) -> str:
    """The line on top of every tab: the name, and the current job."""
    if view is None:
        job = "<span class='quiet'>no training yet</span>"
    else:
        mark = "live" if state in ACTIVE else "idle"
        job = f"<span class='dot {mark}'></span>{escape(run)} · {escape(short(view, state))}"
    place = f"<span class='quiet'>{escape(_device(view, state))}</span>" if view and view.started else ""
    return f"<div class='top'><span class='brand'>sdlora</span>{place}<span class='job'>{job}</span></div>"


def _device(view: RunView, state: str) -> str:
    """Device, precision and, while it trains, memory: ``cuda:0 · bf16 · 6.2 GiB``."""
    memory = f"{view.memory / 2**30:.1f} GiB" if view.memory and state in ACTIVE else ""
    known = [view.started.device, view.started.precision] if view.started else []
    return " · ".join([*known, memory] if memory else known)


def note(lines: Iterable[str], kind: str = "info") -> str:
    """Sentences to a person: ``info``, ``good`` or ``bad``; nothing at all if there are none."""
    body = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    role = "alert" if kind == "bad" else "status"
    return f"<div class='note {kind}' role='{role}'>{body}</div>" if body else ""


def bar(share: float | None) -> str:
    """A progress bar; one that only moves where there is no telling how much is done."""
    if share is None:
        return "<div class='bar moving' role='progressbar' aria-label='progress'><i></i></div>"
    percent = round(100 * min(1.0, max(0.0, share)))
    named = f"role='progressbar' aria-label='progress' aria-valuenow='{percent}'"
    return f"<div class='bar' {named}><i style='width:{percent}%'></i></div>"


def drawing(sentence: str, share: float | None, kind: str = "info") -> str:
    """Where a request for pictures stands."""
    return f"<div class='note {kind}' role='status'><p>{escape(sentence)}</p>{bar(share)}</div>"
