"""Checks of a data set's captions: missing ones, triggers, wildcards, and words that the base model cannot know.

Front ends may import this: no torch.
"""

from collections import Counter

from sdlora.data.captions import with_trigger
from sdlora.data.dataset import MIN_IMAGES
from sdlora.data.findings import DatasetUnderCheck, Finding, paths_of, summarize
from sdlora.data.unknown_words import describe_found, unknown_words
from sdlora.data.wildcards import count_readings, unread_syntax

MOST_QUOTED = 4
"""Pieces of captions that are quoted; more are not."""


def check_captions(dataset: DatasetUnderCheck) -> list[Finding]:
    """Find captions that are missing, that lack the trigger, or that are all the same."""
    trigger, named = dataset.data.trigger.strip(), [example for example in dataset.examples if example.own_caption]
    empty = [example for example in dataset.examples if not example.own_caption]
    uncaptioned = [example for example in empty if not example.caption]
    found = []
    if uncaptioned:
        remedy = "give a trigger word, or write captions"
        text = f"No caption: {summarize(uncaptioned)}. No word in a prompt would call what is learnt: {remedy}."
        found.append(Finding("must", "no caption", text, paths_of(uncaptioned)))
    elif empty and named:
        text = (
            f"Without a caption of their own: {summarize(empty)}; training uses “{empty[0].caption}”. "
            "Describe what they show, as for the others."
        )
        found.append(Finding("could", "no caption", text, paths_of(empty)))
    elif len(empty) >= MIN_IMAGES:
        text = (
            f"No picture has a caption; training uses “{empty[0].caption}” for each. That works; "
            "a few words on what each shows let prompts steer more."
        )
        found.append(Finding("could", "", text))
    without = [example for example in named if with_trigger(example.own_caption, trigger) != example.own_caption]
    if without:
        text = (
            f"Captions without the trigger “{trigger}”: {summarize(without)}. Training puts it in front; "
            "add it yourself to choose the place."
        )
        found.append(Finding("could", "no trigger", text, paths_of(without)))
    texts = Counter(example.own_caption.lower() for example in named)
    if (
        len(dataset.examples) >= MIN_IMAGES
        and len(texts) == 1
        and len(named) == len(dataset.examples)
        and not _is_name(dataset)
    ):
        caption = " ".join(named[0].own_caption.split())
        text = f"All captions are the same: “{caption}”. Describe what differs, so that prompts can ask for it."
        found.append(Finding("could", "", text))
    return found


def check_words(dataset: DatasetUnderCheck) -> list[Finding]:
    """Find the words that the base model has no meaning for, if it lists those that it knows."""
    known = dataset.known
    found = unknown_words(known, dataset.data, dataset.examples) if known else {}
    if known is None or not found:
        return []
    images = [example for example in dataset.examples if any(example in examples for examples in found.values())]
    return [Finding("could", "unknown words", describe_found(known, [*found]), paths_of(images))]


def check_wildcards(dataset: DatasetUnderCheck) -> list[Finding]:
    """Find captions with choices or several lines that nothing would draw from, and choices that cannot be read."""
    examples = dataset.examples
    if dataset.data.wildcards:
        odd = {example.path: unread_syntax(example.caption) for example in examples}
        strange = list(dict.fromkeys(text for found in odd.values() for text in found))
        if not strange:
            return []
        named = [example for example in examples if odd[example.path]]
        text = (
            f"Read as it stands: {' '.join(strange[:MOST_QUOTED])} in the captions of {summarize(named)}. "
            "Close each brace, and write the options out as {red|blue}."
        )
        return [Finding("could", "wildcards", text, paths_of(named))]
    several = [example for example in examples if max(map(count_readings, (example.own_caption, example.caption))) > 1]
    if not several:
        return []
    text = (
        f"Several lines, or choices such as {{red|blue}}: {summarize(several)}. They are read as one text with its "
        "braces; turn data.wildcards on to draw one of them at each step."
    )
    return [Finding("could", "wildcards", text, paths_of(several))]


def _is_name(dataset: DatasetUnderCheck) -> bool:
    """Return whether the one caption of all is no more than trigger and class, a common caption for subjects."""
    words = f"{dataset.data.trigger} {dataset.data.class_name}".lower().split()
    caption = dataset.examples[0].own_caption.lower().replace(",", " ")
    return {*caption.split()} <= {*words, "a", "an", "the", "photo", "of"}
