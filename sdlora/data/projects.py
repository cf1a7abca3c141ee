"""Projects on disk, under ``DATA_DIR/projects``: the images a person uploaded, their captions, and a description.

A project's folder is a training folder as it is: ``001.png`` with ``001.txt`` beside it, and ``project.json``.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath

from PIL import Image

from sdlora.data.caption_files import CaptionFiles, Change
from sdlora.data.captions import caption_for, read_caption
from sdlora.data.dataset import MIN_IMAGES, image_files, summarize_names
from sdlora.data.folder_names import parse_kohya_folder
from sdlora.data.image_formats import FOREIGN_SUFFIXES, SUFFIXES, suffix_refusal
from sdlora.data.images import inspect_image, open_mask
from sdlora.data.mask_files import MaskFiles, require_usable_mask
from sdlora.data.masks import MASK_SUFFIX, image_key
from sdlora.data.settings import Data, Kind
from sdlora.data.undo_log import UndoLog
from sdlora.data.uploads import (
    MAX_BYTES,
    MAX_IMAGE_BYTES,
    MAX_IMAGES,
    FolderWords,
    SortedUploads,
    UploadedFile,
    parse_folder_name,
    sort_uploads,
)
from sdlora.errors import ConfigError, DatasetError, SdloraError
from sdlora.events import OnProgress, unwatched
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.paths import path_inside, safe_name
from sdlora.filesystem.reading import find_matching, modified_ns, read_json, recency, sha256
from sdlora.filesystem.writing import file_errors, rename_new, write_atomic
from sdlora.formatting import format_bytes, one_line, pluralize

INFO = "project.json"
"""The file that describes a project."""


@dataclass(frozen=True)
class ProjectInfo:
    """Kind of images in a project, and the words that will call what is learnt."""

    kind: Kind = "style"
    trigger: str = ""
    class_name: str = ""

    @property
    def subject_class(self) -> str:
        """Class of the subject; empty for a style."""
        return self.class_name if self.kind == "subject" else ""


@dataclass(frozen=True)
class AddedImages:
    """Result of an upload: number of images added, remarks on what was left out, and the words of its one folder's
    name.
    """

    images: int
    remarks: tuple[str, ...] = ()
    folder_words: FolderWords | None = None


class Project:
    """One project's folder."""

    def __init__(self, data_dir: Path, name: str):
        """Raise ConfigError for a name of which nothing is left on a disk."""
        slug = safe_name(name, fallback="")
        if not slug:
            raise ConfigError("Give the project a name, such as mystyle: letters and digits.")
        self.name = slug
        self.folder = path_inside(data_dir / "projects", slug)
        self.info_file = self.folder / INFO
        self.captions = CaptionFiles(self.folder)
        self.history = self.captions.history
        self.masks = MaskFiles(self.folder, self.history)

    @property
    def info(self) -> ProjectInfo | None:
        """Description of the project, or None if nobody has given one yet."""
        try:
            values = read_json(self.info_file)
            kind: Kind = "subject" if values["kind"] == "subject" else "style"
            return ProjectInfo(kind, str(values["trigger"]), str(values["class_name"]))
        except (SdloraError, KeyError, TypeError):
            return None

    def set_info(self, about: ProjectInfo) -> None:
        """Store the description."""
        write_info(self.folder, about)

    def images(self) -> list[Path]:
        """List the project's images, in the order of their upload; none if the folder cannot be read."""
        try:
            return self._images()
        except OSError:
            return []

    def _images(self) -> list[Path]:
        """List the images for a change: raise OSError if the folder cannot be read."""
        found = [path for path in image_files(self.folder) if path.suffix in SUFFIXES]
        return sorted(found, key=lambda path: (path.name, path))

    def caption(self, image: Path) -> str:
        """Return the caption that a person wrote for ``image``; empty if there is none."""
        try:
            return read_caption(image.with_suffix(".txt"))
        except DatasetError:
            return ""

    def write_caption(self, image: Path, text: str) -> None:
        """Store a caption; an empty one removes it. Raises ConfigError if the image has been removed meanwhile."""
        with exclusive(self.folder):
            if not path_inside(self.folder, image).is_file():
                raise ConfigError(f"{image.name}: is not in the project {self.name} any more; its caption was not kept")
            self.captions.write(image, text)

    def training_caption(self, image: Path, own: str | None = None, data: Data | None = None) -> str:
        """Return the caption that training uses: the person's own with the trigger, or the default for an empty one.

        ``own`` is a caption that is not stored yet, ``data`` a run's settings.
        """
        return _training_caption(image, self.caption(image) if own is None else own, data or self.data())

    def image(self, name: str) -> Path:
        """Return the image of this ``name``, a path below the project's folder. Raises ConfigError if there is none."""
        found = next((image for image in self.images() if image.relative_to(self.folder).as_posix() == name), None)
        if found is None:
            raise ConfigError(f"{one_line(name, 80)}: is not in the project {self.name} any more; reload the page")
        return found

    def data(self) -> Data:
        """Return the project as data settings."""
        about = self.info or ProjectInfo()
        return Data(folder=self.folder, trigger=about.trigger, class_name=about.class_name)

    def add(self, files: Sequence[Path | UploadedFile], on_progress: OnProgress = unwatched) -> AddedImages:
        """Copy uploads in: images and captions, also from zip files and kohya's folders.

        Each file that is refused gets a remark. ``on_progress`` counts images. Raises FileError if the disk refuses.
        """
        dropped = [
            file if isinstance(file, UploadedFile) else UploadedFile(file, PurePosixPath(file.name)) for file in files
        ]
        with file_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".tmp-", dir=self.folder, ignore_cleanup_errors=True) as room:
                uploads = sort_uploads(dropped, Path(room))
                added = self._add(uploads, Path(room), on_progress)
        words = uploads.words()
        return AddedImages(added, tuple(uploads.remarks), words[0] if len(words) == 1 else None)

    def _add(self, uploads: SortedUploads, room: Path, on_progress: OnProgress) -> int:
        """Copy the uploaded images in by way of ``room``, with their captions. Returns their number."""
        differ = len({_repeats(image) for image in uploads.images}) > 1
        contents = _Contents(self)
        added = 0
        for done, image in enumerate(uploads.images, 1):
            try:
                digest = _usable_digest(image)
                with exclusive(self.folder):  # For each image: a large upload leaves others their turn.
                    target = contents.claim(image, digest, _repeats_folder(image) if differ else "")
                    for left in (target.with_suffix(".txt"), target.with_suffix(MASK_SUFFIX)):
                        left.unlink(missing_ok=True)  # An upload was killed.
                    caption = uploads.caption_of.get(image)
                    mask = _mask_image(uploads.masks.get((image.source, image_key(image.name))), image, uploads)
                    listed = uploads.listed.get(image.listed_key, "")
                    text = _read_upload(caption, uploads) if caption else listed
                    _copy_image(image.path, target, room, text, mask)
                    contents.digests[target] = digest
                    added += 1
            except DatasetError as error:
                uploads.remark(image.name, error)
            on_progress(done, len(uploads.images))
        for caption in uploads.stray_captions:
            uploads.remark(caption.name, "belongs to none of the pictures dropped with it")
        return added

    def remove(self, *images: Path) -> None:
        """Take images out, with their captions; ``undo`` brings them back."""
        endings = (".txt", MASK_SUFFIX)
        files = [file for image in images for file in (image, *(image.with_name(image.stem + end) for end in endings))]
        with exclusive(self.folder):
            existing = [path_inside(self.folder, file) for file in files if file.exists()]
            if existing:
                self.history.record(f"removed {summarize_names([image.name for image in images])}", existing)

    def add_trigger(self) -> int:
        """Add the trigger to every caption that lacks it, also to empty ones. Returns the number of changed captions.

        Raises ConfigError if the project has no trigger.
        """
        data = self.data()
        if not data.trigger:
            raise ConfigError("Give the project a trigger word first, such as ohwx.")

        def change(image: Path, caption: str) -> str:
            return "\n".join(_training_caption(image, line, data) for line in caption.split("\n"))

        return self._recaption("trigger added", change)

    def replace(self, find: str, put: str) -> int:
        """Replace ``find`` with ``put``, ignoring case, in every caption. Returns the number of changed captions.

        Raises ConfigError if ``find`` is empty.
        """
        if not find.strip():
            raise ConfigError("Write what to look for into the captions' Find field.")
        pattern = re.compile(re.escape(find), re.IGNORECASE)
        return self._recaption(f"replaced {find!r}", lambda image, caption: pattern.sub(lambda match: put, caption))

    def _recaption(self, what: str, change: Change) -> int:
        with exclusive(self.folder):
            return self.captions.begin_change(what).write(self._images(), change)

    def undo(self) -> str:
        """Undo the last change. Returns its description; empty if there was none."""
        return self.captions.undo()

    def status(self) -> str:
        """Describe in plain words how many images there are, and whether that is enough."""
        number = len(self.images())
        if not number:
            return "No pictures yet. Drop about ten into the field above."
        ready = pluralize(number, "picture")
        return f"{ready} ready." if number >= MIN_IMAGES else f"{ready}. Add at least {MIN_IMAGES}, better ten."


