"""Words that a small base model has no meaning for, told before hours go into training on them.

Front ends may import this: no torch.
"""

from collections.abc import Sequence

from sdlora.data.captions import caption_readings
from sdlora.data.concepts import concept_label, trigger_words
from sdlora.data.dataset import Example
from sdlora.data.settings import Concept, Data
from sdlora.families.known_words import KnownWords

MOST_NAMED = 8
"""Unknown words that are named; the others are counted."""


def unknown_words(known: KnownWords, data: Data, examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Return the unknown words in the class's name and in captions, the most frequent first, and the examples of each.

    A word of the class concerns all examples.
    """
    texts = {example.path: caption_readings(example.caption, data) for example in examples}
    words = known.unknown([data.class_name, *(" ".join(readings) for readings in texts.values())], data.trigger)
    own = {example.path: {*known.unknown(texts[example.path], data.trigger)} for example in examples}
    of_class = known.unknown([data.class_name], data.trigger)
    by_word = {word: [example for example in examples if word in own[example.path]] for word in words}
    return {word: [*examples] for word in of_class} | {word: by_word[word] for word in words if word not in of_class}


def describe_words(known: KnownWords, words: Sequence[str]) -> str:
    """Return ``dog (nearest: cat), sofa``, with the first few words only."""
    parts = []
    for word in words[:MOST_NAMED]:
        near = known.nearest(word)
        parts.append(f"{word} (nearest: {' or '.join(near)})" if near else word)
    more = len(words) - MOST_NAMED
    return ", ".join(parts) + (f", and {more} more" if more > 0 else "")


def describe_found(known: KnownWords, words: Sequence[str]) -> str:
    """Return what the unknown ``words`` of a data set mean for a training, and what the base knows."""
    return (
        f"The base model has no meaning for: {describe_words(known, words)}. What such a word adds is learnt from "
        f"these pictures alone. It knows {known.summary()}."
    )


def prompt_notices(known: KnownWords | None, concepts: Sequence[Concept], prompts: Sequence[str]) -> list[str]:
    """Return a sentence on the unknown words of the preview ``prompts``, and of the class images' prompts in use.

    None of a base that does not list its words. ``concepts`` are those that ``run_concepts`` completes.
    """
    if known is None:
        return []
    classes = [concept.class_prompt for concept in concepts if concept.prior_weight]
    trigger = " ".join(trigger_words(concepts))
    unknown = {
        setting: known.unknown(texts, trigger)
        for setting, texts in {"sample.prompts": prompts, "prior.class_prompt": classes}.items()
    }
    return [
        f"{setting}: the base model has no meaning for {describe_words(known, words)}; its images will not show that."
        for setting, words in unknown.items()
        if words
    ]


def word_notices(known: KnownWords | None, concepts: Sequence[Concept], examples: Sequence[Example]) -> list[str]:
    """Return a sentence on the unknown words of each concept's class and captions, if there are any."""
    notices = []
    for index, concept in enumerate(concepts if known else ()):
        own = [example for example in examples if index in example.concepts]
        if known and (found := unknown_words(known, concept, own)):
            prefix = f"{concept_label(index, concept)}: " if len(concepts) > 1 else ""
            notices.append(f"{prefix}{describe_found(known, [*found])}")
    return notices
