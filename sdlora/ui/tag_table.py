"""How often each tag or word occurs in a project's captions, as a table with bars."""

from collections.abc import Sequence
from html import escape

from sdlora.data.dataset import Example
from sdlora.data.settings import Data
from sdlora.data.tags import count_tags, usual_unit
from sdlora.formatting import one_line

MOST_ROWS, LONGEST_TAG = 60, 80


def tag_table(examples: Sequence[Example], data: Data) -> str:
    """Return the most frequent tags of the ``examples``, or words if the captions are sentences; "" without any."""
    unit = usual_unit(examples, data)
    counts = count_tags(examples, data, unit)
    if not counts:
        return ""
    rows = "".join(_row(tag, number, len(examples)) for tag, number in counts[:MOST_ROWS])
    more = len(counts) - MOST_ROWS
    rest = f"<p class='quiet'>{more} more occur less often.</p>" if more > 0 else ""
    head = f"<tr><th scope='col'>{unit[:-1].capitalize()}</th><th scope='col'>Pictures</th></tr>"
    table = f"<table class='tags'><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f"<div class='tag-list' tabindex='0' role='region' aria-label='Tags'>{table}{rest}</div>"


def _row(tag: str, number: int, images: int) -> str:
    share = round(100 * number / images)
    bar = f"<i style='width:{share}%'></i>"
    return f"<tr><th scope='row'>{escape(one_line(tag, LONGEST_TAG))}</th><td>{bar}<span>{number}</span></td></tr>"
