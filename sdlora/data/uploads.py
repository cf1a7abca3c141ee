"""Sort uploads: images, captions, zip files, kohya's folders.

A zip comes from a stranger: its claims are checked before and during unpacking, and no path in it is used.
"""

import io
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO

from sdlora.data.captions import LISTED, read_listed_captions
from sdlora.data.folder_names import CAPTION_SUFFIXES, CAPTIONS_ARE, NO_DATA, OTHER_CAPTIONS, parse_kohya_folder
from sdlora.data.image_formats import FOREIGN_SUFFIXES, SUFFIXES
from sdlora.data.masks import Key, image_key, sort_masks
from sdlora.data.name_matching import CaselessNames
from sdlora.data.settings import Kind
from sdlora.errors import DatasetError, FileError
from sdlora.filesystem.paths import composed, trimmed_name
from sdlora.filesystem.writing import file_errors, require_free_space
from sdlora.formatting import format_bytes, pluralize

MAX_IMAGES = 1000
MAX_IMAGE_BYTES = 50_000_000
MAX_BYTES = 2_000_000_000
MAX_ENTRIES = 4 * MAX_IMAGES
"""Largest number of files in a zip: an image, its caption, its mask, and the shadow file that a Mac adds."""
MAX_RATIO = 200
"""Largest ratio to which a zip may unpack: photographs hardly shrink, flat bitmaps a hundred times."""
FREE = 1_000_000
"""Bytes of an entry below which the ratio does not apply: a blank bitmap shrinks to nothing, and harms nobody."""
_DIRECTORY_BYTES = 4_000_000
"""Largest table of contents of a zip, which is read in one piece."""
_CHUNK = 1 << 20
LONGEST_SHOWN = 200
"""Characters of a name in a remark; a zip may have names of 64 kB."""
ZIP = ".zip"
ARCHIVES = frozenset((ZIP, ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz"))
CLASS_FOLDERS = frozenset(("reg", "regularization", "regularisation", "class_images"))
"""Names of folders in which kohya's trainers keep class images, which are not training images."""
_HIDDEN = re.compile(r"\.[^.]|__MACOSX$")


@dataclass(frozen=True)
class UploadedFile:
    """One file as uploaded: its path here, and the path that the sender gave it, which is only ever displayed."""

    path: Path
    name: PurePosixPath
    source: int = 0
    """Number of the zip file that it was in; 0 for none."""

    def __post_init__(self) -> None:
        """Leave out what Windows drops of names: with ``a.png.`` its caption ``a.txt`` would not be found."""
        object.__setattr__(self, "name", PurePosixPath(*map(trimmed_name, self.name.parts)))

    @property
    def folder(self) -> str:
        return self.name.parent.name

    @property
    def suffix(self) -> str:
        return self.name.suffix.lower()

    @property
    def stem(self) -> tuple[PurePosixPath, str]:
        """Key by which an image and its caption find one another."""
        return PurePosixPath(composed(str(self.name.parent))), composed(self.name.stem)

    @property
    def listed_key(self) -> tuple[int, str]:
        """Key by which an image finds its caption in a list."""
        return self.source, composed(str(self.name))


@dataclass(frozen=True)
class FolderWords:
    """Parts of a folder's name in kohya's convention: `10_sks dog` is seen 10 times an epoch, has the trigger `sks`,
    and is a dog.
    """

    repeats: int
    kind: Kind
    trigger: str
    class_name: str


@dataclass
class SortedUploads:
    """Everything in one upload, and a sentence on each thing that was left out."""

    images: list[UploadedFile] = field(default_factory=list)
    captions: list[UploadedFile] = field(default_factory=list)
    caption_of: dict[UploadedFile, UploadedFile] = field(default_factory=dict)
    """Caption of each image that has one."""
    stray_captions: list[UploadedFile] = field(default_factory=list)
    """Captions of no image; what is wrong with images is told first."""
    listed: dict[tuple[int, str], str] = field(default_factory=dict)
    """Captions from lists, by the keys of their images."""
    masks: dict[tuple[int, Key], UploadedFile] = field(default_factory=dict)
    """Masks, by the numbers of their zip files and the keys of their images."""
    remarks: list[str] = field(default_factory=list)

    def remark(self, name: PurePosixPath, reason: object) -> None:
        """Report why the file called ``name`` is left out."""
        self.remarks.append(f"{printable_name(name.name)} {reason}.")

    def words(self) -> list[FolderWords]:
        """Return the words of the folders' names, each once, in order."""
        found = (parse_folder_name(image.folder) for image in self.images)
        return list(dict.fromkeys(words for words in found if words))


def parse_folder_name(name: str) -> FolderWords | None:
    """Return the words in a folder's name in the convention of kohya's trainers; None for any other name.

    One word, or words that end in `style`, name a style; otherwise the first word is the trigger of a subject whose
    class the other words name.
    """
    named = parse_kohya_folder(name)
    return words_in_name(*named) if named else None


def words_in_name(repeats: int, text: str) -> FolderWords:
    """Return the words behind the number in such a name."""
    words = text.replace("_", " ").split()
    if len(words) < 2 or words[-1].lower() == "style":
        return FolderWords(repeats, "style", " ".join(words), "")
    return FolderWords(repeats, "subject", words[0], " ".join(words[1:]))


def sort_uploads(dropped: Iterable[UploadedFile], room: Path) -> SortedUploads:
    """Sort uploaded files; zip files among them are unpacked to the empty folder ``room``."""
    uploads = SortedUploads()
    opened = 0
    for item in dropped:
        if not item.path.is_file():  # Reading a pipe would block.
            uploads.remark(item.name, "is no regular file; hand over the file itself")
        elif item.suffix == ZIP:
            opened += 1
            try:
                for unpacked in _unpack(item, room / str(opened), uploads):
                    _sort_file(replace(unpacked, source=opened), uploads)
            except DatasetError as error:
                uploads.remark(item.name, error)
        else:
            _sort_file(item, uploads)
    _sort_masks(uploads)
    _pair_captions(uploads)
    CaselessNames(image.listed_key for image in uploads.images).rename(uploads.listed)
    _remark_strangers(uploads)
    return uploads


def printable_name(name: str | PurePosixPath) -> str:
    """Make a stranger's name safe to display: no line breaks, no marks that reverse text, and not endless."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def _sort_file(item: UploadedFile, uploads: SortedUploads) -> None:
    """Sort one file by its role; files that are clearly not part of the set are ignored without a remark."""
    parents = {part.lower() for part in item.name.parts[:-1]}
    if any(_HIDDEN.match(part) for part in item.name.parts) or item.name.name.lower() in NO_DATA:
        return
    if parents & CLASS_FOLDERS:
        parent = printable_name(item.name.parent)
        remark = f"{parent} holds class pictures, which are not trained on; they are made as needed."
        if remark not in uploads.remarks:
            uploads.remarks.append(remark)
    elif item.suffix in CAPTION_SUFFIXES:
        uploads.captions.append(item)
    elif item.name.name == LISTED:
        try:
            for name, text in read_listed_captions(item.path).captions.items():
                uploads.listed[item.source, composed(str(item.name.parent / name))] = text
        except DatasetError as error:
            uploads.remark(item.name, error)
    elif item.suffix in OTHER_CAPTIONS:
        uploads.remark(item.name, f"is not read; {CAPTIONS_ARE}")
    elif item.suffix in ARCHIVES:
        uploads.remark(item.name, "is an archive, which is not opened here; drop its pictures")
    else:
        uploads.images.append(item)


def _sort_masks(uploads: SortedUploads) -> None:
    """Take the masks out of the images, one drop or zip at a time: others have files of the same names."""
    kept: set[tuple[int, PurePosixPath]] = set()
    for source in dict.fromkeys(item.source for item in uploads.images):
        items = [item for item in uploads.images if item.source == source]
        first = {item.name: item for item in reversed(items)}
        found = sort_masks([item.name for item in items])
        kept |= {(source, name) for name in found.images}
        owners = Counter(map(image_key, found.images))
        for key, (mask, *others) in found.masks.items():
            if owners[key] > 1:
                uploads.remark(mask, "is a mask of several pictures; give the pictures different names")
            else:
                uploads.masks[source, key] = first[mask]
            for other in others:
                uploads.remark(other, f"is another mask of the picture that {printable_name(mask.name)} masks")
        for name in found.strays:
            uploads.remark(name, "is a mask, and belongs to none of the pictures dropped with it")
    uploads.images = [item for item in uploads.images if (item.source, item.name) in kept]


def _pair_captions(uploads: SortedUploads) -> None:
    """Pair captions with their images: those of one zip or drop first, then by name alone, then whatever the case."""
    waiting = _one_a_name(uploads)
    levels: tuple[Callable[[UploadedFile], Hashable], ...] = (
        lambda file: (file.source, *file.stem),
        lambda file: file.stem,
        lambda file: (file.source, *map(str.casefold, map(str, file.stem))),
        lambda file: tuple(map(str.casefold, map(str, file.stem))),
    )
    for key in levels:
        images: dict[Hashable, list[UploadedFile]] = {}
        for image in uploads.images:
            if image not in uploads.caption_of:
                images.setdefault(key(image), []).append(image)
        unpaired = []
        for caption in waiting:
            match images.get(key(caption), []):
                case []:
                    unpaired.append(caption)
                case [image] if image not in uploads.caption_of:
                    uploads.caption_of[image] = caption
                case several:
                    names = " and to ".join(printable_name(image.name.name) for image in several)
                    uploads.remark(caption.name, f"belongs to {names}; give the pictures different names")
        waiting = unpaired
    uploads.stray_captions = waiting


def _one_a_name(uploads: SortedUploads) -> list[UploadedFile]:
    """Return the captions that are read: of ``a.caption`` and ``a.txt``, the latter, as in a folder."""
    found: dict[Hashable, UploadedFile] = {}
    for caption in sorted(uploads.captions, key=lambda file: CAPTION_SUFFIXES.index(file.suffix)):
        first = found.setdefault((caption.source, *caption.stem), caption)
        if first is not caption:
            uploads.remark(caption.name, f"is not read, since {printable_name(first.name.name)} is")
    return [*found.values()]


def _remark_strangers(uploads: SortedUploads) -> None:
    """Report captions in lists whose images were not dropped with them."""
    strangers = uploads.listed.keys() - {image.listed_key for image in uploads.images}
    if strangers:
        uploads.remarks.append(f"{LISTED} has {pluralize(len(strangers), 'caption')} of no picture dropped with it.")


class _BoundedZipFile(io.FileIO):
    """A zip file that refuses to read a piece larger than a plausible table of contents."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _DIRECTORY_BYTES:
            raise DatasetError("lists more files than a set of pictures has; it is not opened")
        return super().read(size)


def _unpack(item: UploadedFile, room: Path, uploads: SortedUploads) -> Iterator[UploadedFile]:
    """Yield the files in a zip, under names of our own. Raises DatasetError for a zip that cannot be trusted."""
    try:
        with _BoundedZipFile(item.path) as file, zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _require_plausible(entries, item.path.stat().st_size)
            with file_errors(room):
                room.mkdir(parents=True)
            require_free_space(room, sum(entry.file_size for entry in entries))
            for number, entry in enumerate(entries):
                unpacked = UploadedFile(room / str(number), PurePosixPath(entry.filename.replace("\\", "/")))
                if reason := _refusal(entry, unpacked.name):
                    uploads.remark(unpacked.name, reason)
                    continue
                unpacked = replace(unpacked, path=unpacked.path.with_suffix(_safe_suffix(unpacked.suffix)))
                with archive.open(entry) as source:
                    _extract_entry(source, unpacked.path, entry.file_size)
                yield unpacked
    except (DatasetError, FileError):
        raise
    except Exception as error:  # A hostile file makes Python's reader raise almost anything.
        if isinstance(error, OSError) and error.errno:
            raise DatasetError(f"cannot be read ({error.strerror})") from None
        raise DatasetError(f"is no zip file, or is damaged ({printable_name(str(error))}); pack it again") from None


def _safe_suffix(suffix: str) -> str:
    return suffix.lower() if suffix.lower() in {*SUFFIXES, *FOREIGN_SUFFIXES, *CAPTION_SUFFIXES} else ""


def _require_plausible(entries: Sequence[zipfile.ZipInfo], packed: int) -> None:
    """Raise DatasetError for more files, more bytes or a higher ratio than a set of images has."""
    if len(entries) > MAX_ENTRIES:
        raise DatasetError(f"holds {len(entries)} files; {MAX_ENTRIES} at most: pack fewer")
    size = sum(entry.file_size for entry in entries)
    if size > MAX_BYTES:
        raise DatasetError(f"unpacks to {format_bytes(size)}; {format_bytes(MAX_BYTES)} at most: pack less")
    if size > FREE and size > MAX_RATIO * packed:
        raise DatasetError(f"unpacks to {size // packed} times its size, which no pictures do; it is not opened")
    ends = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < ends:
            raise DatasetError("has files that lie upon one another, as no packer puts them; pack it again")
        ends = entry.header_offset + entry.compress_size
    if any(entry.flag_bits & 1 for entry in entries):
        raise DatasetError("is locked with a password; pack it without one")


def _refusal(entry: zipfile.ZipInfo, name: PurePosixPath) -> str:
    """Return the reason why an entry of a zip is skipped; empty if it is not."""
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link, not a file; pack the file itself"
    if name.suffix.lower() in ARCHIVES:
        return "is an archive inside the zip, which is not opened; unpack it first"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in a way that is not read here; pack an ordinary zip"
    if entry.file_size > MAX_IMAGE_BYTES:
        return f"has {format_bytes(entry.file_size)}; {format_bytes(MAX_IMAGE_BYTES)} at most: save it smaller"
    if entry.file_size > FREE and entry.file_size > MAX_RATIO * max(1, entry.compress_size):
        return "unpacks to far more than pictures do; it is left in the zip"
    return ""


def _extract_entry(source: IO[bytes], target: Path, declared: int) -> None:
    """Write an entry's content, and never more than was declared. Raises DatasetError if it is larger."""
    with file_errors(target), open(target, "xb") as file:
        while piece := source.read(_CHUNK):
            file.write(piece)
            if file.tell() > declared:
                raise DatasetError("holds more than it declares; it is not opened")
