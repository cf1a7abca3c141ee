"""Concepts of a run: one, described by the sections ``data`` and ``prior``, or several, each with its own settings.

Front ends may import this: no torch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

from sdlora.data.dataset import Example
from sdlora.data.folder_names import MAX_REPEATS
from sdlora.data.held_out import TrainingSet, load_training_set
from sdlora.data.settings import ClassImageSettings, Concept, Data, ImageSet
from sdlora.errors import ConfigError, DatasetError
from sdlora.formatting import pluralize

MOST_CONCEPTS = 64
MOST_PREVIEWS = 8
"""Preview prompts that a preset's become when several concepts take the place of its own."""
OWN = ("folder", "trigger", "class_name", "prompt", "preserve_untriggered", "validation_folder")
"""Settings of ``data`` that each concept has for itself: its words, and what cannot be without its trigger."""
OWN_PRIOR = ("folder", "class_prompt")
"""Settings of ``prior`` that each concept has for itself."""
RUN_WIDE = ("resolution", "buckets", "background", "caption_weights")
"""Settings of ``data`` that hold for the whole run: images of several concepts share a batch, and a text encoder."""
PriorSettings = TypeVar("PriorSettings", bound=ClassImageSettings)


def run_concepts(data: Data, prior: ClassImageSettings, concepts: Sequence[Concept] = ()) -> tuple[Concept, ...]:
    """Return the concepts of a run with all their settings: ``concepts``, or the one of the sections.

    What a concept does not set is as ``data`` and ``prior`` have it.
    """
    if not concepts:
        concepts = (Concept(**dict(data), class_prompt=prior.class_prompt, class_folder=prior.folder),)
    shared = {name: value for name, value in dict(data).items() if name not in OWN}
    shared |= {"prior_weight": prior.weight, "class_count": prior.count}
    return tuple(Concept(**(shared | _own_values(concept))) for concept in concepts)


def _own_values(concept: Concept) -> dict[str, object]:
    """Return the settings of ``concept`` that somebody set; None leaves it to the run."""
    own = concept.model_fields_set
    return {name: value for name, value in dict(concept).items() if name in own and value is not None}


def concept_prior(prior: PriorSettings, concept: Concept) -> PriorSettings:
    """Return ``prior`` with the class images of ``concept``, as ``run_concepts`` completes it."""
    own = {"class_prompt": concept.class_prompt, "folder": concept.class_folder, "weight": concept.prior_weight}
    return prior.model_copy(update={**own, "count": concept.class_count})


def preserves_classes(concepts: Sequence[Concept]) -> bool:
    """Return whether any of the ``concepts`` has class images."""
    return any(concept.prior_weight for concept in concepts)


def trigger_words(concepts: Sequence[Concept]) -> list[str]:
    """Return the trigger of each concept that has one."""
    return [concept.trigger for concept in concepts if concept.trigger]


def concept_label(index: int, concept: Concept) -> str:
    """Return how messages name a concept: its number, and its trigger if it has one."""
    return f"concept {index + 1}" + (f" ({concept.trigger})" if concept.trigger else "")


@contextmanager
def naming_concept(concepts: Sequence[Concept], index: int) -> Iterator[None]:
    """Name the concept in a message that would name a setting of ``data`` or ``prior``, if there are several."""
    try:
        yield
    except (ConfigError, DatasetError) as error:
        if len(concepts) == 1:
            raise
        text = str(error)
        for section, prefix in (("data.", ""), ("prior.folder", "class_folder"), ("prior.", "")):
            text = text.replace(section, prefix)
        raise type(error)(f"{concept_label(index, concepts[index])}: {text}") from None


def require_distinct(concepts: Sequence[Concept]) -> None:
    """Raise ValueError if two concepts have one trigger or share images, or if one has a setting of the whole run."""
    for index, concept in enumerate(concepts):
        if common := [name for name in RUN_WIDE if name in concept.model_fields_set]:
            label = concept_label(index, concept)
            raise ValueError(f"{label}: {common[0]} holds for the whole run; set data.{common[0]} instead")
    for (i, one), (j, other) in combinations(enumerate(concepts), 2):
        numbers, trigger = f"{i + 1} and {j + 1}", one.trigger.strip()
        if trigger and trigger.casefold() == other.trigger.strip().casefold():
            raise ValueError(f"concepts {numbers} have the same trigger, {trigger}; give each a word of its own")
        first, second = one.folder.resolve(), other.folder.resolve()
        if first.is_relative_to(second) or second.is_relative_to(first):
            inner = max(one.folder, other.folder, key=lambda folder: len(folder.resolve().parts))
            raise ValueError(f"the folders of concepts {numbers} share {inner}; give each a folder of its own")
    _require_foreign_class_images(concepts)


def _require_foreign_class_images(concepts: Sequence[Concept]) -> None:
    folders = {concept.folder.resolve(): index + 1 for index, concept in enumerate(concepts)}
    for index, concept in enumerate(concepts):
        number = folders.get(concept.class_folder.resolve()) if concept.class_folder else None
        if number:
            raise ValueError(
                f"{concept_label(index, concept)}: class_folder is the folder of concept {number}; "
                "give ordinary pictures of the class"
            )


