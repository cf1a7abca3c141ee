"""Files of masks: which ones can be used, and those that a person paints; each change of these can be undone."""

import base64
import binascii
import hashlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from sdlora.data.images import ImageSize, inspect_image, open_mask, open_untrusted
from sdlora.data.masks import MASK_SUFFIX
from sdlora.data.undo_log import RecordedStep, UndoLog
from sdlora.errors import ConfigError, DatasetError
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.paths import path_inside
from sdlora.filesystem.writing import write_atomic
from sdlora.formatting import pluralize

DATA_URL = "data:image/png;base64,"
MAX_PAINTED_CHARACTERS = 4 << 20
"""Longest data URL of a painted mask: over five times what noise in grey takes at ``MAX_PAINTED_SIDE``."""
MAX_PAINTED_SIDE = 1024
"""Longest side of a painted mask in pixels; the picture that is painted on is a small copy."""
MAX_DISTORTION = 0.02
"""Largest relative difference of the ratios of a mask and its image."""


class MaskFiles:
    """The files ``NAME.mask.png`` beside the images in ``folder``, and the log by which changes are undone."""

    def __init__(self, folder: Path, history: UndoLog):
        self.folder = folder
        self.history = history

    def find(self, image: Path) -> Path | None:
        """Return the mask of ``image``, if it has one of this program's name."""
        path = mask_path(image)
        return path if path.is_file() else None

    def write(self, image: Path, painted: Image.Image) -> str:
        """Store a ``painted`` mask (L) at the size of ``image``, and return what was done, for people.

        One that is white throughout removes the mask, as it says nothing. Raises DatasetError for one that is black
        throughout or of another shape, ConfigError if the image has been removed meanwhile.
        """
        with exclusive(self.folder):
            self._require_there(image)
            size = inspect_image(image).size
            if not _has_shape(ImageSize(*painted.size), size):
                raise DatasetError(f"{image.name}: the mask has another shape than the picture; open it again")
            lowest, highest = painted.getextrema()
            if highest == 0:
                raise DatasetError(
                    f"{image.name}: the mask is black throughout, so nothing of the picture would count; paint what "
                    "counts, or remove the picture"
                )
            if lowest == 255:
                return self.remove(image)
            self.place(image, painted, partial(self.history.record, f"mask of {image.name}"))
        return f"The mask of {image.name} is saved: {_share(painted):.0%} of the picture counts."

    def remove(self, image: Path) -> str:
        """Remove the mask of ``image``, so that all of it counts, and return what was done, for people."""
        with exclusive(self.folder):
            if mask := self.find(image):
                self.history.record(f"removed the mask of {image.name}", [path_inside(self.folder, mask)])
        return f"{image.name} has no mask: all of it counts."

    def begin_change(self, what: str) -> "MaskChange":
        """Begin a change that is one step of the log, however many masks it writes; ``what`` describes it."""
        return MaskChange(self, what)

    def place(self, image: Path, mask: Image.Image, record: Callable[..., RecordedStep]) -> RecordedStep:
        """Write ``mask`` (L) at the size of ``image``, once ``record`` has put it into the log; return its step.

        Call it alone with the folder.
        """
        content = _as_png(mask.resize(inspect_image(image).size, Image.Resampling.BILINEAR))
        path, digest = path_inside(self.folder, mask_path(image)), hashlib.sha256(content).hexdigest()
        step = record(files=[path] if path.exists() else [], masks={path: digest})
        write_atomic(path, content)
        return step

    def _require_there(self, image: Path) -> None:
        if not path_inside(self.folder, image).is_file():
            raise ConfigError(f"{image.name}: is not in this project any more; its mask was not kept")


class MaskChange:
    """One step of the undo log, which grows with every mask."""

    def __init__(self, files: MaskFiles, what: str):
        self.files, self.what = files, what
        self.written = 0
        """Number of masks written so far."""
        self._step: RecordedStep | None = None

    def write(self, image: Path, mask: Image.Image, replaces: bool) -> bool:
        """Store ``mask`` (L) at the size of ``image``. Returns whether it was: not if the image has been removed
        meanwhile, or has got a mask that it ``replaces`` not.

        Raises DatasetError if the image cannot be read any more, FileError if the mask cannot be written.
        """
        files = self.files
        with exclusive(files.folder):
            if not image.is_file() or (files.find(image) and not replaces):
                return False
            what = f"{self.what} of {pluralize(self.written + 1, 'picture')}"
            self._step = files.place(image, mask, partial(files.history.extend, self._step, what))
            self.written += 1
        return True


def require_usable_mask(path: Path, size: ImageSize) -> str:
    """Return the digest of the mask of an image of ``size``.

    Raises DatasetError if it is no image, differs in shape from its image, or is all black.
    """
    facts = inspect_image(path)
    if not _has_shape(facts.size, size):
        raise DatasetError(
            f"is {facts.size.width} x {facts.size.height}, its picture {size.width} x {size.height}; "
            "make it of the same shape"
        )
    if open_mask(path).getextrema() == (0, 0):
        raise DatasetError("is black throughout: nothing of its picture would count; remove one of the two")
    return facts.key


def read_painted(data_url: object) -> Image.Image:
    """Return the mask (L) in a PNG data URL that a browser sent. Raises DatasetError for anything else."""
    if not isinstance(data_url, str) or not data_url.startswith(DATA_URL):
        raise DatasetError("what was sent as a mask is no PNG image; reload the page")
    if len(data_url) > MAX_PAINTED_CHARACTERS:
        raise DatasetError("what was sent as a mask is larger than any painted one; reload the page")
    try:
        content = base64.b64decode(data_url.removeprefix(DATA_URL), validate=True)
    except (binascii.Error, ValueError):
        raise DatasetError("what was sent as a mask is damaged; save it again") from None
    with tempfile.TemporaryDirectory(prefix="sdlora-") as folder:
        file = Path(folder, "mask.png")
        file.write_bytes(content)
        try:
            with open_untrusted(file) as image:
                side = max(image.size)
        except Exception:  # A hostile or broken file makes Pillow raise almost anything.
            side = 0
        if not 0 < side <= MAX_PAINTED_SIDE:
            raise DatasetError(f"what was sent as a mask is no PNG image of {MAX_PAINTED_SIDE} px at most")
        try:
            return open_mask(file)
        except DatasetError:
            raise DatasetError("what was sent as a mask is damaged; save it again") from None


def _has_shape(mask: ImageSize, image: ImageSize) -> bool:
    return abs(mask.width * image.height / (mask.height * image.width) - 1) < MAX_DISTORTION


def mask_path(image: Path) -> Path:
    """Return the file of this program's name for the mask of ``image``."""
    return image.with_name(image.stem + MASK_SUFFIX)


def _as_png(mask: Image.Image) -> bytes:
    content = io.BytesIO()
    mask.save(content, "PNG")
    return content.getvalue()


def _share(mask: Image.Image) -> float:
    """Return the part of a picture that its mask makes count, 0 to 1: the mean brightness."""
    counts = mask.histogram()
    return sum(level * count for level, count in enumerate(counts)) / (255 * sum(counts))
