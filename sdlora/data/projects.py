"""Projects on disk: the pictures a person dropped, their captions, and what they are, under ``DATA_DIR/projects``.

A project's folder is a training folder as it stands: ``001.png`` with ``001.txt`` beside it, and ``project.json``.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from sdlora.data.captions import caption_for, read_caption
from sdlora.data.dataset import MASK_SUFFIX, MIN_IMAGES, image_files, parse_kohya_folder, summarize_names
from sdlora.data.images import FOREIGN_SUFFIXES, SUFFIXES, inspect_image
from sdlora.data.settings import Data
from sdlora.data.step_heuristics import Kind
from sdlora.data.undo_log import UndoLog
from sdlora.data.uploads import (
    MAX_BYTES,
    MAX_IMAGE_BYTES,
    MAX_IMAGES,
    FolderWords,
    SortedUploads,
    UploadedFile,
    parse_folder_name,
    printable_name,
    sort_uploads,
)
from sdlora.errors import ConfigError, DatasetError, FileError, SdloraError
from sdlora.events import OnProgress
from sdlora.filesystem.paths import path_inside, safe_name
from sdlora.filesystem.reading import read_json, sha256
from sdlora.filesystem.writing import write_atomic
from sdlora.formatting import format_bytes, pluralize


@dataclass(frozen=True)
class ProjectInfo:
    """What a project's pictures show, and the words that will call it."""

    kind: Kind = "style"
    trigger: str = ""
    class_name: str = ""


@dataclass(frozen=True)
class AddedImages:
    """What came of a drop: pictures taken, what was left out, and the words that its one folder's name says."""

    images: int
    remarks: tuple[str, ...] = ()
    folder_words: FolderWords | None = None


class Project:
    """One project's folder."""

    def __init__(self, data_dir: Path, name: str):
        """Raises ConfigError for a name of which nothing is left on a disk."""
        slug = safe_name(name, fallback="")
        if not slug:
            raise ConfigError("Give the project a name, such as mystyle: letters and digits.")
        self.name = slug
        self.folder = path_inside(data_dir / "projects", slug)
        self.info_file = self.folder / "project.json"
        self.history = UndoLog(self.folder)

    @property
    def info(self) -> ProjectInfo | None:
        """What was said of it, or None if nothing was yet."""
        try:
            values = read_json(self.info_file)
            kind: Kind = "subject" if values["kind"] == "subject" else "style"
            return ProjectInfo(kind, str(values["trigger"]), str(values["class_name"]))
        except (SdloraError, KeyError, TypeError):
            return None

    def set_info(self, about: ProjectInfo) -> None:
        """Keep what the pictures show."""
        clean = replace(about, trigger=" ".join(about.trigger.split()), class_name=" ".join(about.class_name.split()))
        write_atomic(self.info_file, json.dumps(asdict(clean), ensure_ascii=False))

    def images(self) -> list[Path]:
        """Its pictures, in the order in which they came."""
        found = [path for path in image_files(self.folder) if self.folder.is_dir() and path.suffix in SUFFIXES]
        return sorted(found, key=lambda path: (path.name, path))

    def caption(self, image: Path) -> str:
        """What was written about ``picture``: nothing, if nothing was."""
        try:
            return read_caption(image.with_suffix(".txt"))
        except DatasetError:
            return ""

    def write_caption(self, image: Path, text: str) -> None:
        """Keep a caption; an empty one is none."""
        file = path_inside(self.folder, image).with_suffix(".txt")
        if text.strip():
            write_atomic(file, " ".join(text.split()))
        else:
            file.unlink(missing_ok=True)

    def training_caption(self, image: Path) -> str:
        """The caption that training uses: the person's own with the trigger, or what stands for an empty one."""
        named = parse_kohya_folder(image.parent.name)
        return caption_for(self.caption(image), self.data(), named[1] if named else "")

    def data(self) -> Data:
        """The project as training reads it."""
        about = self.info or ProjectInfo()
        return Data(folder=self.folder, trigger=about.trigger, class_name=about.class_name)

    def add(self, files: Sequence[Path | UploadedFile], on_progress: OnProgress | None = None) -> AddedImages:
        """Copy what was dropped in: pictures and captions, also from zip files and kohya's folders.

        What cannot be taken is said in a sentence each. ``on_progress`` is told pictures.
        """
        dropped = [
            file if isinstance(file, UploadedFile) else UploadedFile(file, PurePosixPath(file.name)) for file in files
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=self.folder) as room:
            delivery = sort_uploads(dropped, Path(room))
            added = self._add(delivery, Path(room), on_progress)
        words = delivery.words()
        return AddedImages(added, tuple(delivery.remarks), words[0] if len(words) == 1 else None)

    def _add(self, delivery: SortedUploads, room: Path, on_progress: OnProgress | None) -> int:
        """Copy a delivery's pictures in by way of ``room``, with their captions. Returns how many were taken."""
        captions = {caption.stem: caption for caption in delivery.captions}
        mine = self.images()
        known = {sha256(path): path.name for path in mine}
        weight = sum(path.stat().st_size for path in mine)
        number = max([*self.history.numbers(), *(int(path.stem) for path in mine if path.stem.isdecimal())], default=0)
        uneven = len({_repeats(picture) for picture in delivery.images}) > 1
        taken = 0
        for done, picture in enumerate(delivery.images, 1):
            try:
                digest = _usable_digest(picture)
                if digest in known:
                    raise DatasetError(f"is already here as {known[digest]}, and is not added twice")
                if len(known) >= MAX_IMAGES:
                    raise DatasetError(f"is one too many: a project holds {MAX_IMAGES} pictures")
                weight += picture.path.stat().st_size
                if weight > MAX_BYTES:
                    raise DatasetError(f"is too much: a project holds {format_bytes(MAX_BYTES)} of pictures")
                number += 1
                target = self.folder / (_repeats_folder(picture) if uneven else "") / f"{number:03d}{picture.suffix}"
                _copy_image(picture.path, target, room)
                known[digest] = target.name
                taken += 1
                if caption := captions.pop(picture.stem, None):
                    self._add_caption(target, caption, delivery)
            except DatasetError as error:
                captions.pop(picture.stem, None)
                delivery.remarks.append(f"{printable_name(picture.name.name)} {error}.")
            if on_progress is not None:
                on_progress(done, len(delivery.images))
        for caption in captions.values():
            delivery.remarks.append(
                f"{printable_name(caption.name.name)} belongs to none of the pictures dropped with it."
            )
        return taken

    def _add_caption(self, picture: Path, caption: UploadedFile, delivery: SortedUploads) -> None:
        try:
            self.write_caption(picture, read_caption(caption.path))
        except DatasetError as error:
            delivery.remarks.append(f"{printable_name(caption.name.name)} {error}.")

    def remove(self, *pictures: Path) -> None:
        """Take pictures out, with their captions; ``undo`` brings them back."""
        files = [file for picture in pictures for file in (picture, picture.with_suffix(".txt"), _mask(picture))]
        there = [path_inside(self.folder, file) for file in files if file.exists()]
        if there:
            self.history.record(f"removed {summarize_names([picture.name for picture in pictures])}", there)

    def add_trigger(self) -> int:
        """Put the trigger into every caption that lacks it, also empty ones. Returns how many that changed.

        Raises ConfigError if the project has no trigger.
        """
        if not (self.info or ProjectInfo()).trigger:
            raise ConfigError("Give the project a trigger word first, such as ohwx.")
        return self._recaption("trigger added", lambda picture, caption: self.training_caption(picture))

    def replace(self, find: str, put: str) -> int:
        """Put ``put`` for ``find``, whatever its case, in every caption. Returns how many that changed.

        Raises ConfigError if there is nothing to look for.
        """
        if not find.strip():
            raise ConfigError("Write what to look for into the captions' Find field.")
        pattern = re.compile(re.escape(find), re.IGNORECASE)
        return self._recaption(f"replaced {find!r}", lambda picture, caption: pattern.sub(lambda match: put, caption))

    def _recaption(self, what: str, change: Callable[[Path, str], str]) -> int:
        changes = {}
        for picture in self.images():
            old = self.caption(picture)
            new = " ".join(change(picture, old).split())
            if new != old:
                changes[picture] = (old, new)
        if changes:
            self.history.record(f"{what} in {pluralize(len(changes), 'caption')}", captions=changes)
        for picture, (_, new) in changes.items():
            self.write_caption(picture, new)
        return len(changes)

    def undo(self) -> str:
        """Undo what was done last. Returns what that was; nothing if there was nothing."""
        step = self.history.undo_newest()
        if step is None:
            return ""
        for name, old, new in step.captions:
            picture = path_inside(self.folder, name)
            if picture.exists() and self.caption(picture) == new:  # One that was edited since is left as it is.
                self.write_caption(picture, old)
        return step.what

    def status(self) -> str:
        """Where it stands, in plain words: how many pictures there are, and whether that will do."""
        number = len(self.images())
        if not number:
            return "No pictures yet. Drop about ten into the field above."
        ready = pluralize(number, "picture")
        return f"{ready} ready." if number >= MIN_IMAGES else f"{ready}. Add at least {MIN_IMAGES}, better ten."