def load_concepts(concepts: Sequence[Concept]) -> TrainingSet:
    """Read the examples of all ``concepts``, in their order. Each knows its concept, and how often it is seen.

    Raises one DatasetError for all concepts with unusable files or without images.
    """
    found, errors = [], []
    for index, concept in enumerate(concepts):
        try:
            with naming_concept(concepts, index):
                found.append(load_training_set(concept))
        except DatasetError as error:
            errors.append(str(error))
    if errors:
        raise DatasetError("\n".join(errors))
    examples = join_examples(concepts, [dataset.examples for dataset in found])
    held_out = tuple(
        replace(example, concepts=(index,), masks=concept.masks)
        for index, (concept, dataset) in enumerate(zip(concepts, found, strict=True))
        for example in dataset.held_out
    )
    notices = [notice for dataset in found for notice in dataset.notices]
    return TrainingSet(examples, (*notices, *balance_notices(concepts, examples)), held_out)


def join_examples(concepts: Sequence[Concept], found: Sequence[Sequence[Example]]) -> tuple[Example, ...]:
    """Join the examples ``found`` for each concept: each knows its concept, and how often an epoch has it."""
    factors = _repeat_factors(concepts, found)
    return tuple(
        replace(
            example, concepts=(index,), masks=concept.masks, repeats=concept.repeats or example.repeats * factors[index]
        )
        for index, (concept, own) in enumerate(zip(concepts, found, strict=True))
        for example in own
    )


def _repeat_factors(concepts: Sequence[Concept], examples: Sequence[Sequence[Example]]) -> list[int]:
    """Return how often each concept repeats its images beside what its settings or its folders' names say."""
    counts = [
        sum(concept.repeats or example.repeats for example in own)
        for concept, own in zip(concepts, examples, strict=True)
    ]
    free = [
        concept.repeats is None and all(example.repeats == 1 for example in own)
        for concept, own in zip(concepts, examples, strict=True)
    ]
    return balanced_repeats(counts, free)


def balanced_repeats(counts: Sequence[int], free: Sequence[bool]) -> list[int]:
    """Return the repeats by which each ``free`` concept comes nearest to the largest of ``counts``; 1 for the others.

    A free concept then has between two thirds and four thirds of the images of the largest in an epoch, unless that
    takes more than ``MAX_REPEATS``.
    """
    largest = max(counts)
    return [
        min(MAX_REPEATS, (2 * largest + count) // (2 * count)) if own else 1
        for count, own in zip(counts, free, strict=True)
    ]


@dataclass(frozen=True)
class ConceptShare:
    """Share of an epoch that a concept has."""

    label: str
    images: int
    seen: int
    """Number of its images in an epoch, counting repeats."""
    share: float

    def described(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"label": self.label, "images": self.images, "seen": self.seen, "share": self.share}


def concept_shares(concepts: Sequence[Concept], examples: Sequence[Example]) -> list[ConceptShare]:
    """Return the share of each concept in an epoch."""
    total = sum(example.repeats for example in examples)
    shares = []
    for index, concept in enumerate(concepts):
        own = [example for example in examples if index in example.concepts]
        seen = sum(example.repeats for example in own)
        label = concept.trigger or concept.folder.name
        shares.append(ConceptShare(label, len(own), seen, seen / total if total else 0.0))
    return shares


def balance_notices(concepts: Sequence[Concept], examples: Sequence[Example]) -> list[str]:
    """Say what several concepts have of an epoch; nothing for one."""
    if len(concepts) == 1:
        return []
    parts = [
        f"{one.label}: {pluralize(one.images, 'picture')}, {one.seen} times seen ({one.share:.0%})"
        for one in concept_shares(concepts, examples)
    ]
    return [f"An epoch has {len(concepts)} concepts. {'; '.join(parts)}."]


def image_sets(concepts: Sequence[Concept], examples: Sequence[Example]) -> list[ImageSet]:
    """Return the kind of each concept, the number of its images, and how many of them an epoch has."""
    shares = concept_shares(concepts, examples)
    return [ImageSet(concept.kind, one.images, one.seen) for concept, one in zip(concepts, shares, strict=True)]


def class_groups(concepts: Sequence[Concept]) -> list[tuple[int, ...]]:
    """Group the concepts that have class images by their class: those of one group share them."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, concept in enumerate(concepts):
        if concept.prior_weight:
            name = concept.class_name.strip().casefold()
            nameless = "" if name or concept.class_prompt or concept.class_folder else index
            key = (name, concept.class_prompt, concept.class_folder, concept.class_count, nameless)
            groups.setdefault(key, []).append(index)
    return [tuple(members) for members in groups.values()]


def reworded_prompts(
    prompts: Sequence[str], words: Mapping[str, object], concepts: Sequence[Mapping[str, object]]
) -> list[str]:
    """Return ``prompts`` that name the trigger and the class in ``words`` with those of each concept instead.

    Each comes once for each concept, of which it says something; ``MOST_PREVIEWS`` at most.
    """
    names = ("trigger", "class_name")
    found = [
        replace_words(prompt, {str(words.get(name) or ""): str(concept.get(name) or "") for name in names})
        for concept in concepts
        for prompt in prompts
    ]
    return [*dict.fromkeys(found)][:MOST_PREVIEWS]


def replace_words(text: str, words: Mapping[str, str]) -> str:
    """Replace words of ``text`` in one pass; those without a replacement stay."""
    replaced = [re.escape(old) for old, new in words.items() if old and new]
    return re.sub("|".join(replaced), lambda match: words[match.group()], text) if replaced else text