class _Contents:
    """Images of a project while some are added: others may add and remove some at the same time."""

    def __init__(self, project: Project):
        self.project = project
        self.digests: dict[Path, str] = {}
        """SHA-256 of each image that was there when it was looked at last."""

    def claim(self, image: UploadedFile, digest: str, folder_name: str) -> Path:
        """Return a new path for ``image``, whose number no other image has or had. Call it alone with the project.

        Raises DatasetError if the image is there already, or the project is full.
        """
        present = self.project._images()
        self.digests = {path: self.digests.get(path) or sha256(path) for path in present}
        same = next((path for path, known in self.digests.items() if known == digest), None)
        if same is not None:
            raise DatasetError(f"is already here as {same.name}, and is not added twice")
        if len(present) >= MAX_IMAGES:
            raise DatasetError(f"is one too many: a project holds {MAX_IMAGES} pictures")
        if sum(path.stat().st_size for path in (*present, image.path)) > MAX_BYTES:
            raise DatasetError(f"is too much: a project holds {format_bytes(MAX_BYTES)} of pictures")
        captions = chain(*(find_matching(self.project.folder, pattern) for pattern in ("*.txt", "[0-9]*/*.txt")))
        numbers = {int(path.stem) for path in (*present, *captions) if path.stem.isdecimal()}  # Gone images' too.
        number = max(numbers | self.project.history.numbers(), default=0) + 1
        return self.project.folder / folder_name / f"{number:03d}{image.suffix}"


