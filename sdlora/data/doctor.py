"""Checks of a data set: what is wrong with it or could be better, before hours go into training on it.

Front ends may import this: no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from sdlora.data import near_duplicates
from sdlora.data.buckets import assign_buckets, bucket_step
from sdlora.data.caption_checks import check_captions, check_wildcards, check_words
from sdlora.data.concepts import balance_notices, concept_label, load_concepts
from sdlora.data.cropping import crop_box
from sdlora.data.dataset import MIN_IMAGES, Example, FolderSurvey, image_files, survey_folder
from sdlora.data.findings import DatasetUnderCheck, Finding, PixelCheck, paths_of, summarize
from sdlora.data.folder_names import parse_kohya_folder
from sdlora.data.held_out import held_out_notices, split_share
from sdlora.data.images import ImageSize, inspect_image, open_image, orientation
from sdlora.data.settings import Concept, Data
from sdlora.errors import DatasetError
from sdlora.events import OnProgress, unwatched
from sdlora.families.known_words import KnownWords
from sdlora.formatting import pluralize

RECOMMENDED_IMAGES = 8
"""Number of images from which a style or a subject is learnt rather than copied; the field advises a dozen."""
MAX_CROPPED = 0.15
"""Share of its area that an image may lose to its bucket before it is named; neighbouring buckets cost less."""
MAX_DUPLICATES = 0.6
"""Share of images in groups of near duplicates above which the whole set counts as one image."""
_WORKERS = 4
_GROUPS = 4


def check_dataset(
    data: Data, native_size: int, on_progress: OnProgress = unwatched, known: KnownWords | None = None
) -> list[Finding]:
    """Return all findings on ``data.folder``, the most important first.

    ``native_size``: the base model's own side in pixels, used if ``data.resolution`` is not set. ``on_progress`` counts
    images. ``known``: the words that the base model knows, if they are few. A second call on unchanged files costs next
    to nothing.
    """
    with suppress(OSError):  # The survey says why.
        _check_all_pixels(image_files(data.folder), on_progress)
    try:
        found = survey_folder(data)
    except DatasetError as error:
        return [Finding("must", "", f"{error}.")]
    resolution = data.resolution or native_size
    examples, pixels = _readable(found.examples)
    sizes = assign_buckets(examples, resolution, bucket_step(resolution), data.buckets)
    held_out = split_share(examples, data.validation_share).held_out
    dataset = DatasetUnderCheck(data, resolution, examples, sizes, pixels, known, len(held_out))
    findings = [*_unusable(found), *(finding for check in (*CHECKS, *PIXEL_CHECKS) for finding in check(dataset))]
    findings += [Finding("fine", "", notice) for notice in (*found.notices, *held_out_notices(held_out))]
    return _most_important_first(findings)


def check_concepts(
    concepts: Sequence[Concept],
    native_size: int,
    on_progress: OnProgress = unwatched,
    known: KnownWords | None = None,
    labels: Sequence[str] = (),
) -> list[Finding]:
    """Return the findings on each of several ``concepts`` with its name, and on all together, as ``check_dataset``.

    ``labels`` name the concepts; without them, their numbers and triggers do.
    """
    if len(concepts) == 1:
        return check_dataset(concepts[0], native_size, on_progress, known)
    labels = labels or [concept_label(index, concept) for index, concept in enumerate(concepts)]
    findings = []
    for label, concept in zip(labels, concepts, strict=True):
        own = check_dataset(concept, native_size, on_progress, known)
        findings += [replace(finding, text=f"{label}: {finding.text}") for finding in own]
    with suppress(DatasetError):  # The findings on its concept say why.
        dataset = load_concepts(concepts)
        findings += shared_images(labels, dataset.examples)
        findings += [Finding("fine", "", notice) for notice in balance_notices(concepts, dataset.examples)]
    return _most_important_first(findings)


def _most_important_first(findings: Iterable[Finding]) -> list[Finding]:
    order = {"must": 0, "could": 1, "fine": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def training_notices(
    data: Data,
    resolution: int,
    examples: Sequence[Example],
    sizes: Sequence[ImageSize],
    known: KnownWords | None = None,
) -> list[str]:
    """Return what a run reports of its examples and their buckets (``sizes``), without decoding an image.

    The findings are those of ``check_dataset``, except advice on the set as a whole.
    """
    dataset = DatasetUnderCheck(data, resolution, examples, sizes, known=known)
    findings = [finding for check in CHECKS for finding in check(dataset)]
    return [finding.text for finding in findings if finding.severity == "must" or finding.images]


def concept_notices(
    concepts: Sequence[Concept],
    resolution: int,
    examples: Sequence[Example],
    sizes: Sequence[ImageSize],
    known: KnownWords | None = None,
) -> list[str]:
    """Return the ``training_notices`` of each concept, with its name if there are several, and what they share."""
    texts, labels = [], [concept_label(index, concept) for index, concept in enumerate(concepts)]
    for index, concept in enumerate(concepts):
        own = [(example, size) for example, size in zip(examples, sizes, strict=True) if index in example.concepts]
        found = training_notices(concept, resolution, [each for each, _ in own], [size for _, size in own], known)
        prefix = f"{labels[index]}: " if len(concepts) > 1 else ""
        texts += [f"{prefix}{text}" for text in found]
    return texts + [finding.text for finding in shared_images(labels, examples)]


def shared_images(labels: Sequence[str], examples: Sequence[Example]) -> list[Finding]:
    """Find files that two concepts, named by ``labels``, have: their triggers could not be told apart by them."""
    owners: dict[str, dict[int, Example]] = {}
    for example in examples:
        owners.setdefault(example.digest, {}).setdefault(example.concepts[0], example)
    found = []
    for shared in (each for each in owners.values() if len(each) > 1):
        named = " and ".join(f"{labels[i]} as {e.path.name}" for i, e in shared.items())
        text = f"The same file is in {named}. Keep it in one: both triggers would learn it."
        found.append(Finding("must", "shared", text, paths_of(shared.values())))
    return found


def exact_copies(examples: Sequence[Example]) -> list[Finding]:
    """Find files that equal another one to the byte."""
    first: dict[str, Example] = {}
    copies = [example for example in examples if first.setdefault(example.digest, example) is not example]
    if not copies:
        return []
    named = "; ".join(f"{copy.path.name} is {first[copy.digest].path.name}" for copy in copies[:_GROUPS])
    more = "; ..." if len(copies) > _GROUPS else ""
    text = f"The same file twice: {named}{more}. Remove the copies: each counts again."
    return [Finding("could", "copy", text, paths_of(copies))]


def _check_all_pixels(paths: Sequence[Path], on_progress: OnProgress) -> None:
    """Inspect every image and its pixels, several at a time; the results are cached."""

    def both(path: Path) -> None:
        with suppress(DatasetError):  # The survey names the unusable ones.
            inspect_image(path)
            check_pixels(path)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for done, _ in enumerate(pool.map(both, paths), 1):
            on_progress(done, len(paths))


def check_pixels(path: Path) -> PixelCheck:
    """Return the facts of ``path``, cached by modification time and length. Raises DatasetError if it is damaged."""
    status = path.stat()
    return _check_pixels(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4000)  # of 20 kB each
def _check_pixels(path: Path, length: int, modified: int) -> PixelCheck:
    image = open_image(path, at_least=ImageSize(near_duplicates.WORKING_SIZE, near_duplicates.WORKING_SIZE))
    return PixelCheck(orientation(path) > 1, image.mask is not None, near_duplicates.comparison_grids(image.rgb))


def _readable(examples: Iterable[Example]) -> tuple[tuple[Example, ...], tuple[PixelCheck, ...]]:
    """Return the examples that can still be opened, with their pixel facts."""
    pairs = []
    for example in examples:
        with suppress(DatasetError, OSError):  # Removed since it was listed: the next check will not list it.
            pairs.append((example, check_pixels(example.path)))
    return tuple(example for example, _ in pairs), tuple(pixels for _, pixels in pairs)


def _unusable(found: FolderSurvey) -> list[Finding]:
    return [Finding("must", "unusable", f"{line}.", (found.root / line.split(": ")[0],)) for line in found.problems]


def _too_few(dataset: DatasetUnderCheck) -> list[Finding]:
    number = len(dataset.examples) - dataset.held_out
    if number < MIN_IMAGES:
        pictures = pluralize(number, "picture")
        text = f"Only {pictures}: the adapter will copy rather than learn; add at least {MIN_IMAGES}, better ten."
        return [Finding("must", "", text)]
    if number < RECOMMENDED_IMAGES:
        return [Finding("could", "", f"{pluralize(number, 'picture')} can do; ten or more show better what is meant.")]
    return []


def _near_duplicates(dataset: DatasetUnderCheck) -> list[Finding]:
    """Find images that are nearly the same; ``exact_copies`` finds identical files."""
    first = {example.digest: i for i, example in reversed(list(enumerate(dataset.examples)))}
    indices = sorted(first.values())
    pairs = _alike(tuple(dataset.pixels[i] for i in indices))
    if not pairs:
        return []
    names = [dataset.examples[i].path for i in indices]
    sets = near_duplicates.group_duplicates(pairs)
    largest = max(map(len, sets))
    if largest >= MIN_IMAGES and largest > MAX_DUPLICATES * len(names):
        text = (
            f"{largest} of {len(names)} pictures are nearly the same: the adapter would copy that one. "
            "Add different ones: other places, angles, light."
        )
        return [Finding("must", "alike", text, tuple(names[i] for group in sets for i in group))]
    mirrored = {frozenset(pair[:2]) for pair in pairs if pair.mirrored}
    groups = [
        " and ".join(names[i].name for i in group) + (" (mirrored)" if frozenset(group) in mirrored else "")
        for group in sets[:_GROUPS]
    ]
    text = (
        f"Nearly the same picture: {'; '.join(groups)}{'; ...' if len(sets) > _GROUPS else ''}. "
        "Keep the best of each, or the adapter overfits on what they share."
    )
    return [Finding("could", "alike", text, tuple(names[i] for group in sets for i in group))]


@lru_cache(maxsize=4)
def _alike(pixels: tuple[PixelCheck, ...]) -> tuple[near_duplicates.DuplicatePair, ...]:
    """Find the pairs, cached: captions change more often than images do."""
    return tuple(near_duplicates.near_duplicates([one.grids for one in pixels]))


def _shapes(dataset: DatasetUnderCheck) -> list[Finding]:
    """Find images that their bucket enlarges or crops."""
    small, cut, most = [], [], 0.0
    for example, size in zip(dataset.examples, dataset.sizes, strict=True):
        left, top, right, bottom = crop_box(example.size, size, 0.5)
        lost = 1 - (right - left) * (bottom - top) / (example.size.width * example.size.height)
        if example.size.width < size.width or example.size.height < size.height:
            small.append(example)
        if lost > MAX_CROPPED:
            cut.append(example)
            most = max(most, lost)
    found = []
    if small:
        least = min(min(example.size) for example in small)
        text = (
            f"Smaller than the training size of {dataset.resolution} pixels: {summarize(small)}; "
            f"the shortest side has {least}. "
            "They are enlarged, and the adapter learns their blur; use larger copies if there are any."
        )
        found.append(Finding("could", "small", text, paths_of(small)))
    if cut:
        text = (
            f"Cropped to their training shape: {summarize(cut)}. Up to {most:.0%} of the area is cut off; "
            "crop them by hand to keep what matters."
        )
        found.append(Finding("could", "cut", text, paths_of(cut)))
    return found


def _subject_crops(dataset: DatasetUnderCheck) -> list[Finding]:
    """Report the images that are cropped to their subject, and those that lack the mask for it."""
    if dataset.data.crop != "subject":
        return []
    cropped = [example for example in dataset.examples if example.crop]
    without = [example for example in dataset.examples if example.mask is None]
    found = []
    if cropped:
        found.append(Finding("fine", "", f"Cropped to what the mask marks: {summarize(cropped)}.", paths_of(cropped)))
    if without:
        text = f"No mask to crop by: {summarize(without)}. Make some with sdlora mask, or paint them on the page."
        found.append(Finding("could", "no mask", text, paths_of(without)))
    return found


def _repeats(dataset: DatasetUnderCheck) -> list[Finding]:
    """Report the folders whose names ask for repeats (kohya's ``10_sks dog``)."""
    folders: dict[Path, list[Example]] = {}
    for example in dataset.examples:
        if example.repeats > 1:
            folders.setdefault(example.path.parent.resolve(), []).append(example)
    return [
        Finding("fine", "", f"{folder.name}: each picture is seen {own[0].repeats} times an epoch.", paths_of(own))
        for folder, own in folders.items()
    ]


def _several_names(dataset: DatasetUnderCheck) -> list[Finding]:
    """Offer to train kohya's folders of several names apart: together they are one data set of several captions."""
    folders = {example.path.parent: example.path for example in dataset.examples}
    root = dataset.data.folder.resolve()
    named = {folder: parse_kohya_folder(folder.name) for folder in folders if folder.parent.resolve() == root}
    texts = {words[1] for words in named.values() if words}
    if len(texts) < 2:
        return []
    text = (
        f"{' and '.join(sorted(texts)[:_GROUPS])} are trained together as one data set. To train each folder as a "
        f"concept with a trigger of its own, start with: sdlora train PRESET --from-kohya {dataset.data.folder}"
    )
    return [Finding("fine", "", text, tuple(path for folder, path in folders.items() if named.get(folder)))]


def _conversions(dataset: DatasetUnderCheck) -> list[Finding]:
    """Report images that are rotated or transparent, and how they are converted."""
    pairs = list(zip(dataset.examples, dataset.pixels, strict=True))
    rotated = [example for example, pixels in pairs if pixels.rotated]
    transparent = [example for example, pixels in pairs if pixels.transparent]
    found = []
    if rotated:
        text = f"Turned upright as the camera noted (EXIF): {summarize(rotated)}. Nothing to do."
        found.append(Finding("fine", "turned", text, paths_of(rotated)))
    if transparent:
        ground = {"#ffffff": "white", "#000000": "black"}.get(dataset.data.background.lower(), dataset.data.background)
        weight = ", and what cannot be seen does not count" if dataset.data.masks else ""
        text = f"Transparent: {summarize(transparent)}. They are laid on {ground}{weight}."
        found.append(Finding("fine", "transparent", text, paths_of(transparent)))
    return found


_Check = Callable[[DatasetUnderCheck], list[Finding]]
CHECKS: tuple[_Check, ...] = (
    _too_few,
    lambda dataset: exact_copies(dataset.examples),
    check_captions,
    check_wildcards,
    check_words,
    _shapes,
    _subject_crops,
    _repeats,
    _several_names,
)
"""Checks that need no pixels."""
PIXEL_CHECKS: tuple[_Check, ...] = (_near_duplicates, _conversions)
"""Checks that compare or describe pixels."""
