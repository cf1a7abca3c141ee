"""The text of new captions: what is left out, how long they are, and how they join those that are there."""

import re

from sdlora.captioning.settings import CaptionSettings
from sdlora.data.captions import followed, with_trigger, without_trigger


def cut_sentence(text: str, settings: CaptionSettings) -> str:
    """Return a sentence on one line, without the words of the blacklist, of at most ``max_words`` words."""
    for word in settings.blacklist:
        text = without_trigger(text, word.strip())
    words = text.split()
    if len(words) <= settings.max_words:
        return " ".join(words)
    return " ".join(words[: settings.max_words]).rstrip(",;:")


def cut_tags(tags: list[str], settings: CaptionSettings) -> list[str]:
    """Return the first tags that have at most ``max_words`` words together, without those of the blacklist."""
    refused = {_plain(word) for word in settings.blacklist}
    kept, words = [], 0
    for tag in tags:
        words += len(tag.split())
        if _plain(tag) not in refused and words <= settings.max_words:
            kept.append(tag)
    return kept


def new_caption(own: str, written: str, settings: CaptionSettings) -> str:
    """Return an image's caption, given its ``own`` so far and what a model has ``written`` ("" changes nothing)."""
    if not written or (own and settings.mode == "empty"):
        return own
    written = followed(settings.prefix, written)
    if own and settings.mode == "append":
        parts = {_plain(part) for part in own.split(",")}
        added = [part.strip() for part in written.split(",") if _plain(part) not in parts]
        written = ", ".join([own, *added])
    return with_trigger(written, settings.trigger.strip())


def _plain(text: str) -> str:
    return re.sub(r"[\s_]+", " ", text).strip().lower()
