"""Masks of training images, told by their names: this program's own, and those of other tools.

``NAME.mask.png`` is this program's, ``NAME-masklabel.png`` OneTrainer's; others write ``NAME_mask.png``, or put files
of the images' names into a folder called ``masks``. Any kind of image can be one.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Generic, NamedTuple, TypeVar

from sdlora.data.image_formats import SUFFIXES
from sdlora.data.name_matching import CaselessNames
from sdlora.filesystem.paths import composed

P = TypeVar("P", bound=PurePath)
Key = tuple[str, str]
"""Folder and stem of an image, both composed."""

MASK_SUFFIX = ".mask.png"
OWN, OTHERS = ".mask", ("-masklabel", "_mask")
FOLDERS = ("masks", "mask")


class SortedMasks(NamedTuple, Generic[P]):
    """Image files by their roles."""

    images: list[P]
    masks: dict[Key, list[P]]
    """Masks of images that are there, this program's own first."""
    strays: list[P]
    """Masks of no image that is there."""


def image_key(path: PurePath) -> Key:
    """Return the key by which the image ``path`` and its masks find one another."""
    return composed(str(path.parent)), composed(path.stem)


def sort_masks(paths: Sequence[P]) -> SortedMasks[P]:
    """Sort image files. A name such as ``a_mask.png`` is a mask only where an image ``a`` lies beside it.

    An image and its mask may differ in case, unless two images do.
    """
    in_folder = {path for path in paths if path.parent.name.lower() in FOLDERS}
    holders = {path.parent for path in paths if path not in in_folder}
    in_folder = {path for path in in_folder if path.parent.parent in holders}  # Else it is just a folder's name.
    free = [path for path in paths if path not in in_folder and not is_own_mask(path)]
    stems = CaselessNames(map(image_key, free))
    images = [path for path in free if not stems.near(_beside(path))]
    keys = {image_key(path) for path in images}
    names = CaselessNames(keys)
    found = SortedMasks[P](images, {}, [])
    kept = {*images}

    def wanted(path: P) -> list[Key]:
        folder = composed(str(path.parent.parent))
        return [(folder, composed(path.stem)), (folder, _beside(path)[1])] if path in in_folder else [_beside(path)]

    def order(path: P) -> tuple[bool, bool, P]:
        return not is_own_mask(path), keys.isdisjoint(wanted(path)), path

    for path in sorted((path for path in paths if path not in kept), key=order):
        key = next(filter(None, map(names.find, wanted(path))), None)
        if key is None:
            found.strays.append(path)
        else:
            found.masks.setdefault(key, []).append(path)
    return found


def is_own_mask(path: PurePath) -> bool:
    """Return whether the name says that it is a mask whatever lies beside it."""
    return path.suffix.lower() in SUFFIXES and path.stem.lower().endswith(OWN)


def is_mask_folder(path: Path) -> bool:
    """Return whether ``path`` is a folder in which other tools keep masks."""
    return path.name.lower() in FOLDERS and path.is_dir()


def _beside(path: PurePath) -> Key:
    """Return the key of the image beside ``path`` that it is a mask of, if it is one by its name."""
    folder, stem = image_key(path)
    ending = next((ending for ending in (OWN, *OTHERS) if stem.lower().endswith(ending)), "")
    return folder, stem[: -len(ending)] if ending else ""
