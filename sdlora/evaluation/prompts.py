"""Prompts that an evaluation proposes: the captions' parts in new combinations, with the trigger and without it. No
torch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sdlora.data.captions import with_trigger, without_trigger
from sdlora.families.known_words import KnownWords, describe, with_article

TRIGGERED, OF_CLASS, UNRELATED, CAPTIONS = 3, 2, 2, 4
"""Number of proposed prompts of each kind."""
LONGEST_TRIED = 50
"""Captions beyond which no further ones are taken apart."""
PLACE = re.compile(r"\s(?=(?:on|in|at|under|near|behind|before|beside|with|among|over) )", re.IGNORECASE)
"""Gap before the words that name a place, or what is beside."""
CONTEXTS = (
    "on a beach", "in the snow", "in front of a brick wall", "on a wooden table", "in a forest", "in a city street",
)  # fmt: skip
"""Contexts of a base whose words are unknown."""
SCENES = (
    "a lighthouse at the sea", "a bowl of fruit on a table", "a mountain lake", "an old bicycle in front of a house",
)  # fmt: skip
"""Scenes of a base whose words are unknown."""


@dataclass(frozen=True)
class EvaluationPrompts:
    """Prompts of each kind, all different."""

    triggered: tuple[str, ...]
    """Prompts with the trigger."""
    of_class: tuple[str, ...] = ()
    """The same without the trigger; empty for an adapter without a trigger."""
    unrelated: tuple[str, ...] = ()
    """Other things."""
    captions: tuple[str, ...] = ()
    """Captions of training images, by which those that were memorised are asked for."""

    @property
    def all(self) -> tuple[str, ...]:
        """Prompts that every candidate is asked for."""
        return (*self.triggered, *self.of_class, *self.unrelated)


def propose_prompts(
    captions: Sequence[str],
    trigger: str = "",
    class_name: str = "",
    previews: Sequence[str] = (),
    repeats: Sequence[int] = (),
    known: KnownWords | None = None,
) -> EvaluationPrompts:
    """Propose prompts that no training image shows, for images of these ``captions``.

    Previews of the run that have the trigger come first: somebody wrote what the adapter is for. Then follow captions
    that are recombined, then contexts that no caption names: of the words that the base knows, else of a short list.
    Only if nothing is new, captions themselves are taken. ``repeats`` tells how often an epoch has each image: those
    that are seen most are the first to be memorised.
    """
    trained = {_bare(caption, trigger) for caption in captions}
    asked = [text for text in previews if not trigger or without_trigger(text, trigger) != text]
    new = (text for text in _new_scenes(captions, trigger, class_name, known) if _bare(text, trigger) not in trained)
    captioned = (caption.split("\n")[0] for caption in captions)
    found = (*asked, *(_with_subject(text, trigger, class_name) for text in new), *captioned, trigger)
    triggered = tuple(islice(dict.fromkeys(filter(None, found)), TRIGGERED))
    bare = dict.fromkeys(without_trigger(text, trigger) for text in triggered) if trigger else ()
    of_class = tuple(islice((text for text in bare if text), OF_CLASS))
    used = " ".join((*trained, *triggered, class_name)).casefold()
    unrelated = (text for text in _unrelated_scenes(used, known) if text not in triggered)
    return EvaluationPrompts(triggered, of_class, tuple(islice(unrelated, UNRELATED)), _most_seen(captions, repeats))


def complete_prompts(proposed: EvaluationPrompts, edited: EvaluationPrompts, trigger: str) -> EvaluationPrompts:
    """Return the ``edited`` prompts, each kind that has none as ``proposed``; class prompts follow edited ones."""
    of_class = edited.of_class or proposed.of_class
    if edited.triggered and not edited.of_class and trigger:
        of_class = tuple(filter(None, dict.fromkeys(without_trigger(text, trigger) for text in edited.triggered)))
    return EvaluationPrompts(
        tuple(dict.fromkeys(edited.triggered)) or proposed.triggered,
        tuple(dict.fromkeys(of_class)),
        tuple(dict.fromkeys(edited.unrelated)) or proposed.unrelated,
        proposed.captions,
    )


def _most_seen(captions: Sequence[str], repeats: Sequence[int]) -> tuple[str, ...]:
    """Return the captions that are trained most often, each once."""
    seen: Counter[str] = Counter()
    for number, caption in enumerate(captions):
        seen[caption.split("\n")[0]] += repeats[number] if repeats else 1
    return tuple(caption for caption, _ in seen.most_common() if caption)[:CAPTIONS]


def _bare(caption: str, trigger: str) -> str:
    """Return a caption without its trigger, as captions are compared."""
    return " ".join(without_trigger(caption, trigger).casefold().split())


def _with_subject(text: str, trigger: str, class_name: str) -> str:
    """Return ``text`` with the trigger before the class, where that stands in it as a word."""
    named = re.compile(rf"(?<!\w){re.escape(class_name)}(?!\w)", re.IGNORECASE)
    placed = named.sub(lambda found: f"{trigger} {found[0]}", text, count=1) if trigger and class_name else text
    return with_trigger(placed, trigger)


def _new_scenes(captions: Sequence[str], trigger: str, class_name: str, known: KnownWords | None) -> Iterator[str]:
    """Yield descriptions without the trigger, the most telling first; some are captions."""
    bare = [without_trigger(caption.split("\n")[0], trigger) for caption in captions[:LONGEST_TRIED]]
    parts = [PLACE.split(text, maxsplit=1) for text in bare if text]
    heads = list(dict.fromkeys(head for head, *_ in parts))
    tails = list(dict.fromkeys(tail for _, *tails in parts for tail in tails))
    said = " ".join(bare).casefold()
    places = tuple(place for place in known.subjects.get("places", ()) if place not in said) if known else CONTEXTS
    if class_name:
        yield from _scenes_of_class(with_article(class_name), places, tails, known)
        return
    if tails:  # The next head but one with each tail: neighbours often show similar things.
        yield from (f"{heads[(number + 2) % len(heads)]} {tail}" for number, tail in enumerate(tails))
    yield from (f"{head}{',' * (',' in head)} {place}" for head, place in zip(heads, places, strict=False))
    yield from _unrelated_scenes(said, known)


def _scenes_of_class(
    thing: str, places: Sequence[str], tails: Sequence[str], known: KnownWords | None
) -> Iterator[str]:
    """Yield descriptions of ``thing`` in new places, then in another style at the places of the captions."""
    yield from (f"{thing} {place}" for place in places)
    styles = known.style_phrases if known else ()
    yield from (style.format(f"{thing} {tail}") for style, tail in zip(styles, tails, strict=False))


def _unrelated_scenes(said: str, known: KnownWords | None) -> Iterator[str]:
    """Yield descriptions of things that the text ``said`` does not name."""
    if known is None:
        yield from (scene for scene in SCENES if not set(scene.split()[1:2]) & set(said.split()))
        return
    lists = (known.subjects.get(name, ()) for name in ("objects", "colours", "places"))
    objects, colours, places = (list(_unsaid_first(words, said)) for words in lists)
    for number, thing in enumerate(objects):
        colour, place = (words[number % len(words)] if words else None for words in (colours, places))
        yield describe(thing, colour, place)


def _unsaid_first(words: Iterable[str], said: str) -> list[str]:
    return sorted(words, key=lambda word: word in said)
