"""Class images for prior preservation: the user's own, and generated ones that later runs reuse.

Front ends may import this: no torch. The trainer passes the function that generates them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sdlora import failpoints
from sdlora.data.captions import caption_readings, without_trigger
from sdlora.data.concepts import class_groups, concept_prior, naming_concept
from sdlora.data.dataset import Example, load_dataset
from sdlora.data.doctor import exact_copies
from sdlora.data.images import inspect_image
from sdlora.data.settings import ClassImageSettings, Concept, Data
from sdlora.errors import ConfigError, DatasetError
from sdlora.events import OnProgress, unwatched
from sdlora.filesystem.paths import existing_path
from sdlora.filesystem.writing import write_atomic

RECORD = "made_by.json"


class GeneratedClassImage(NamedTuple):
    """A class image that the base model generates."""

    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True)
class ClassImageStore:
    """Folder tree of generated class images: below ``root``, one folder per prompt and ``made_by``.

    ``made_by`` is plain JSON with everything but prompt and seed that decides an image: base fingerprint, negative
    prompt, size, sampler, steps, guidance scale, and overrides of the base's schedule. The seed is in the file's name.
    """

    root: Path
    made_by: Mapping[str, Any]

    def image_path(self, prompt: str, seed: int) -> GeneratedClassImage:
        """Return the image of ``prompt`` and ``seed``, which need not exist yet."""
        digest = hashlib.sha256(self.record(prompt).encode()).hexdigest()[:16]
        return GeneratedClassImage(prompt, seed, self.root / digest / f"seed{seed:010d}.png")

    def record(self, prompt: str) -> str:
        """Return the JSON text that is written beside the images of ``prompt``."""
        return json.dumps({**self.made_by, "prompt": prompt}, sort_keys=True, ensure_ascii=False, indent=2) + "\n"


@dataclass(frozen=True)
class ClassImages:
    """Class images of a run: the user's ``own`` first, then generated ones.

    The two never mix: generated images go to the store, and the user's folder stays as it is.
    """

    own: tuple[Example, ...]
    generated: tuple[GeneratedClassImage, ...]
    notices: tuple[str, ...] = ()
    concepts: tuple[int, ...] = (0,)
    """Numbers of the concepts that share them."""

    def missing(self) -> list[GeneratedClassImage]:
        """List the generated images that do not exist yet, or are damaged."""
        return [image for image in self.generated if not _is_usable(image.path)]

    def examples(self) -> list[Example]:
        """Return all of them, the user's own first. Raises DatasetError if a generated one is missing or damaged."""
        found = [*self.own, *(_example(image) for image in self.generated)]
        return [replace(example, concepts=self.concepts) for example in found]


def class_prompt(data: Data, prior: ClassImageSettings) -> str:
    """Return the prompt of the class: the setting, else ``a`` and the class name; empty if neither is set."""
    return prior.class_prompt or (f"a {data.class_name}" if data.class_name else "")


def class_prompts(data: Data, prior: ClassImageSettings, captions: Iterable[str]) -> tuple[str, ...]:
    """Return the prompts that class images are generated with, in turn.

    It is the setting alone if there is one, else each training caption once, without the trigger, so that the class is
    preserved in all contexts that the subject appears in. A caption that does not name the class, or names nothing
    else, is replaced by ``a`` and the class name. Raises ConfigError if nothing says what the class is.
    """
    default, name = class_prompt(data, prior), data.class_name.casefold()
    if prior.class_prompt:
        return (default,)
    texts = (without_trigger(caption, data.trigger) for caption in captions)
    found = dict.fromkeys(text if name in text.casefold() != name else default for text in texts)
    prompts = tuple(filter(None, found)) or tuple(filter(None, [default]))
    if not prompts:
        raise ConfigError(
            "prior.class_prompt: empty, and no caption says more than the trigger; describe what the class pictures "
            "show (`a dog`), or set data.class_name"
        )
    return prompts


