"""Captions: read from a file or derived from settings, then varied from step to step."""

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sdlora.data.settings import Data
from sdlora.data.wildcards import draw_reading, list_readings
from sdlora.errors import DatasetError, SdloraError
from sdlora.filesystem.paths import composed
from sdlora.filesystem.reading import parse_json, read_text
from sdlora.formatting import format_bytes
from sdlora.seeds import order, uniform

MAX_BYTES = 10_240
LISTED = "metadata.jsonl"
"""Name of a file that lists captions."""
LISTED_AS = ("text", "caption", "prompt")
"""Fields of its captions, the first that an entry has."""
MAX_LISTED_BYTES = 16 << 20
COMMA, OUTSIDE_BRACKETS = re.compile(","), re.compile(r",(?![^()\[\]]*[)\]])")
"""Commas that part tags; of weighted captions, those that no bracket follows which was opened before them."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_caption(path: Path) -> str:
    """Return the lines of a caption file's text that are not empty, without byte-order mark and NUL.

    Raises DatasetError with the reason alone if it is longer than 10 kB or not UTF-8; the caller names the file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise DatasetError(f"is longer than {format_bytes(MAX_BYTES)}; captions are a sentence or two")
    if content.startswith(_UTF16) or content.count(0) * 3 > len(content):
        raise DatasetError("is UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError("is not UTF-8 (Latin-1, perhaps); save it as UTF-8") from None
    return tidy_lines(text)


def tidy_lines(text: str) -> str:
    """Return the lines of ``text`` that are not empty, with single spaces and without NUL."""
    return "\n".join(" ".join(line.split()) for line in text.replace("\0", "").splitlines() if line.strip())


class ListedCaptions(NamedTuple):
    """Captions by the names of their images, and the number of entries that have none."""

    captions: dict[str, str]
    without_text: int


def read_listed_captions(path: Path) -> ListedCaptions:
    """Read the captions in a ``metadata.jsonl``, as Hugging Face's image folders have it.

    Each line is an object with ``file_name``, a path below the file's folder, and ``text`` (``caption``, ``prompt``).
    Raises DatasetError with the reason alone.
    """
    try:
        lines = read_text(path, MAX_LISTED_BYTES).removeprefix("\ufeff").split("\n")
    except SdloraError as error:
        raise DatasetError(str(error).removeprefix(f"{path}: ")) from None
    found, without = {}, 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            name = entry.get("file_name")
            text = next((entry[key] for key in LISTED_AS if isinstance(entry.get(key), str)), None)
        except (ValueError, AttributeError):
            remedy = "write it so, or remove the file"
            raise DatasetError(f'line {number} is no {{"file_name": "a.png", "text": "..."}}; {remedy}') from None
        if text is None or not isinstance(name, str):
            without += 1
            continue
        if len(text.encode("utf-8", "replace")) > MAX_BYTES:
            raise DatasetError(f"line {number} has a caption of more than {format_bytes(MAX_BYTES)}")
        found[composed(PurePosixPath(name).as_posix())] = tidy_lines(text)
    return ListedCaptions(found, without)


def caption_for(own: str, data: Data, folder_name: str) -> str:
    """Choose an image's caption: its own, the prompt, trigger and class, or the folder's. Put prefix and suffix around
    it, and the trigger before that.

    It is one line. With ``data.wildcards``, it has those of the text, of which ``augment_caption`` draws one.
    """
    by_class = f"{data.trigger} {data.class_name}" if data.class_name else ""
    caption = own or data.prompt or by_class or folder_name
    lines = tidy_lines(caption).split("\n") if data.wildcards else [caption]
    return "\n".join(_in_frame(line, data) for line in lines)


def _in_frame(text: str, data: Data) -> str:
    framed = followed(followed(data.caption_prefix, text), data.caption_suffix, strip=True)
    return with_trigger(framed, data.trigger.strip())


def followed(first: str, second: str, strip: bool = False) -> str:
    """Return ``second`` behind ``first`` in one line, without a space before a comma.

    ``strip`` takes the comma from the beginning of a second text that follows nothing.
    """
    first, second = " ".join(first.split()), " ".join(second.split())
    if not first:
        return second.lstrip(",.; ") if strip else second
    return f"{first}{second}" if second[:1] in (",", ".", ";") else f"{first} {second}".strip()


def with_trigger(caption: str, trigger: str) -> str:
    """Return ``trigger, caption``, or the caption if it contains the trigger as a word (in any case: CLIP ignores
    case).
    """
    if not trigger or _as_word(trigger).search(caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def without_trigger(caption: str, trigger: str) -> str:
    """Remove the trigger where it stands as a word: `a sks dog, sitting` becomes `a dog, sitting`."""
    rest = _as_word(trigger).sub(" ", caption) if trigger else caption
    return ", ".join(" ".join(part.split()) for part in rest.split(",") if part.strip())


def _as_word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)


def preserved_caption(caption: str, data: Data, *parts: int | str) -> str | None:
    """Return the caption of an example whose target is the base's own prediction: none, or one without the trigger.

    None for the others, and where the trigger is all that a caption says: nearly the same words would have two targets.
    ``parts`` (seed, epoch, index) decide which.
    """
    share = data.preserve_empty + data.preserve_untriggered
    if not share or not (rest := without_trigger(caption, data.trigger)):
        return None
    drawn = uniform(*parts, "preserve")
    if drawn >= share:
        return None
    return "" if drawn < data.preserve_empty else rest


def caption_readings(caption: str, data: Data) -> list[str]:
    """Return the texts that ``caption`` can be at a step before it is shuffled or dropped from, some if there are many.

    Without ``data.wildcards`` that is the caption alone.
    """
    if not data.wildcards:
        return [caption]
    trigger = data.trigger.strip()
    return list(dict.fromkeys(with_trigger(reading, trigger) for reading in list_readings(caption)))


def augment_caption(caption: str, data: Data, *parts: int | str) -> str:
    """Vary a caption for one example, as ``data`` says: draw one of its readings (``wildcards``), leave it out, or some
    of its comma-parts, or shuffle those.

    The first ``keep_tokens`` comma-parts stay where they are. ``parts`` (seed, epoch, index) decide all of it.
    """
    if uniform(*parts, "dropout") < data.caption_dropout:
        return ""
    if data.wildcards:  # An option may lack the trigger that another one has.
        caption = with_trigger(draw_reading(caption, *parts), data.trigger.strip())
    if not (data.shuffle_captions or data.tag_dropout):
        return caption
    tags = [part.strip() for part in (OUTSIDE_BRACKETS if data.caption_weights else COMMA).split(caption)]
    kept, rest = tags[: data.keep_tokens], tags[data.keep_tokens :]
    if data.tag_dropout:
        rest = [tag for number, tag in enumerate(rest) if uniform(*parts, "tag", number) >= data.tag_dropout]
    if data.shuffle_captions:
        rest = [rest[i] for i in order(len(rest), *parts, "shuffle")]
    return ", ".join([*kept, *rest])
