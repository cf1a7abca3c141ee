"""HTML of an evaluation: what it proposes, the contact sheet, the figures; all text from elsewhere is escaped."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sdlora.api.evaluation import (
    MEASURES,
    POCKET,
    Candidate,
    EncoderNames,
    Evaluation,
    EvaluationEstimate,
    format_figure,
)
from sdlora.errors import SdloraError
from sdlora.formatting import format_duration, one_line, pluralize
from sdlora.ui.app_state import file_url
from sdlora.ui.evaluation_jobs import Evaluating
from sdlora.ui.page_html import note, progress_note

LONGEST = 400
"""Characters of a sentence from the file of an evaluation, which anyone may have written."""
PATIENCE_SECONDS = 1.0
"""Seconds left from which on they are shown."""


def estimate(
    found: EvaluationEstimate, scales: int, encoders: EncoderNames, missing: Sequence[str], compared: str = "checkpoint"
) -> str:
    """Return how many pictures an evaluation compares, about how long it takes, what judges, and what of that is
    ``missing``; ``compared`` is the word for what is compared.
    """
    count = f"{pluralize(len(found.checkpoints), compared)} at {pluralize(scales, 'scale')}, beside the base"
    time = (
        f"about {format_duration(found.seconds)} at the pace of this run's previews"
        if found.seconds is not None
        else "the time shows once the first ones are drawn"
    )
    said = f"{pluralize(found.images, 'picture')}: {count}; {time}. What an earlier evaluation has drawn is used again."
    return note([said, _judges(encoders, missing)])


def _judges(encoders: EncoderNames, missing: Sequence[str]) -> str:
    compares, reads = (one_line("the bundled CLIP" if name == POCKET else name, LONGEST) for name in encoders)
    said = f"Judged by {compares}" + (f", and with prompts by {reads}" if reads != compares else "")
    if not missing:
        return f"{said}."
    them = "both are" if len(missing) > 1 else "it is" if compares == reads else f"{one_line(missing[0], LONGEST)} is"
    return f"{said}; {them} not on this machine yet and will be downloaded first."


def progress(found: Evaluating | None) -> str:
    """Return how far an evaluation is, or why it ended without a result; empty after one that finished."""
    if found is None or found.state == "finished":
        return ""
    if found.state != "running":
        return note([found.message], "bad" if found.state == "failed" else "info")
    event = found.progress
    words = event.phase[:1].upper() + event.phase[1:]
    if not event.total:
        return progress_note(words, None)
    left = f" · {format_duration(found.left)} left" if found.left is not None and found.left > PATIENCE_SECONDS else ""
    return progress_note(f"{words}: {event.done} of {event.total}{left}", event.done / event.total)


def result(found: Evaluation, sheet: Path | None, outdated: Sequence[str], noun: str = "run") -> str:
    """Return what an evaluation proposes and why, what is wrong, the contact sheet, and the figures folded away;
    ``noun`` is the word for what was evaluated.
    """
    proposal = found.proposal
    sentence, *reasons = (one_line(reason, LONGEST) for reason in proposal.reasons or ("Nothing is proposed.",))
    why = "".join(f"<p>{escape(reason)}</p>" for reason in reasons)
    kind = "info" if proposal.chosen is None else "good"
    old = f"This evaluation is older than the {noun}: {'; '.join(outdated)}. Evaluate again." if outdated else ""
    alarms = "".join(
        f"<div class='note warn' role='status'><p><b>{escape(one_line(alarm.text, LONGEST))}</b></p>"
        f"<p>{escape(one_line(alarm.remedy, LONGEST))}</p></div>"
        for alarm in proposal.alarms
    )
    return (
        f"<div class='evaluation'>{note([old], 'bad')}"
        f"<div class='note {kind}' role='status'><h3>{escape(sentence)}</h3>{why}</div>{alarms}"
        f"{_sheet(sheet)}{_figures(found)}</div>"
    )


def candidate_name(candidate: Candidate) -> str:
    return f"step {candidate.step}, scale {candidate.scale:g}"


def _sheet(sheet: Path | None) -> str:
    """Return the contact sheet as a link to its file, or nothing if there is none."""
    try:
        source = escape(file_url(sheet), quote=True) if sheet is not None else ""
    except (SdloraError, OSError):  # Gone since it was listed.
        source = ""
    if not source:
        return ""
    label = "Contact sheet: a row for the base and for each checkpoint and scale, a column for each prompt"
    return (
        f"<div class='contact-sheet' tabindex='0' role='region' aria-label='Contact sheet'>"
        f"<a href='{source}' target='_blank' rel='noopener'><img src='{source}' alt='{label}'></a></div>"
        "<p class='quiet'>The first row is the base without the adapter. Click the sheet to see it whole.</p>"
    )


def _figures(found: Evaluation) -> str:
    """Return the table of figures, folded away, with what each means."""
    names = [name for name in MEASURES if any(name in each.figures for each in found.candidates)]
    head = "".join(f"<th scope='col'>{escape(MEASURES[name].title)}</th>" for name in names)
    rows = "".join(_row(found, number, names) for number in range(len(found.candidates)))
    meanings = "".join(
        f"<li><b>{escape(MEASURES[name].title)}</b> ({MEASURES[name].better} is better): "
        f"{escape(MEASURES[name].meaning)}</li>"
        for name in names
    )
    compared = (
        f"{pluralize(len(found.prompts.all), 'prompt')}, {pluralize(found.seeds, 'picture')} of each, on "
        f"{one_line(Path(found.base).name)}. Compared by {one_line(Path(found.encoder).name)}; "
        f"with prompts by {one_line(Path(found.clip).name)}."
    )
    prompts = "".join(f"<li>{escape(one_line(text, LONGEST))}</li>" for text in found.prompts.all)
    return (
        "<details><summary>Figures and prompts</summary>"
        "<p class='quiet'>Large: the share, of which the list below says what 0 and 1 mean. Small: the value, and the "
        "base's after the stroke.</p><div class='figures' tabindex='0' role='region' aria-label='Figures'><table>"
        f"<thead><tr><th scope='col'>Step, scale</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"<ul>{meanings}</ul><p class='quiet'>{escape(compared)}</p><ol>{prompts}</ol></details>"
    )


def _row(found: Evaluation, number: int, names: Sequence[str]) -> str:
    candidate, proposal = found.candidates[number], found.proposal
    mark = "taken" if number == proposal.chosen else "front" if number in proposal.front else ""
    said = {"taken": "proposed", "front": "as good in its way"}.get(mark, "")
    title = f"{candidate.step}, {candidate.scale:g}{f' <small>{said}</small>' if said else ''}"
    cells = "".join(f"<td>{_cell(candidate, name)}</td>" for name in names)
    return f"<tr class='{mark}'><th scope='row'>{title}</th>{cells}</tr>"


def _cell(candidate: Candidate, name: str) -> str:
    """Return a share, with its value and the base's: ``0.82<small>0.61 | 0.20</small>``."""
    share, values = format_figure(candidate, name)
    return f"{share}<small>{values}</small>" if values else share