def _usable_digest(image: UploadedFile) -> str:
    """Return the digest of a usable image. Raises DatasetError with the reason if it is not."""
    if image.suffix in FOREIGN_SUFFIXES:
        raise DatasetError(suffix_refusal(image.suffix))
    if image.suffix not in SUFFIXES:
        raise DatasetError("is not a picture that can be read here; use PNG, JPEG or WebP")
    size = image.path.stat().st_size
    if size > MAX_IMAGE_BYTES:
        raise DatasetError(f"has {format_bytes(size)}; {format_bytes(MAX_IMAGE_BYTES)} at most: save it smaller")
    return inspect_image(image.path).digest


def _repeats(image: UploadedFile) -> int:
    words = parse_folder_name(image.folder)
    return words.repeats if words else 1


def _repeats_folder(image: UploadedFile) -> str:
    """Return the sub-folder that keeps an image's repeats, if folders that were uploaded together differ in them."""
    words = parse_folder_name(image.folder)
    if words is None:
        return ""
    name = " ".join(safe_name(word) for word in f"{words.trigger} {words.class_name}".split()[:8])
    return f"{words.repeats}_{name[:64].strip()}"


def write_info(folder: Path, about: ProjectInfo) -> None:
    """Store the description of the project in ``folder``."""
    clean = replace(about, trigger=" ".join(about.trigger.split()), class_name=" ".join(about.class_name.split()))
    write_atomic(folder / INFO, json.dumps(asdict(clean), ensure_ascii=False))


def stray_captions(folder: Path) -> list[Path]:
    """Return the captions and masks, in a project's folder, of images whose upload was killed.

    Those of removed images are none: they are needed again when the image comes back.
    """
    numbers = {f"{number:03d}" for number in UndoLog(folder).numbers()} | {path.stem for path in image_files(folder)}
    files = chain(folder.rglob("*.txt"), folder.rglob(f"*{MASK_SUFFIX}"))
    numbered = ((path.name.partition(".")[0], path) for path in files if ".history" not in path.parts)
    return [path for number, path in numbered if number.isdecimal() and number not in numbers]


def list_projects(data_dir: Path) -> list[Project]:
    """List all projects, the most recently changed first."""
    files = find_matching(data_dir / "projects", f"[!.]*/{INFO}")
    newest_first = sorted(files, key=lambda path: recency(modified_ns(path)), reverse=True)
    return [Project(data_dir, path.parent.name) for path in newest_first]


def _training_caption(image: Path, own: str, data: Data) -> str:
    named = parse_kohya_folder(image.parent.name)
    return caption_for(own, data, named[1] if named else "")


def _read_upload(caption: UploadedFile, uploads: SortedUploads) -> str:
    """Return the text of an uploaded caption; empty, with a remark, if it cannot be used."""
    try:
        return read_caption(caption.path)
    except DatasetError as error:
        uploads.remark(caption.name, error)
        return ""


def _mask_image(mask: UploadedFile | None, image: UploadedFile, uploads: SortedUploads) -> Image.Image | None:
    """Return an uploaded mask of ``image``; None, with a remark, if it cannot be used."""
    if mask is None:
        return None
    try:
        require_usable_mask(mask.path, inspect_image(image.path).size)
        return open_mask(mask.path)
    except DatasetError as error:
        uploads.remark(mask.name, error)
        return None


def _copy_image(source: Path, target: Path, room: Path, caption: str, mask: Image.Image | None = None) -> None:
    """Copy an image in with its caption and its mask, completely or not at all. Raises FileError if that fails.

    They are not flushed to the disk, which would take minutes for a zip of hundreds: the owner still has the originals.
    """
    with file_errors(target), ExitStack() as undo:
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, room / "next")
        if caption:  # First: an image without it would be taken for one that is there already, when it is added again.
            (room / "caption").write_text(caption, encoding="utf-8")
            rename_new(room / "caption", target.with_suffix(".txt"))
            undo.callback(target.with_suffix(".txt").unlink, missing_ok=True)
        if mask:
            mask.save(room / "mask", "PNG")
            rename_new(room / "mask", target.with_suffix(MASK_SUFFIX))
            undo.callback(target.with_suffix(MASK_SUFFIX).unlink, missing_ok=True)
        rename_new(room / "next", target)
        undo.pop_all()
