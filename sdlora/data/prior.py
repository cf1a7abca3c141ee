"""Class pictures for prior preservation: the user's own, and those that the base makes, kept for later runs.

Front ends may import this: no torch. The pictures are made by a callable that the trainer brings.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora.data.folder import Example, read_folder
from sdlora.data.pictures import examine
from sdlora.data.settings import Data, Prior
from sdlora.errors import ConfigError, DatasetError
from sdlora.files import write_atomic

RECORD = "made_by.json"

Make = Callable[[Sequence[int]], Sequence[Image.Image]]


@dataclass(frozen=True)
class ClassPictures:
    """Which class pictures a run uses: ``own`` ones of the user first, then made ones of ``seeds`` in ``folder``.

    The two never mix: made pictures go to the kept folder, and the user's folder stays as it is.
    """

    own: tuple[Example, ...]
    folder: Path
    seeds: tuple[int, ...]
    caption: str
    notices: tuple[str, ...] = ()

    def missing(self) -> list[int]:
        """Seeds whose pictures are not there whole."""
        return [seed for seed in self.seeds if not _is_whole(picture_path(self.folder, seed))]

    def examples(self) -> list[Example]:
        """All of them, own ones first. Raises DatasetError if a made one is missing or damaged."""
        return [*self.own, *(_example(picture_path(self.folder, seed), self.caption) for seed in self.seeds)]


def class_prompt(data: Data, prior: Prior) -> str:
    """What class pictures show: the setting, else ``a`` and the class name.

    Raises ConfigError if neither is set.
    """
    if not prior.class_prompt and not data.class_name:
        raise ConfigError(
            "prior.class_prompt: empty; say what the class pictures show (`a dog`), or set data.class_name"
        )
    return prior.class_prompt or f"a {data.class_name}"


def class_folder(root: Path, made_by: Mapping[str, Any]) -> Path:
    """The folder below ``root`` for pictures made by just these settings, named by their hash; it need not exist yet.

    ``made_by``: all that decides a picture but its seed, which is in the file's name: base fingerprint, prompt,
    negative prompt, size, sampler, steps, guidance scale. All of it must be plain JSON.
    """
    written = json.dumps(dict(made_by), sort_keys=True, ensure_ascii=False)
    return root / hashlib.sha256(written.encode()).hexdigest()[:16]


def picture_path(folder: Path, seed: int) -> Path:
    return folder / f"seed{seed:010d}.png"


def class_pictures(prior: Prior, caption: str, folder: Path) -> ClassPictures:
    """``prior.count`` class pictures: those in ``prior.folder``, by their own captions if they have any; the rest made.
    Each counts once, whatever its folder's name says of repeats.

    Made picture ``i`` has seed ``prior.seed + i``. Raises DatasetError for a user's folder that is missing, or holds
    pictures that cannot be used.
    """
    own: tuple[Example, ...] = ()
    notices = []
    if prior.folder is not None:
        own, found = _own(prior.folder, caption)
        if len(own) < prior.count:
            notices.append(
                f"{prior.folder}: {len(own)} of {prior.count} class pictures; "
                f"the base model makes the rest, kept in {folder}."
            )
        elif len(own) > prior.count:
            notices.append(f"{prior.folder}: of {len(own)} class pictures, the first {prior.count} are used.")
        notices.extend(found)
    seeds = range(prior.seed, prior.seed + max(0, prior.count - len(own)))
    return ClassPictures(own[: prior.count], folder, tuple(seeds), caption, tuple(notices))


def _own(folder: Path, caption: str) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    if folder.is_dir() and not any(not path.name.startswith(".") for path in folder.iterdir()):
        return (), ()  # a folder made ready for class pictures: all are missing
    try:
        dataset = read_folder(Data(folder=folder, prompt=caption, masks=False))
    except DatasetError as error:
        raise DatasetError(str(error).replace("data.folder", "prior.folder")) from None
    return dataset.examples, dataset.notices


def _is_whole(path: Path) -> bool:
    try:
        examine(path)
    except DatasetError:
        return False
    return True


def _example(path: Path, caption: str) -> Example:
    try:
        facts = examine(path)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}; start again to have it made anew") from None
    return Example(path, caption, *facts.size, digest=facts.digest)


def fill(
    folder: Path,
    missing: Sequence[int],
    make: Make,
    made_by: Mapping[str, Any],
    batch_size: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Make the pictures of the ``missing`` seeds, each kept as soon as it is there; ``made_by`` is written beside them.

    ``make`` takes up to ``batch_size`` seeds and gives a picture for each. Several processes may fill one folder, each
    its share of the seeds. Returns False if stopped before the last. Raises FileError if the disk is full.
    """
    if missing:
        write_atomic(folder / RECORD, json.dumps(dict(made_by), sort_keys=True, ensure_ascii=False, indent=2) + "\n")
    on_progress(0, len(missing))
    for start in range(0, len(missing), batch_size):
        if should_stop():
            return False
        seeds = missing[start : start + batch_size]
        for seed, picture in zip(seeds, make(seeds), strict=True):
            png = BytesIO()
            picture.save(png, "PNG")
            write_atomic(picture_path(folder, seed), png.getvalue())
        on_progress(start + len(seeds), len(missing))
    return True
