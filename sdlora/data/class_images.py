"""Class pictures for prior preservation: the user's own, and those that the base makes, kept for later runs.

Front ends may import this: no torch. The pictures are made by a callable that the trainer brings.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sdlora import failpoints
from sdlora.data.captions import without_trigger
from sdlora.data.dataset import Example, load_dataset
from sdlora.data.doctor import exact_copies
from sdlora.data.images import inspect_image
from sdlora.data.settings import Data, Prior
from sdlora.errors import ConfigError, DatasetError
from sdlora.events import OnProgress
from sdlora.filesystem.paths import existing_path
from sdlora.filesystem.writing import write_atomic

RECORD = "made_by.json"


class GeneratedClassImage(NamedTuple):
    """A class picture that the base makes."""

    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True)
class ClassImageStore:
    """Where made class pictures are kept: below ``root`` a folder for each prompt and whatever else decides a picture.

    ``made_by``: all that decides a picture but prompt and seed: base fingerprint, negative prompt, size, sampler,
    steps, guidance scale, and what was said of the base's schedule. All of it must be plain JSON. The seed is in the
    file's name.
    """

    root: Path
    made_by: Mapping[str, Any]

    def image_path(self, prompt: str, seed: int) -> GeneratedClassImage:
        """The picture of ``prompt`` and ``seed``; it need not exist yet."""
        digest = hashlib.sha256(self.record(prompt).encode()).hexdigest()[:16]
        return GeneratedClassImage(prompt, seed, self.root / digest / f"seed{seed:010d}.png")

    def record(self, prompt: str) -> str:
        """What is written beside the pictures of ``prompt``."""
        return json.dumps({**self.made_by, "prompt": prompt}, sort_keys=True, ensure_ascii=False, indent=2) + "\n"


@dataclass(frozen=True)
class ClassImages:
    """Which class pictures a run uses: ``own`` ones of the user first, then those that the base makes.

    The two never mix: made pictures go to the shelf, and the user's folder stays as it is.
    """

    own: tuple[Example, ...]
    generated: tuple[GeneratedClassImage, ...]
    notices: tuple[str, ...] = ()

    def missing(self) -> list[GeneratedClassImage]:
        """Those to make that are not there whole."""
        return [made for made in self.generated if not _is_usable(made.path)]

    def examples(self) -> list[Example]:
        """All of them, own ones first. Raises DatasetError if a made one is missing or damaged."""
        return [*self.own, *(_example(made) for made in self.generated)]


def class_prompt(data: Data, prior: Prior) -> str:
    """What class pictures show, in one phrase: the setting, else ``a`` and the class name.

    Raises ConfigError if neither is set.
    """
    if not prior.class_prompt and not data.class_name:
        raise ConfigError(
            "prior.class_prompt: empty; say what the class pictures show (`a dog`), or set data.class_name"
        )
    return prior.class_prompt or f"a {data.class_name}"


def class_prompts(data: Data, prior: Prior, captions: Iterable[str]) -> tuple[str, ...]:
    """The prompts that class pictures are made with, in turn: the setting alone if there is one; else what the training
    ``captions`` say without the trigger, each once, so that the class is kept wherever the subject is shown.

    A caption that does not name the class, or nothing else, gives way to ``a`` and the class name. Raises ConfigError
    as `class_prompt` does.
    """
    plain, name = class_prompt(data, prior), data.class_name.casefold()
    if prior.class_prompt:
        return (plain,)
    said = (without_trigger(caption, data.trigger) for caption in captions)
    return tuple(dict.fromkeys(text if name in text.casefold() != name else plain for text in said)) or (plain,)


def select_class_images(prior: Prior, prompts: Sequence[str], caption: str, store: ClassImageStore) -> ClassImages:
    """``prior.count`` class pictures: those in ``prior.folder``, by their own captions or else by ``caption``; the rest
    made. Each counts once, whatever its folder's name says of repeats.

    Made picture ``i`` has seed ``prior.seed + i`` and the ``i``-th of the ``prompts``, which come in turn. Raises
    DatasetError for a user's folder that is missing, or holds pictures that cannot be used.
    """
    own: tuple[Example, ...] = ()
    notices = []
    if prior.folder is not None:
        own, found = _read_own(prior.folder, caption)
        if len(own) < prior.count:
            notices.append(
                f"{prior.folder}: {len(own)} of {prior.count} class pictures; "
                f"the base model makes the rest, kept in {store.root}."
            )
        elif len(own) > prior.count:
            notices.append(f"{prior.folder}: of {len(own)} class pictures, the first {prior.count} are used.")
        notices.extend(found)
    rest = range(max(0, prior.count - len(own)))
    made = tuple(store.image_path(prompts[i % len(prompts)], prior.seed + i) for i in rest)
    return ClassImages(own[: prior.count], made, tuple(notices))


def _read_own(folder: Path, caption: str) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    found = existing_path(folder)
    if found and found.is_dir() and not any(not path.name.startswith(".") for path in found.iterdir()):
        return (), ()  # a folder made ready for class pictures: all are missing
    try:
        dataset = load_dataset(Data(folder=folder, prompt=caption, masks=False))
    except DatasetError as error:
        raise DatasetError(str(error).replace("data.folder", "prior.folder")) from None
    copies = [finding.text for finding in exact_copies(dataset.examples)]
    return dataset.examples, (*dataset.notices, *copies)


def _is_usable(path: Path) -> bool:
    try:
        inspect_image(path)
    except DatasetError:
        return False
    return True


def _example(made: GeneratedClassImage) -> Example:
    try:
        facts = inspect_image(made.path)
    except DatasetError as error:
        raise DatasetError(f"{made.path}: {error}; start again to have it made anew") from None
    return Example(made.path, made.prompt, *facts.size, digest=facts.digest)


def generate_missing(
    store: ClassImageStore,
    missing: Sequence[GeneratedClassImage],
    make: Callable[[str, int], Image.Image],
    on_progress: OnProgress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """``make`` the ``missing`` pictures of their prompts and seeds, each kept as soon as it is there, with a record of
    what made it. Several processes may fill one shelf, each its share.

    Returns False if stopped before the last. Raises FileError if the disk is full.
    """
    on_progress(0, len(missing))
    for done, made in enumerate(missing, 1):
        if should_stop():
            return False
        png = BytesIO()
        make(made.prompt, made.seed).save(png, "PNG")
        write_atomic(made.path.parent / RECORD, store.record(made.prompt))
        write_atomic(made.path, png.getvalue())
        failpoints.point("class.kept")
        on_progress(done, len(missing))
    return True