def _usable_digest(picture: UploadedFile) -> str:
    """The digest of a picture that can be used. Raises DatasetError with the reason."""
    if picture.suffix in FOREIGN_SUFFIXES:
        raise DatasetError(f"is a {picture.suffix[1:].upper()} file, which is not read here; save it as PNG or JPEG")
    if picture.suffix not in SUFFIXES:
        raise DatasetError("is not a picture that can be read here; use PNG, JPEG or WebP")
    size = picture.path.stat().st_size
    if size > MAX_IMAGE_BYTES:
        raise DatasetError(f"has {format_bytes(size)}; {format_bytes(MAX_IMAGE_BYTES)} at most: save it smaller")
    return inspect_image(picture.path).digest


def _repeats(picture: UploadedFile) -> int:
    words = parse_folder_name(picture.folder)
    return words.repeats if words else 1


def _repeats_folder(picture: UploadedFile) -> str:
    """The sub-folder that keeps a picture's repeats, where folders dropped together differ in them."""
    words = parse_folder_name(picture.folder)
    if words is None:
        return ""
    name = " ".join(safe_name(word) for word in f"{words.trigger} {words.class_name}".split()[:8])
    return f"{words.repeats}_{name[:64].strip()}"


def _mask(picture: Path) -> Path:
    return picture.with_name(picture.stem + MASK_SUFFIX)


def list_projects(data_dir: Path) -> list[Project]:
    """All projects, the one touched last first."""
    files = (data_dir / "projects").glob("*/project.json")
    return [Project(data_dir, path.parent.name) for path in sorted(files, key=_age)]


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _copy_image(source: Path, target: Path, room: Path) -> None:
    """Copy a picture in, whole or not at all. Raises FileError where that cannot be done.

    It is not forced to the disk, which would take minutes for a zip of hundreds: their owner has them still.
    """
    try:
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, room / "next")
        os.replace(room / "next", target)
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({error.strerror or error})") from error
