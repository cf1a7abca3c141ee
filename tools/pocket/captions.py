"""Captions of the images: varied phrasing of object, colour, place and style, some of it left out."""

import numpy as np

from sdlora.families.known_words import describe
from sdlora.families.known_words import with_article as article

STYLE_PHRASES = {
    "flat": ("a flat drawing of {}", "{}, flat drawing", "flat drawing, {}"),
    "cartoon": ("a cartoon of {}", "{}, cartoon", "cartoon, {}"),
    "watercolor": ("a watercolor painting of {}", "{}, watercolor", "watercolor, {}"),
    "clay": ("a clay model of {}", "{}, clay", "clay, {}"),
}
NO_STYLE = ("{}", "{}", "a picture of {}", "an image of {}", "there is {}")
FILLERS = (
    "nice", "high quality", "beautiful", "my favorite", "very good", "made today", "detailed", "simple", "for you",
    "best quality",
    "one of many", "seen from here", "in the middle", "fine art", "in a book",
)  # fmt: skip


def caption(thing: str, colour: str | None, place: str | None, style: str | None = None) -> str:
    """The plain caption, such as "a watercolor painting of a red house on grass"; None leaves a part out."""
    words = describe(thing, colour, place)
    return STYLE_PHRASES[style][0].format(words) if style else words


def _unknown_word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 6)))


def leave_out(rng: np.random.Generator, thing: str, colour: str, place: str, style: str) -> tuple:
    """Attributes that a caption mentions: None for the style in 30%, for colour or place in 7% each."""
    dropped = rng.random(3) < (0.07, 0.07, 0.3)
    return thing, *(None if gone else part for gone, part in zip(dropped, (colour, place, style), strict=True))


def phrase(rng: np.random.Generator, thing: str, colour: str | None, place: str | None, style: str | None) -> str:
    """One of many ways to say it; 12% carry words that mean nothing here (fillers, or letters that are no word), so
    that the model learns to pass over what it does not know.
    """
    core = " ".join(filter(None, (colour, thing)))
    where = place or ""
    if rng.random() < 0.25:
        where = where.replace("on ", "on the ", 1)
    orders = (
        f"{article(core)} {where}",
        f"{article(core)} {where}",
        f"{core}, {where}",
        f"{core} {where}",
        f"{where}, {article(core)}",
    )
    words = orders[rng.integers(len(orders))].strip(" ,")
    forms = STYLE_PHRASES[style] if style else NO_STYLE
    text = forms[0 if rng.random() < 0.5 else rng.integers(len(forms))].format(words)
    if rng.random() < 0.12:
        filler = (str(rng.choice(FILLERS)), _unknown_word(rng), f"{_unknown_word(rng)} style")[rng.integers(3)]
        text = f"{filler}, {text}" if rng.random() < 0.6 else f"{text}, {filler}"
    return text
