"""Read a folder of images and captions into examples, and report everything that is wrong with it before training.

Front ends may import this: no torch.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sdlora.data.captions import LISTED, caption_for, read_caption, read_listed_captions
from sdlora.data.cropping import CropBox
from sdlora.data.folder_names import (
    CAPTION_SUFFIXES,
    CAPTIONS_ARE,
    NO_DATA,
    OTHER_CAPTIONS,
    image_folders,
    is_image,
    parse_kohya_folder,
)
from sdlora.data.image_formats import FOREIGN_SUFFIXES, SUFFIXES, suffix_refusal
from sdlora.data.images import ImageInfo, ImageSize, inspect_image
from sdlora.data.mask_files import require_usable_mask
from sdlora.data.masks import MASK_SUFFIX, is_mask_folder, sort_masks
from sdlora.data.name_matching import CaselessNames
from sdlora.data.settings import Data
from sdlora.data.subject_crop import subject_box
from sdlora.errors import DatasetError
from sdlora.filesystem.paths import composed, existing_path
from sdlora.formatting import pluralize

MIN_IMAGES = 3
_WORKERS = 4
LINK_OUT = "is a link out of the data folder, or to nothing; put the file itself here"
_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One training image and its caption. Width and height are in pixels, upright."""

    path: Path
    caption: str
    """One line; with ``Data.wildcards`` it may have several, and choices in them."""
    width: int
    height: int
    mask: Path | None = None
    repeats: int = 1
    """Number of times that it is seen in an epoch (kohya's `10_sks dog`)."""
    digest: str = ""
    """SHA-256 of the image's bytes; the key of caches."""
    mask_digest: str = ""
    own_caption: str = ""
    """Its own caption, from a file of its own or from a list, with its lines, before anything is put around it."""
    concepts: tuple[int, ...] = (0,)
    """Number of its concept; of a class image, numbers of all concepts whose class it preserves."""
    masks: bool = True
    """Whether a mask or transparency weights its loss, where the run has masks."""

    crop: CropBox | None = None
    """Part of the image that is trained, in pixels of the upright image; None for all of it."""

    @property
    def image_size(self) -> ImageSize:
        """Size of the whole image."""
        return ImageSize(self.width, self.height)

    @property
    def size(self) -> ImageSize:
        """Size of what is trained of it."""
        return self.crop.size if self.crop else self.image_size


