"""Show one caption as the text encoder reads it: words around it, what may be left out, its tokens and chunks."""

from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path

from sdlora.api.captions import ROOM, ReadCaption, read_captions
from sdlora.data.caption_parts import CaptionPart, caption_parts
from sdlora.data.captions import caption_readings, tidy_lines
from sdlora.data.projects import Project
from sdlora.data.settings import Data
from sdlora.data.wildcards import count_readings
from sdlora.errors import SdloraError
from sdlora.formatting import pluralize

HINT = "<p class='quiet'>Choose a caption: here stands what the model reads of it.</p>"
MANY = 10**9
"""Readings from which their number is not told."""
ADDED, LOOSE = "put there by the settings", "may be shuffled or left out"


def reading_html(project: Project, image: Path, text: str, data: Data, base: str) -> str:
    """Return what ``base`` reads of ``image`` with the caption ``text``, in training with ``data``."""
    own = tidy_lines(text)
    caption = project.training_caption(image, own, data)
    readings = caption_readings(caption, data)
    try:
        read = read_captions(readings, base, data.caption_weights)
        problem = "" if read else "Its tokens are not known: the base model's tokenizer is not on this machine yet."
    except SdloraError as error:
        read, problem = None, f"Its tokens are not known: {error}."
    written = own.split("\n") if data.wildcards else [" ".join(own.split())]
    lines = zip_longest(caption.split("\n"), written, fillvalue="")
    marked = "".join(f"<p class='text'>{_marked(caption_parts(line, mine, data))}</p>" for line, mine in lines)
    body = marked + _legend(caption, own, data) + _readings(readings, read, caption)
    body += f"<p class='quiet'>{escape(problem)}</p>" if problem else ""
    return f"<section class='reading'><h4>What the model reads of {escape(image.name)}</h4>{body}</section>"


def _marked(parts: Sequence[CaptionPart]) -> str:
    """Return a line with what was added in italics and what may be left out underlined."""
    pieces = []
    for part in parts:
        piece = escape(part.text)
        piece = f"<u title='{LOOSE}'>{piece}</u>" if part.loose else piece
        pieces.append(f"<i title='{ADDED}'>{piece}</i>" if part.added else piece)
    return "".join(pieces) or "<span class='quiet'>nothing: the caption is empty</span>"


def _legend(caption: str, own: str, data: Data) -> str:
    """Explain the marks, and what happens at a step."""
    facts = []
    if caption != own:
        facts.append(f"<i>Italic</i>: {ADDED}.")
    if data.shuffle_captions or data.tag_dropout:
        chance = f", left out in {data.tag_dropout:.0%} of the steps" if data.tag_dropout else ""
        shuffled = "shuffled" if data.shuffle_captions else "kept in order"
        facts.append(f"<u>Underlined</u>: {shuffled}{chance}; {pluralize(data.keep_tokens, 'part')} in front kept.")
    if data.caption_dropout:
        facts.append(f"In {data.caption_dropout:.0%} of the steps nothing at all is read.")
    return f"<p class='quiet'>{' '.join(facts)}</p>" if facts else ""


def _readings(readings: Sequence[str], read: Sequence[ReadCaption] | None, caption: str) -> str:
    """Return the tokens of one reading, or a list of all that wildcards may draw."""
    if len(readings) == 1:
        return _tokens(read[0]) if read else ""
    number = count_readings(caption)
    tokens = [f" <span class='quiet'>{pluralize(one.tokens, 'token')}</span>" for one in read or ()]
    pairs = zip_longest(readings, tokens, fillvalue="")
    items = "".join(f"<li>{escape(text)}{counted}</li>" for text, counted in pairs)
    several = f"{number:,}" if number < MANY else "many"
    some = "" if len(readings) == number else " Some of them:"
    return f"<p class='quiet'>One of {several} is drawn at each step.{some}</p><ol>{items}</ol>"


def _tokens(read: ReadCaption) -> str:
    """Return the number of tokens, and the chunks where there are several."""
    counted = pluralize(read.tokens, "token")
    if len(read.chunks) == 1:
        spelled = f": <code>{escape(read.chunks[0])}</code>" if read.chunks[0] else ""
        return f"<p class='quiet'>{counted} of {ROOM}{spelled}</p>"
    items = "".join(f"<li><code>{escape(chunk)}</code></li>" for chunk in read.chunks)
    return f"<p class='quiet'>{counted}, read in {len(read.chunks)} chunks of up to {ROOM}:</p><ol>{items}</ol>"
