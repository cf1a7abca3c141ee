"""Names in a data folder: which files and folders stand for what, by this program's conventions and other tools'."""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sdlora.data.image_formats import SUFFIXES

CAPTION_SUFFIXES = (".txt", ".caption")
OTHER_CAPTIONS = (".json", ".jsonl", ".tags", ".text", ".cap", ".txt2", ".csv")
"""Suffixes in which other tools keep captions."""
CAPTIONS_ARE = "captions are .txt or .caption files of their picture's name, or in metadata.jsonl"
NO_DATA = ("project.json", "thumbs.db", "desktop.ini")
"""Names of files that a project or a system puts beside the images."""
MAX_REPEATS = 1000
"""Largest number before a folder's name that counts as kohya's repeats; a larger one is a year or a date."""
_WALKED = 5_000
"""Folders that are looked into for images which are not read."""


def parse_kohya_folder(name: str) -> tuple[int, str] | None:
    """Return repeats and caption from a folder's name: ``10_sks dog`` -> (10, "sks dog")."""
    match = re.fullmatch(r"([0-9]{1,4})_(.+)", name)
    return (int(match[1]), match[2].strip()) if match and 1 <= int(match[1]) <= MAX_REPEATS else None


def image_folders(root: Path) -> Iterator[tuple[Path, int]]:
    """Yield each folder at any depth that holds images, with their number; hidden folders and links are passed over."""
    for folder, inner, names in islice(os.walk(root), _WALKED):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if count := sum(is_image(Path(folder, name)) for name in names):
            yield Path(folder), count


def is_image(path: Path) -> bool:
    """Return whether the name is that of an image that is read."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