@dataclass(frozen=True)
class Dataset:
    """Examples of a folder in the order of their paths, and notices about them."""

    examples: tuple[Example, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderSurvey:
    """Everything found in a folder: usable examples, problems as lines ``name: reason``, and notices."""

    root: Path
    examples: tuple[Example, ...]
    problems: tuple[str, ...]
    notices: tuple[str, ...]
    files: int
    """Number of images, usable or not."""


@dataclass(frozen=True)
class _SourceFolder:
    """One folder to read: its files, and the repeats and caption in its name (kohya's convention)."""

    folder: Path
    images: list[Path]
    captions: dict[str, Path]
    masks: dict[str, Path]
    repeats: int = 1
    caption: str = ""
    listed: dict[str, str] = field(default_factory=dict)
    """Captions in a list in this folder, by the images' names."""
    listed_above: dict[str, str] = field(default_factory=dict)
    """Captions in the list of the folder above."""


@dataclass
class _Report:
    """Problems (lines ``name: reason``) and notices, collected while a folder is read."""

    root: Path
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """Return ``path`` below the data folder, without line breaks or marks that reverse text."""
        name = path.relative_to(self.root).as_posix()
        return name if name.isprintable() else ascii(name)

    def refuse(self, path: Path, reason: object) -> None:
        self.problems.append(f"{self.name(path)}: {reason}")

    def notice(self, fact: str, paths: Iterable[Path], remark: str, kind: str = "picture") -> None:
        """Add ``Several frames: 2 pictures (a.gif, b.gif); the first is used.``, if there are any."""
        names = [self.name(path) for path in paths]
        if names:
            self.notices.append(f"{fact}: {summarize_names(names, kind)}; {remark}.")


def summarize_names(names: Sequence[str], kind: str = "picture") -> str:
    """Return ``2 pictures (a.png, b.png)``, with only the first few names."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{pluralize(len(names), kind)} ({', '.join(names[:_SHOWN])}{more})"


def load_dataset(data: Data) -> Dataset:
    """Read the examples in ``data.folder`` and in the kohya folders (`10_sks dog`) directly below it.

    Raises one DatasetError that lists every unusable file, or reports that the folder holds no image.
    """
    found = survey_folder(data)
    if found.problems:
        raise DatasetError(
            f"{found.root}: {pluralize(len(found.problems), 'problem')} with {pluralize(found.files, 'picture')}; "
            "fix or remove these files, then start again\n" + "\n".join(f"  {line}" for line in found.problems)
        )
    return Dataset(found.examples, found.notices)


def survey_folder(data: Data) -> FolderSurvey:
    """List everything in ``data.folder``, usable or not.

    Raises DatasetError if the folder is missing, cannot be read, or holds no image at all.
    """
    root = existing_path(data.folder)
    if root is None or not root.is_dir():
        found = "is a file" if root else "does not exist"
        raise DatasetError(f"{data.folder}: {found}; point data.folder at the folder that holds the images")
    report = _Report(root)
    try:
        sources = _sources(root, report)
    except OSError as error:
        raise DatasetError(f"{error.filename or root}: cannot be read ({error.strerror})") from None
    if not any(source.images for source in sources) and not report.problems:
        raise DatasetError(_no_images_message(root))
    examples = [example for source in sources for example in _read_examples(source, data, report)]
    files = sum(len(source.images) for source in sources)
    return FolderSurvey(root, tuple(examples), tuple(report.problems), tuple(report.notices), files)


def image_files(folder: Path) -> list[Path]:
    """List the images that training would read below ``folder``, usable or not; none if there is no such folder.

    Raises OSError if it cannot be read.
    """
    return [path for source in _sources(folder, _Report(folder)) for path in source.images] if folder.is_dir() else []


def caption_files(folder: Path) -> list[Path]:
    """List the captions that training would read below ``folder``, usable or not; none if there is no such folder.

    Raises OSError if it cannot be read.
    """
    sources = _sources(folder, _Report(folder)) if folder.is_dir() else []
    own = [
        source.captions[stem] for source in sources for stem in dict.fromkeys(composed(p.stem) for p in source.images)
        if stem in source.captions
    ]  # fmt: skip
    return [*own, *(source.folder / LISTED for source in sources if source.listed)]


def _no_images_message(root: Path) -> str:
    files = [path for path in root.iterdir() if path.is_file() and not path.name.startswith(".")]
    below = (folder for folder, _ in image_folders(root) if not is_mask_folder(folder))
    found = next((path.parent if parse_kohya_folder(path.name) else path for path in below), root)
    hint = f" (such as {found.relative_to(root).as_posix()})" if found != root else ""
    return (
        f"{root}: no .png or .jpg among {pluralize(len(files), 'file')}; "
        f"point data.folder at the folder that holds the images{hint}"
    )


def _notice_unread(folder: Path, report: _Report, used: str) -> None:
    """Report the images at any depth below ``folder``, which is not read."""
    number = sum(count for _, count in image_folders(folder))
    if number:
        verb = "is" if number == 1 else "are"
        report.notices.append(f"{report.name(folder)}: its {pluralize(number, 'picture')} {verb} not used; {used}.")


def _sources(root: Path, report: _Report) -> list[_SourceFolder]:
    sources = [_list_folder(root, report, *(parse_kohya_folder(root.resolve().name) or (1, "")))]
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        named = parse_kohya_folder(folder.name)
        if folder.suffix.lower() in SUFFIXES or (is_mask_folder(folder) and sources[0].images):
            continue  # Listed above as an image that is a folder, and refused; or as masks.
        if named and not _is_inside(folder, root):
            report.refuse(folder, "is a link out of the data folder; copy the pictures here")
        elif named:
            sources.append(_list_folder(folder, report, *named))
            sources[-1].listed_above.update(_listed_below(sources[0], folder))
            for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
                if not (inner.name.startswith(".") or is_mask_folder(inner)):
                    _notice_unread(inner, report, "only those right in a folder named like `10_sks dog` are")
        else:
            _notice_unread(folder, report, "only sub-folders named like `10_sks dog` are")
    sources = [source for source in sources if source.images or source.listed]
    for source in sources:
        CaselessNames(composed(path.name) for path in source.images).rename(source.listed_above)
        _notice_strangers(source, sources, report)
    return [source for source in sources if source.images]


def _listed_below(source: _SourceFolder, folder: Path) -> dict[str, str]:
    """Return the captions that the list of ``source`` has for images right in ``folder`` below it."""
    paths = ((PurePosixPath(name), text) for name, text in source.listed.items())
    return {path.name: text for path, text in paths if path.parent.as_posix() == composed(folder.name)}


def _notice_strangers(source: _SourceFolder, sources: list[_SourceFolder], report: _Report) -> None:
    """Report the names in the folder's list of captions that no image has."""
    images = (path for each in sources for path in each.images if path.is_relative_to(source.folder))
    names = [composed(path.relative_to(source.folder).as_posix()) for path in images]
    CaselessNames(names).rename(source.listed)
    strangers = source.listed.keys() - {*names}
    if strangers:
        named = summarize_names(sorted(ascii(name)[1:-1] for name in strangers), "file")
        report.notices.append(f"{report.name(source.folder / LISTED)}: lists {named} that no picture here is called.")


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # A link to nothing, or to itself.
        return False


def _list_folder(folder: Path, report: _Report, repeats: int, caption: str) -> _SourceFolder:
    """Sort the files of one folder by role; refuse files that are meant for training but cannot be used."""
    source = _SourceFolder(folder, [], {}, {}, repeats, caption)
    unknown: list[Path] = []
    pictures: list[Path] = []
    for path in sorted(folder.iterdir()):
        name, suffix = path.name, path.suffix.lower()
        if name.startswith("."):
            continue
        if not (suffix in SUFFIXES or suffix in CAPTION_SUFFIXES or suffix in FOREIGN_SUFFIXES):
            if name == LISTED and path.is_symlink() and not _is_inside(path, report.root):
                report.refuse(path, LINK_OUT)
            elif name == LISTED and path.is_file():
                source.listed.update(_checked_list(path, report))
            elif path.is_file() and name.lower() not in NO_DATA:
                unknown.append(path)
        elif path.is_symlink() and not _is_inside(path, report.root):
            report.refuse(path, LINK_OUT)
        elif suffix in FOREIGN_SUFFIXES:
            report.refuse(path, suffix_refusal(suffix))
        elif suffix in SUFFIXES:
            pictures.append(path)
        else:
            if other := source.captions.get(composed(path.stem)):
                report.notices.append(f"{report.name(other)}: is not read, since {path.name} is.")
            source.captions[composed(path.stem)] = path
    _sort_pictures(source, pictures, report)
    CaselessNames(composed(path.stem) for path in source.images).rename(source.captions)
    captions = [path for path in unknown if path.suffix.lower() in OTHER_CAPTIONS]
    if source.images or source.captions:
        report.notice("Captions of other tools", captions, f"they are not read; {CAPTIONS_ARE}", "file")
        report.notice("Not read", [path for path in unknown if path not in captions], "they are no pictures", "file")
    _refuse_conflicts(source, report)
    return source


def _sort_pictures(source: _SourceFolder, pictures: list[Path], report: _Report) -> None:
    """Tell the images of one folder, and the masks, which may lie in a folder of their own, apart."""
    for inner in sorted(path for path in source.folder.iterdir() if is_mask_folder(path)) if pictures else ():
        files = sorted(path for path in inner.iterdir() if is_image(path))
        outside = [path for path in (inner, *files) if path.is_symlink() and not _is_inside(path, report.root)]
        for path in outside:
            report.refuse(path, LINK_OUT)
        if inner not in outside:
            pictures = [*pictures, *(path for path in files if path not in outside)]
    found = sort_masks(pictures)
    source.images.extend(found.images)
    for (_, stem), (mask, *others) in found.masks.items():
        source.masks[stem] = mask
        report.notices += [f"{report.name(other)}: is not read, since {report.name(mask)} is." for other in others]
    report.notices += [f"{report.name(path)}: belongs to no picture and is not used." for path in found.strays]


def _refuse_conflicts(source: _SourceFolder, report: _Report) -> None:
    """Refuse a caption or mask that belongs to two images; report one that belongs to none."""
    stems: dict[str, list[str]] = {}
    for path in source.images:
        stems.setdefault(composed(path.stem), []).append(path.name)
    names = CaselessNames(stems)
    for stem, path in (*source.captions.items(), *source.masks.items()):
        owners = stems.get(stem, [])
        if len(owners) > 1:
            report.refuse(path, f"belongs to {' and to '.join(owners)}; give the pictures different names")
        elif not owners and source.images:
            near = [name for key in names.near(stem) for name in stems[key]]
            reason = f"differs in case from {' and from '.join(near)}" if near[1:] else "belongs to no picture"
            report.notices.append(f"{report.name(path)}: {reason} and is not used.")


def _read_examples(source: _SourceFolder, data: Data, report: _Report) -> list[Example]:
    """Return the usable examples of one folder; add each unusable file to the report."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        infos = list(pool.map(_inspect_file, source.images))
    examples, listed = [], {**source.listed_above, **source.listed}
    for path, info in zip(source.images, infos, strict=True):
        stem = composed(path.stem)
        caption, mask = source.captions.get(stem), source.masks.get(stem) if data.reads_masks else None
        if isinstance(info, DatasetError):
            report.refuse(path, info)
        own = _checked_caption(caption, report) if caption else listed.get(composed(path.name), "")
        mask_digest = _checked_mask(mask, info, report) if mask and isinstance(info, ImageInfo) else ""
        if isinstance(info, ImageInfo):
            text = caption_for(own, data, source.caption)
            crop = subject_box(mask, info.size, data.crop_margin) if mask_digest and data.crop == "subject" else None
            example = Example(path, text, *info.size, mask, source.repeats, info.key, mask_digest, own, crop=crop)
            examples.append(example)
    masks = [example.mask for example in examples if example.mask]
    others = [mask for mask in masks if not mask.name.lower().endswith(MASK_SUFFIX)]
    report.notice("Masks of other tools", others, "they are used as NAME.mask.png is", "file")
    usable = [(path, info) for path, info in zip(source.images, infos, strict=True) if isinstance(info, ImageInfo)]
    report.notice("Several frames", (path for path, info in usable if info.animated), "the first is used")
    report.notice(
        "Colors of another space (Display P3, Adobe RGB, CMYK ...)",
        (path for path, info in usable if info.colors == "converted"),
        "they are converted to sRGB",
    )
    report.notice(
        "A color profile that cannot be used",
        (path for path, info in usable if info.colors == "damaged profile"), "their colors are taken as sRGB",
    )  # fmt: skip
    return examples


def _inspect_file(path: Path) -> ImageInfo | DatasetError:
    try:
        return inspect_image(path)
    except DatasetError as error:
        return error


def _checked_caption(path: Path, report: _Report) -> str:
    if not path.is_file():
        report.refuse(path, "is a folder" if path.is_dir() else "is no regular file")
        return ""
    try:
        return read_caption(path)
    except DatasetError as error:
        report.refuse(path, error)
        return ""


def _checked_list(path: Path, report: _Report) -> dict[str, str]:
    try:
        listed = read_listed_captions(path)
    except DatasetError as error:
        report.refuse(path, error)
        return {}
    if listed.without_text:
        entries = "1 entry" if listed.without_text == 1 else f"{listed.without_text} entries"
        report.notices.append(f"{report.name(path)}: {entries} without `file_name` or a caption in `text`.")
    return listed.captions


def _checked_mask(path: Path, image: ImageInfo, report: _Report) -> str:
    try:
        return require_usable_mask(path, image.size)
    except DatasetError as error:
        report.refuse(path, error)
        return ""