def select_class_images(
    prior: ClassImageSettings, prompts: Sequence[str], caption: str, store: ClassImageStore
) -> ClassImages:
    """Select ``prior.count`` class images: those in ``prior.folder``, the rest generated.

    The user's images use their own captions or else ``caption``; each counts once, whatever its folder's name says of
    repeats. Generated image ``i`` has seed ``prior.seed + i`` and the ``i``-th of ``prompts``, cyclically. Raises
    DatasetError for a folder of the user's that is missing, or holds unusable images.
    """
    own: tuple[Example, ...] = ()
    notices = []
    if prior.folder is not None:
        own, found = _read_user_folder(prior.folder, caption)
        if len(own) < prior.count:
            notices.append(
                f"{prior.folder}: {len(own)} of {prior.count} class pictures; "
                f"the base model makes the rest, kept in {store.root}."
            )
        elif len(own) > prior.count:
            notices.append(f"{prior.folder}: of {len(own)} class pictures, the first {prior.count} are used.")
        notices.extend(found)
    rest = range(max(0, prior.count - len(own)))
    generated = tuple(store.image_path(prompts[i % len(prompts)], prior.seed + i) for i in rest)
    return ClassImages(own[: prior.count], generated, tuple(notices))


def class_images_of_concepts(
    prior: ClassImageSettings, concepts: Sequence[Concept], examples: Sequence[Example], store: ClassImageStore
) -> list[ClassImages]:
    """Select the class images of all ``concepts``, which ``run_concepts`` has completed; those of one class share them.

    Raises what ``class_prompts`` and ``select_class_images`` raise.
    """
    selected = []
    for members in class_groups(concepts):
        prompts: dict[str, None] = {}
        for index in members:
            own_examples = (example for example in examples if index in example.concepts)
            captions = [text for each in own_examples for text in caption_readings(each.caption, concepts[index])]
            with naming_concept(concepts, index):
                own = concept_prior(prior, concepts[index])
                prompts |= dict.fromkeys(class_prompts(concepts[index], own, captions))
        first = members[0]
        with naming_concept(concepts, first):
            own = concept_prior(prior, concepts[first])
            found = select_class_images(own, tuple(prompts), class_prompt(concepts[first], own), store)
        selected.append(replace(found, concepts=members))
    return selected


def _read_user_folder(folder: Path, caption: str) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    found = existing_path(folder)
    if found and found.is_dir() and not any(not path.name.startswith(".") for path in found.iterdir()):
        return (), ()  # An empty folder for class images: all are missing.
    try:
        dataset = load_dataset(Data(folder=folder, prompt=caption, masks=False))
    except DatasetError as error:
        raise DatasetError(str(error).replace("data.folder", "prior.folder")) from None
    if unnamed := next((example for example in dataset.examples if not example.caption), None):
        raise ConfigError(
            f"prior.folder: {unnamed.path.name} has no caption; give prior.class_prompt, such as `a dog`, or captions"
        )
    copies = [finding.text for finding in exact_copies(dataset.examples)]
    return dataset.examples, (*dataset.notices, *copies)


def _is_usable(path: Path) -> bool:
    try:
        inspect_image(path)
    except DatasetError:
        return False
    return True


def _example(image: GeneratedClassImage) -> Example:
    try:
        facts = inspect_image(image.path)
    except DatasetError as error:
        raise DatasetError(f"{image.path}: {error}; start the run again to generate it anew") from None
    return Example(image.path, image.prompt, *facts.size, digest=facts.digest)


def generate_missing(
    store: ClassImageStore,
    missing: Sequence[GeneratedClassImage],
    make: Callable[[str, int], Image.Image],
    on_progress: OnProgress = unwatched,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Generate the ``missing`` images with ``make(prompt, seed)``, and store each at once with a record of its
    settings.

    Several processes may fill one store, each its share. Returns False if stopped before the last. Raises FileError if
    the disk is full.
    """
    on_progress(0, len(missing))
    for done, image in enumerate(missing, 1):
        if should_stop():
            return False
        png = BytesIO()
        make(image.prompt, image.seed).save(png, "PNG")
        write_atomic(image.path.parent / RECORD, store.record(image.prompt))
        write_atomic(image.path, png.getvalue())
        failpoints.point("class.kept")
        on_progress(done, len(missing))
    return True
