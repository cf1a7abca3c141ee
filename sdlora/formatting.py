"""Text for people: sizes, durations, counts, near names, and strangers' text made safe to print."""

from collections.abc import Iterable
from difflib import get_close_matches

KIB, MIB, GIB = 2**10, 2**20, 2**30
LONGEST_DURATION = 1e9
"""Seconds; from here on a duration counts as unknown."""
LONGEST_LINE, LINE_START = 600, 400
"""Characters of a line of a message, and of its beginning where it is longer: its end has the remedy."""


def format_bytes(size: float) -> str:
    """Return a size of memory or disk in binary units, in three digits: ``512 B``, ``36.2 MiB``, ``7.13 GiB``."""
    if size < 1000:
        return f"{size:.0f} B"
    unit, divisor = ("KiB", KIB) if size < 1000 * KIB else ("MiB", MIB) if size < 1000 * MIB else ("GiB", GIB)
    number = size / divisor
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"


def format_duration(seconds: float) -> str:
    """Return ``45 s``, ``3:05 min`` or ``1:02 h``; a dash for negative, infinite or undefined ``seconds``."""
    if not 0 <= seconds < LONGEST_DURATION:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def pluralize(number: int, noun: str) -> str:
    """Return ``1 file`` or ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def did_you_mean(name: str, choices: Iterable[str], otherwise: str = "", *, most: int = 1, cutoff: float = 0.6) -> str:
    """Return ``did you mean rank?`` with the ``choices`` nearest to ``name``, ``otherwise`` if none is near.

    Case is ignored. At most ``most`` choices are named, the nearest first; ``cutoff`` is the least similarity, 0 to 1.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=most, cutoff=cutoff)]
    return f"did you mean {', '.join(near[:-1])}{' or ' if near[1:] else ''}{near[-1]}?" if near else otherwise


def one_line(text: object, most: int = 120) -> str:
    """Return untrusted text as one line without control or bidirectional marks, cut to ``most`` characters."""
    words = str(text)
    line = "".join(letter if letter.isprintable() else " " for letter in words[:most])
    return line if len(words) <= most else f"{line[:-1]}…"


def printable_line(text: str) -> str:
    """Return one line of a message without control or bidirectional marks; the middle of a long one is left out."""
    if len(text) > LONGEST_LINE:
        text = f"{text[:LINE_START]} … {text[LINE_START + 3 - LONGEST_LINE :]}"
    return text if text.isprintable() else one_line(text, LONGEST_LINE)


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, 300 characters at most, or the name of its class."""
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0], 300)
