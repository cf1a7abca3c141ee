"""What the doctor found, as a calm list, and as marks on the cards of the pictures that it concerns."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sdlora.data.doctor import Finding, Severity
from sdlora.filesystem.paths import safe_name

TITLES: dict[Severity, str] = {"must": "To mend first", "could": "Could be better", "fine": "Taken care of"}
LINKED = 8
"""Cards that a finding links to; the others are marked all the same."""
ALL_WELL = "Nothing to mend: these pictures can be trained on."


def card_id(picture: Path) -> str:
    """The element that shows ``picture``; a name that needs no escaping."""
    return f"card-{safe_name(picture.name, fallback='picture')}"


def listed(findings: Sequence[Finding], pictures: int) -> str:
    """The findings under what they mean for a person; nothing while there is nothing to judge."""
    if not pictures:
        return ""
    if not findings:
        return f"<div class='findings'><p class='quiet'>{ALL_WELL}</p></div>"
    body = ""
    for severity, title in TITLES.items():
        items = "".join(f"<li>{_sentence(finding)}</li>" for finding in findings if finding.severity == severity)
        body += f"<section class='{severity}'><h4>{title}</h4><ul>{items}</ul></section>" if items else ""
    return f"<style>{_marks(findings)}</style><div class='findings'>{body}</div>"


def _sentence(finding: Finding) -> str:
    links = "".join(
        f"<a href='#{escape(card_id(picture), quote=True)}'>{escape(picture.stem)}</a>"
        for picture in finding.images[:LINKED]
    )
    return escape(finding.text) + (f" <span class='to-cards'>{links}</span>" if links else "")


def _marks(findings: Sequence[Finding]) -> str:
    """A word on each card that a finding concerns: rules of style, so that no card is drawn anew for them."""
    words: dict[str, list[str]] = {}
    for finding in findings:
        for picture in finding.images if finding.label else ():
            words.setdefault(card_id(picture), []).append(finding.label)
    return "".join(
        f'[id="{escape(card, quote=True)}"]::before{{content:"{escape(" · ".join(dict.fromkeys(said)))}"}}'
        for card, said in words.items()
    )
