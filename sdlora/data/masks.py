"""Which files are masks of training images, by their names: this program's own, and those of other tools.

``NAME.mask.png`` is this program's, ``NAME-masklabel.png`` OneTrainer's; others write ``NAME_mask.png``, or put files
of the images' names into a folder called ``masks``. Any kind of image can be one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from sdlora.data.images import SUFFIXES
from sdlora.filesystem.paths import composed

MASK_SUFFIX = ".mask.png"
OWN, OTHERS = ".mask", ("-masklabel", "_mask")
FOLDERS = ("masks", "mask")


def masked_stem(path: PurePath) -> str:
    """Return the stem, composed, of the image that the file ``path`` is a mask of by its name; "" if of none."""
    stem = composed(path.stem)
    ending = next((ending for ending in (OWN, *OTHERS) if stem.lower().endswith(ending)), "")
    return stem[: -len(ending)] if ending and path.suffix.lower() in SUFFIXES else ""


def masked_image(path: PurePath) -> tuple[PurePath, str]:
    """Return folder and stem, composed, of the image that a file is a mask of by its name or its folder's."""
    inside = path.parent.name.lower() in FOLDERS
    return path.parent.parent if inside else path.parent, masked_stem(path) or (composed(path.stem) if inside else "")


def is_own_mask(path: PurePath) -> bool:
    """Return whether the name says that it is a mask whatever lies beside it."""
    return bool(masked_stem(path)) and path.stem.lower().endswith(OWN)


def split_masks(paths: Sequence[Path], folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Split image files of ``folder`` into images, and masks by the stems of their images.

    A name such as ``a_mask.png`` is a mask only where an image ``a`` lies beside it. Of several masks of an image, the
    one named as this program does comes first. Raises OSError if a folder of masks cannot be read.
    """
    stems = {composed(path.stem) for path in paths if not masked_stem(path)}
    images = [path for path in paths if not is_own_mask(path) and masked_stem(path) not in stems]
    masks: dict[str, list[Path]] = {}
    for path in sorted(set(paths) - set(images), key=lambda path: (not is_own_mask(path), path)):
        masks.setdefault(masked_stem(path), []).append(path)
    for inner in (each for each in sorted(folder.iterdir()) if is_mask_folder(each)):
        for path in sorted(inner.iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                stem = composed(path.stem)
                masks.setdefault(stem if stem in stems else masked_stem(path) or stem, []).append(path)
    return images, masks


def is_mask_folder(path: Path) -> bool:
    """Return whether ``path`` is a folder in which other tools keep masks."""
    return path.name.lower() in FOLDERS and path.is_dir()


def foreign_masks(masks: Mapping[str, Path]) -> list[Path]:
    """Return those that are named as other tools do."""
    return [path for path in masks.values() if not path.name.lower().endswith(MASK_SUFFIX)]
