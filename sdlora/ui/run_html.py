"""HTML of the Train tab; all text from elsewhere is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from sdlora.ui import setting_fields
from sdlora.ui.app_state import ACTIVE, file_url
from sdlora.ui.page_html import progress_bar
from sdlora.ui.run_view import PreviewImage, RunView, describe, fraction_done, stages

SEARCH = """<input type='search' id='find-setting' aria-label='Find a setting' autocomplete='off'
 placeholder='Find a setting, such as rank'>"""
SCRIPT = """<script>
document.addEventListener("input", (event) => {
  if (event.target.id !== "find-setting") return;
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const section of document.querySelectorAll("#advanced .settings")) {
    let seen = false;
    for (const field of section.querySelectorAll("[id^='set-']")) {
      const text = `${field.id.replaceAll("-", " ")} ${field.textContent} ${section.id}`.toLowerCase();
      const found = words.every((word) => text.includes(word));
      field.classList.toggle("unfound", !found);
      seen ||= found;
    }
    section.classList.toggle("unfound", !seen);
  }
});
</script>"""
"""Shows the settings whose name, label or help has every word of the search field."""


def run_card(name: str, view: RunView, state: str, log: Sequence[str] = ()) -> str:
    """Return the card of a run: its progress, and the end of its ``log`` if it failed."""
    kind = {"failed": "bad", "finished": "good"}.get(state, "info")
    moving = progress_bar(fraction_done(view, state)) if state in (*ACTIVE, "finished", "stopped") else ""
    path = _stages(view, state) if state in ("running", "stopping") else ""
    facts = ""
    if view.started:
        event = view.started
        facts = (
            f"{event.images} pictures · {event.base} on {event.device} ({event.precision}) · "
            f"trains {event.parameters:,} parameters, {event.share:.2%} of all"
        )
    end = f"<details><summary>The end of its log</summary><pre>{escape(chr(10).join(log))}</pre></details>"
    return (
        f"<div class='note {kind}' role='{'alert' if kind == 'bad' else 'status'}'><h3>{escape(name)}</h3>"
        f"{path}<p>{escape(describe(view, state))}</p>{moving}<p class='quiet'>{escape(facts)}</p>"
        f"{end if log and state == 'failed' else ''}</div>"
    )


def _stages(view: RunView, state: str) -> str:
    titles = {"done": "done", "now": "now", "next": "to come"}
    items = "".join(
        f"<li class='{mark}'{' aria-current=step' if mark == 'now' else ''} title='{titles[mark]}'>{escape(name)}</li>"
        for name, mark in stages(view, state)
    )
    return f"<ol class='stages'>{items}</ol>"


def previews(images: Sequence[PreviewImage]) -> str:
    """Return the previews as a table with a row per prompt and a column per step."""
    steps = sorted({preview.step for preview in images})
    rows: dict[str, dict[int, PreviewImage]] = {}
    for preview in images:
        rows.setdefault(preview.prompt, {})[preview.step] = preview
    head = "".join(f"<th scope='col'>{'before' if not step else f'step {step}'}</th>" for step in steps)
    body = ""
    for prompt, pictures in rows.items():
        cells = "".join(f"<td>{_cell(pictures[step]) if step in pictures else ''}</td>" for step in steps)
        body += f"<tr><th scope='row' colspan='{len(steps)}'>{escape(prompt)}</th></tr><tr>{cells}</tr>"
    return f"<div class='previews'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(preview: PreviewImage) -> str:
    if not preview.path.is_file():
        return ""
    source, alt = (
        escape(file_url(preview.path), quote=True),
        escape(f"{preview.prompt}, step {preview.step}", quote=True),
    )
    return f"<a href='{source}' target='_blank' rel='noopener'><img src='{source}' alt='{alt}' loading='lazy'></a>"


def changed_settings(names: Iterable[str]) -> str:
    """Return the number of changed settings, and style rules that mark the fields of ``names``."""
    changed = list(names)
    if not changed:
        return "<p class='quiet'>Nothing is changed: every setting is the preset's.</p>"
    fields = ", ".join(f"#{setting_fields.elem_id(name)}" for name in changed)
    style = f"<style>{fields} {{ box-shadow: inset 3px 0 0 var(--primary-500); }}</style>"
    return f"{style}<p class='changed' role='status'>{len(changed)} changed</p>"


def queued_run(position: int, name: str, facts: str) -> str:
    """Return a line on a run in the queue."""
    return (
        f"<p class='waiting'><span class='place'>{position}</span><b>{escape(name)}</b> "
        f"<span class='quiet'>{escape(facts)}</span></p>"
    )
