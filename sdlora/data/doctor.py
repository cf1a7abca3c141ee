"""What is wrong with a set of pictures, or could be better, in plain words, before an hour goes into training on it.

Front ends may import this: no torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sdlora.data import near_duplicates
from sdlora.data.buckets import assign_buckets, bucket_step
from sdlora.data.captions import with_trigger
from sdlora.data.dataset import MIN_IMAGES, Example, FolderSurvey, image_files, summarize_names, survey_folder
from sdlora.data.images import ImageSize, crop_box, inspect_image, open_image, orientation
from sdlora.data.settings import Data
from sdlora.errors import DatasetError
from sdlora.events import OnProgress
from sdlora.formatting import pluralize

Severity = Literal["must", "could", "fine"]
"""To be mended first; could be better; taken care of, and said so that it surprises nobody."""
RECOMMENDED_IMAGES = 8
"""Pictures from which a style or a subject is learnt rather than copied: a dozen is what the field advises."""
MAX_CROPPED = 0.15
"""A picture that loses more of its area to its training shape is named: neighbouring shapes cost less than that."""
MAX_DUPLICATES = 0.6
"""Share of pictures in one group of look-alikes from which the whole set counts as one picture."""
_WORKERS = 4
_GROUPS = 4


@dataclass(frozen=True)
class Finding:
    """One thing to know of a set: how much it matters, a sentence with its remedy, the pictures it concerns."""

    severity: Severity
    label: str
    """A word or two for the cards of those pictures."""
    text: str
    images: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class PixelCheck:
    """What the pixels of one picture tell: whether EXIF turns it, whether it is transparent, how to compare it."""

    rotated: bool
    transparent: bool
    grids: near_duplicates.Grids


@dataclass(frozen=True)
class _DatasetUnderCheck:
    """The data set that the checks judge."""

    data: Data
    resolution: int
    """Side in pixels of the square whose area training images get."""
    examples: Sequence[Example]
    sizes: Sequence[ImageSize]
    """The bucket of each example."""
    pixels: Sequence[PixelCheck] = ()
    """The pixels of each example, as far as ``PIXEL_CHECKS`` run."""


def check_dataset(data: Data, native_size: int, on_progress: OnProgress | None = None) -> list[Finding]:
    """All findings on ``data.folder``, what matters most first.

    ``native_size``: the base model's own side in pixels, for where ``data.resolution`` is not set. ``on_progress`` is
    told pictures. A second look at unchanged files costs next to nothing.
    """
    _check_all_pixels(image_files(data.folder), on_progress)
    try:
        found = survey_folder(data)
    except DatasetError as error:
        return [Finding("must", "", f"{error}.")]
    resolution = data.resolution or native_size
    examples, pixels = _readable(found.examples)
    sizes = assign_buckets(examples, resolution, bucket_step(resolution), data.buckets)
    dataset = _DatasetUnderCheck(data, resolution, examples, sizes, pixels)
    findings = [*_unusable(found), *(finding for check in (*CHECKS, *PIXEL_CHECKS) for finding in check(dataset))]
    findings += [Finding("fine", "", notice) for notice in found.notices]
    order = {"must": 0, "could": 1, "fine": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def training_notices(data: Data, resolution: int, examples: Sequence[Example], sizes: Sequence[ImageSize]) -> list[str]:
    """Return what a run reports of its examples and their buckets (``sizes``), without decoding an image.

    The findings are those of ``check_dataset``, except advice on the set as a whole.
    """
    dataset = _DatasetUnderCheck(data, resolution, examples, sizes)
    findings = [finding for check in CHECKS for finding in check(dataset)]
    return [finding.text for finding in findings if finding.severity == "must" or finding.images]


def exact_copies(examples: Sequence[Example]) -> list[Finding]:
    """Find files that equal another one to the byte."""
    first: dict[str, Example] = {}
    copies = [example for example in examples if first.setdefault(example.digest, example) is not example]
    if not copies:
        return []
    named = "; ".join(f"{copy.path.name} is {first[copy.digest].path.name}" for copy in copies[:_GROUPS])
    more = "; ..." if len(copies) > _GROUPS else ""
    text = f"The same file twice: {named}{more}. Remove the copies: each counts again."
    return [Finding("could", "copy", text, _paths(copies))]


def _check_all_pixels(paths: Sequence[Path], on_progress: OnProgress | None) -> None:
    """Judge and measure each picture, several at a time; both answers are kept."""

    def both(path: Path) -> None:
        with suppress(DatasetError):  # The survey names what cannot be used.
            inspect_image(path)
            check_pixels(path)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for done, _ in enumerate(pool.map(both, paths), 1):
            if on_progress is not None:
                on_progress(done, len(paths))


def check_pixels(path: Path) -> PixelCheck:
    """What the pixels of ``path`` tell, kept by modification time and length. Raises DatasetError if it is damaged."""
    status = path.stat()
    return _check_pixels(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4000)  # of 20 kB each
def _check_pixels(path: Path, length: int, modified: int) -> PixelCheck:
    picture = open_image(path, at_least=ImageSize(near_duplicates.WORKING_SIZE, near_duplicates.WORKING_SIZE))
    return PixelCheck(orientation(path) > 1, picture.mask is not None, near_duplicates.comparison_grids(picture.rgb))


def _readable(examples: Iterable[Example]) -> tuple[tuple[Example, ...], tuple[PixelCheck, ...]]:
    """The examples that can still be opened, with their looks."""
    pairs = []
    for example in examples:
        with suppress(DatasetError, OSError):  # Taken away since it was listed: the next look will not list it.
            pairs.append((example, check_pixels(example.path)))
    return tuple(example for example, _ in pairs), tuple(seen for _, seen in pairs)


def _unusable(found: FolderSurvey) -> list[Finding]:
    return [Finding("must", "unusable", f"{line}.", (found.root / line.split(": ")[0],)) for line in found.problems]


def _paths(examples: Iterable[Example]) -> tuple[Path, ...]:
    return tuple(example.path for example in examples)


def _too_few(dataset: _DatasetUnderCheck) -> list[Finding]:
    number = len(dataset.examples)
    if number < MIN_IMAGES:
        pictures = pluralize(number, "picture")
        text = f"Only {pictures}: the adapter will copy rather than learn; add at least {MIN_IMAGES}, better ten."
        return [Finding("must", "", text)]
    if number < RECOMMENDED_IMAGES:
        return [Finding("could", "", f"{pluralize(number, 'picture')} can do; ten or more show better what is meant.")]
    return []


def _near_duplicates(dataset: _DatasetUnderCheck) -> list[Finding]:
    """Pictures that are nearly the same; exact copies are left to ``exact_copies``."""
    places = list({example.digest: place for place, example in reversed(list(enumerate(dataset.examples)))}.values())
    places.sort()
    pairs = _alike(tuple(dataset.pixels[place] for place in places))
    if not pairs:
        return []
    names = [dataset.examples[place].path for place in places]
    sets = near_duplicates.group_duplicates(pairs)
    largest = max(map(len, sets))
    if largest >= MIN_IMAGES and largest > MAX_DUPLICATES * len(names):
        text = (
            f"{largest} of {len(names)} pictures are nearly the same: the adapter would copy that one. "
            "Add others: other places, sides, light."
        )
        return [Finding("must", "alike", text, tuple(names[i] for group in sets for i in group))]
    mirrored = {frozenset(pair[:2]) for pair in pairs if pair.mirrored}
    said = [
        " and ".join(names[i].name for i in group) + (" (mirrored)" if frozenset(group) in mirrored else "")
        for group in sets[:_GROUPS]
    ]
    text = (
        f"Nearly the same picture: {'; '.join(said)}{'; ...' if len(sets) > _GROUPS else ''}. "
        "Keep the best of each, or what they share is learnt too well."
    )
    return [Finding("could", "alike", text, tuple(names[i] for group in sets for i in group))]


@lru_cache(maxsize=4)
def _alike(looks: tuple[PixelCheck, ...]) -> tuple[near_duplicates.DuplicatePair, ...]:
    """Kept for the same looks: captions change more often than pictures do."""
    return tuple(near_duplicates.near_duplicates([seen.grids for seen in looks]))


def _shapes(dataset: _DatasetUnderCheck) -> list[Finding]:
    """What the training shapes do: enlarge small pictures, cut long ones."""
    small, cut, most = [], [], 0.0
    for example, size in zip(dataset.examples, dataset.sizes, strict=True):
        left, top, right, bottom = crop_box(example.size, size, 0.5)
        lost = 1 - (right - left) * (bottom - top) / (example.width * example.height)
        if example.width < size.width or example.height < size.height:
            small.append(example)
        if lost > MAX_CROPPED:
            cut.append(example)
            most = max(most, lost)
    found = []
    if small:
        least = min(min(example.size) for example in small)
        text = (
            f"Smaller than the training size of {dataset.resolution} pixels: {_some(small)}; "
            f"the shortest side has {least}. "
            "They are enlarged, and the adapter learns their blur; use larger copies if there are any."
        )
        found.append(Finding("could", "small", text, _paths(small)))
    if cut:
        text = (
            f"Cropped to their training shape: {_some(cut)}. Up to {most:.0%} of the area is cut off; "
            "crop them by hand to keep what matters."
        )
        found.append(Finding("could", "cut", text, _paths(cut)))
    return found


def _repeats(dataset: _DatasetUnderCheck) -> list[Finding]:
    """Report the folders whose names ask for repeats (kohya's ``10_sks dog``)."""
    folders: dict[Path, list[Example]] = {}
    for example in dataset.examples:
        if example.repeats > 1:
            folders.setdefault(example.path.parent.resolve(), []).append(example)
    return [
        Finding("fine", "", f"{folder.name}: each picture is seen {own[0].repeats} times an epoch.", _paths(own))
        for folder, own in folders.items()
    ]


def _conversions(dataset: _DatasetUnderCheck) -> list[Finding]:
    """What is done with pictures that are turned or see-through."""
    rotated = [example for example, pixels in zip(dataset.examples, dataset.pixels, strict=True) if pixels.rotated]
    transparent = [
        example for example, pixels in zip(dataset.examples, dataset.pixels, strict=True) if pixels.transparent
    ]
    found = []
    if rotated:
        text = f"Turned upright as the camera noted (EXIF): {_some(rotated)}. Nothing to do."
        found.append(Finding("fine", "turned", text, _paths(rotated)))
    if transparent:
        ground = {"#ffffff": "white", "#000000": "black"}.get(dataset.data.background.lower(), dataset.data.background)
        weight = ", and what cannot be seen does not count" if dataset.data.masks else ""
        text = f"Transparent: {_some(transparent)}. They are laid on {ground}{weight}."
        found.append(Finding("fine", "transparent", text, _paths(transparent)))
    return found


def _captions(dataset: _DatasetUnderCheck) -> list[Finding]:
    """Captions that are missing, that lack the trigger, or that all say the same."""
    trigger, named = dataset.data.trigger.strip(), [example for example in dataset.examples if example.own_caption]
    empty = [example for example in dataset.examples if not example.own_caption]
    mute = [example for example in empty if not example.caption]
    found = []
    if mute:
        remedy = "give a trigger word, or write captions"
        text = f"No caption: {_some(mute)}. No word in a prompt would call what is learnt: {remedy}."
        found.append(Finding("must", "no caption", text, _paths(mute)))
    elif empty and named:
        text = (
            f"Without a caption of their own: {_some(empty)}; training says “{empty[0].caption}”. "
            "Write what is to be seen, as for the others."
        )
        found.append(Finding("could", "no caption", text, _paths(empty)))
    elif len(empty) >= MIN_IMAGES:
        text = (
            f"No picture has a caption; training says “{empty[0].caption}” of each. That works; "
            "a few words on what each shows let prompts steer more."
        )
        found.append(Finding("could", "", text))
    without = [example for example in named if with_trigger(example.own_caption, trigger) != example.own_caption]
    if without:
        text = (
            f"Captions without the trigger “{trigger}”: {_some(without)}. Training puts it in front; "
            "add it yourself to say where."
        )
        found.append(Finding("could", "no trigger", text, _paths(without)))
    said = Counter(example.own_caption.lower() for example in named)
    if (
        len(dataset.examples) >= MIN_IMAGES
        and len(said) == 1
        and len(named) == len(dataset.examples)
        and not _is_name(dataset)
    ):
        text = f"All captions are the same: “{named[0].own_caption}”. Say what differs, so that it can be asked for."
        found.append(Finding("could", "", text))
    return found


def _is_name(dataset: _DatasetUnderCheck) -> bool:
    """Whether the one caption of all is no more than trigger and class, which is how a subject is often captioned."""
    words = f"{dataset.data.trigger} {dataset.data.class_name}".lower().split()
    return set(dataset.examples[0].own_caption.lower().replace(",", " ").split()) <= {
        *words,
        "a",
        "an",
        "the",
        "photo",
        "of",
    }


def _some(examples: Sequence[Example]) -> str:
    return summarize_names([example.path.name for example in examples])


_Check = Callable[[_DatasetUnderCheck], list[Finding]]
CHECKS: tuple[_Check, ...] = (_too_few, lambda dataset: exact_copies(dataset.examples), _captions, _shapes, _repeats)
"""Checks that need no pixels."""
PIXEL_CHECKS: tuple[_Check, ...] = (_near_duplicates, _conversions)
"""Checks that compare or describe pixels."""
