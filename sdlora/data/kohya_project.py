"""Concepts from a project of kohya's trainers: its folders (``img/10_ohwx cat``, ``reg/1_cat``), or its dataset file.

Front ends may import this: no torch. What such a project says is data: nothing in it is executed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdlora.data.dataset import image_files
from sdlora.data.folder_names import parse_kohya_folder
from sdlora.data.masks import is_mask_folder
from sdlora.data.uploads import CLASS_FOLDERS, FolderWords, words_in_name
from sdlora.errors import ConfigError, DatasetError, FileError
from sdlora.filesystem.paths import as_path, existing_path
from sdlora.formatting import pluralize
from sdlora.section import quote_value

IMAGES = ("img", "image", "train")
"""Names of a project's folder of images; those of class images are ``CLASS_FOLDERS``."""
CLASS_WEIGHT = 1.0
"""Weight of class images: kohya's own default."""
SUBSET_SETTINGS = {
    "num_repeats": "repeats", "shuffle_caption": "shuffle_captions", "keep_tokens": "keep_tokens", "flip_aug": "flip",
    "random_crop": "random_crop", "caption_prefix": "caption_prefix", "caption_suffix": "caption_suffix",
    "caption_dropout_rate": "caption_dropout", "caption_tag_dropout_rate": "tag_dropout", "alpha_mask": "masks",
}  # fmt: skip
"""Settings of a subset, and a concept's that mean the same."""
RUN_SETTINGS = {"resolution": "data.resolution", "enable_bucket": "data.buckets", "batch_size": "train.batch_size"}
READ = {"image_dir", "class_tokens", "is_reg", "subsets", *SUBSET_SETTINGS, *RUN_SETTINGS}
Values = dict[str, Any]


@dataclass
class ImportedConcepts:
    """Concepts of a project, as a config takes them, settings of the whole run by name, and what to know about them."""

    concepts: list[Values] = field(default_factory=list)
    settings: Values = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Subset:
    """A folder of images with its words; ``name`` is how messages call it."""

    name: str
    folder: Path
    words: FolderWords
    settings: Values


def concepts_in_folders(root: Path) -> ImportedConcepts:
    """Return a concept for each folder named like ``10_ohwx cat`` in ``root`` or in its ``img``.

    Those in ``reg`` become class images of the concepts of their class. Raises DatasetError if there is none.
    """
    named = (root / name for name in IMAGES)
    inner = next((folder for folder in named if any(_subfolders(folder))), root)
    found = [*_subfolders(inner)]
    if not found:
        raise DatasetError(
            f"{root}: has no folder named like `10_ohwx cat` with pictures, nor has its folder img; "
            "point --from-kohya at the folder that holds them"
        )
    parents = (root,) if inner != root else (root, root.parent)
    beside = [subset for parent in parents for name in sorted(CLASS_FOLDERS) for subset in _subfolders(parent / name)]
    return _joined(found, beside)


def _subfolders(folder: Path) -> Iterator[_Subset]:
    """Yield the folders in ``folder`` that have kohya's names and hold images."""
    if not folder.is_dir():
        return
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        named = parse_kohya_folder(path.name)
        if named and not is_mask_folder(path) and image_files(path):
            yield _Subset(path.name, path, words_in_name(*named), {"repeats": named[0]})


def concepts_in_dataset_file(values: Mapping[str, Any], path: Path) -> ImportedConcepts:
    """Return a concept for each subset of a dataset file (``[[datasets]]`` with ``[[datasets.subsets]]``).

    Its relative paths are relative to the file. Raises ConfigError for another structure, or without any subset.
    """
    general, datasets = values.get("general", {}), _tables(values.get("datasets"))
    if not isinstance(general, Mapping) or not datasets:
        raise ConfigError(f"{path}: is no dataset file of kohya's trainers; it lacks [[datasets]]")
    merged: list[Values] = []
    for dataset in datasets:
        subsets = _tables(dataset.get("subsets"))
        if not subsets:
            raise ConfigError(f"{path}: a table of [[datasets]] lacks [[datasets.subsets]]")
        merged += [{**general, **dataset, **subset} for subset in subsets]
    found: dict[bool, list[_Subset]] = {True: [], False: []}
    for one in merged:
        found[bool(one.get("is_reg"))].append(_parse_subset(one, path))
    if not found[False]:
        raise ConfigError(f"{path}: all its subsets are class images (is_reg); add one of the subject")
    result = _joined(found[False], found[True])
    result.settings = _run_settings(merged, path, result.notices)
    unread = sorted({name for one in merged for name in one} - READ)
    if unread:
        result.notices.append(f"{path.name}: not used: {', '.join(unread)}.")
    return result


