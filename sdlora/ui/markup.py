"""The page's own pieces of HTML. Every word that is not written here is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from sdlora.ui.desk import ACTIVE, url
from sdlora.ui.watch import Preview, RunView, sentence, share, short


def header(run: str, view: RunView | None, state: str) -> str:
    """The line on top of every tab: the name, and the current job."""
    if view is None:
        job = "<span class='quiet'>no training yet</span>"
    else:
        mark = "live" if state in ACTIVE else "idle"
        job = f"<span class='dot {mark}'></span>{escape(run)} · {escape(short(view, state))}"
    place = f"<span class='quiet'>{escape(view.started.device)}</span>" if view and view.started else ""
    return f"<div class='top'><span class='brand'>sdlora</span>{place}<span class='job'>{job}</span></div>"


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


def status(name: str, view: RunView, state: str) -> str:
    """The card of a run: where it stands, and how much is done."""
    kind = {"failed": "bad", "finished": "good"}.get(state, "info")
    moving = bar(share(view, state)) if state in (*ACTIVE, "finished", "stopped") else ""
    facts = ""
    if view.started:
        event = view.started
        facts = (
            f"{event.images} pictures · {event.base} on {event.device} ({event.precision}) · "
            f"trains {event.parameters:,} parameters, {event.share:.2%} of all"
        )
    return (
        f"<div class='note {kind}' role='{'alert' if kind == 'bad' else 'status'}'><h3>{escape(name)}</h3>"
        f"<p>{escape(sentence(view, state))}</p>{moving}<p class='quiet'>{escape(facts)}</p></div>"
    )


def previews(shown: Sequence[Preview]) -> str:
    """Pictures drawn while training: a row a prompt, a column a step."""
    steps = sorted({preview.step for preview in shown})
    rows: dict[str, dict[int, Preview]] = {}
    for preview in shown:
        rows.setdefault(preview.prompt, {})[preview.step] = preview
    head = "".join(f"<th scope='col'>{'before' if not step else f'step {step}'}</th>" for step in steps)
    body = ""
    for prompt, pictures in rows.items():
        cells = "".join(f"<td>{_cell(pictures[step]) if step in pictures else ''}</td>" for step in steps)
        body += f"<tr><th scope='row' colspan='{len(steps)}'>{escape(prompt)}</th></tr><tr>{cells}</tr>"
    return f"<div class='previews'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(preview: Preview) -> str:
    if not preview.path.is_file():
        return ""
    place, alt = escape(url(preview.path), quote=True), escape(f"{preview.prompt}, step {preview.step}", quote=True)
    return f"<a href='{place}' target='_blank' rel='noopener'><img src='{place}' alt='{alt}' loading='lazy'></a>"


def drawing(sentence: str, share: float | None, kind: str = "info") -> str:
    """Where a request for pictures stands."""
    return f"<div class='note {kind}' role='status'><p>{escape(sentence)}</p>{bar(share)}</div>"