def _tables(value: Any) -> list[Mapping[str, Any]]:
    """Return ``value`` if it is a list of tables; an empty list for anything else."""
    return value if isinstance(value, list) and all(isinstance(one, Mapping) for one in value) else []


def _parse_subset(values: Values, path: Path) -> _Subset:
    """Return a subset of a dataset file. Raises ConfigError without a usable folder."""
    source, tokens = values.get("image_dir"), values.get("class_tokens", "")
    if not isinstance(source, str) or not isinstance(tokens, str):
        raise ConfigError(f"{path}: image_dir = {quote_value(source)} is no folder; give the folder of the pictures")
    try:
        folder = as_path(source, path.parent)
    except FileError as error:
        raise ConfigError(f"{path}: image_dir: {error}") from None
    named = parse_kohya_folder(folder.name)
    text = tokens or (named[1] if named else "")
    words = words_in_name(1, text) if text.split() else FolderWords(1, "style", "", "")
    own = {SUBSET_SETTINGS[name]: value for name, value in values.items() if name in SUBSET_SETTINGS}
    return _Subset(folder.name, folder, words, {"repeats": 1, **own})


def _run_settings(merged: list[Values], path: Path, notices: list[str]) -> Values:
    """Return the settings of the whole run, if all subsets agree on them; add a notice where they do not."""
    found = {}
    for name, setting in RUN_SETTINGS.items():
        given = [one[name] for one in merged if name in one]
        sides = [value if not isinstance(value, list) or len({*map(str, value)}) > 1 else value[0] for value in given]
        if len({*map(str, sides)}) > 1 or (sides and isinstance(sides[0], list)):
            notices.append(f"{path.name}: not used: {name} = {quote_value(given[0])}; set {setting} yourself.")
        elif sides:
            found[setting] = sides[0]
    return found


def _joined(subsets: list[_Subset], class_subsets: list[_Subset]) -> ImportedConcepts:
    """Return a concept for each of ``subsets``, with the class images of its class."""
    classes = {" ".join(_class_text(one).split()): one for one in class_subsets}
    result, used = ImportedConcepts(), set()
    for one in subsets:
        concept = {"folder": str(one.folder), **one.settings}
        concept |= {"trigger": one.words.trigger, "class_name": one.words.class_name}
        told = f"{one.name}: a concept of its own, called {one.words.trigger or 'by its captions'}"
        own = classes.get(one.words.class_name.casefold()) if one.words.class_name else None
        if own is not None:
            count = _count_images(own.folder)
            concept |= {"class_folder": str(own.folder), "class_count": count, "prior_weight": CLASS_WEIGHT}
            told += f"; {pluralize(count, 'class picture')} from {own.name}, in turn, at weight {CLASS_WEIGHT:g}"
            used.add(own.name)
        elif not one.words.class_name:  # A preset for subjects would ask for a class that it has not.
            concept["prior_weight"] = 0.0
            told += "; no class pictures, as its name has no class"
        result.concepts.append(concept)
        result.notices.append(f"{told}.")
    unused = [one.name for one in class_subsets if one.name not in used]
    if unused:
        result.notices.append(f"Class pictures not used, as no concept is of their class: {', '.join(unused)}.")
    return result


def _class_text(subset: _Subset) -> str:
    """Return the words of a folder of class images, which name nothing but the class."""
    return f"{subset.words.trigger} {subset.words.class_name}".casefold()


def _count_images(folder: Path) -> int:
    """Return the number of images in ``folder``, 1 at least: a folder without any is refused when it is read."""
    found = existing_path(folder)
    return max(1, len(image_files(found))) if found else 1
