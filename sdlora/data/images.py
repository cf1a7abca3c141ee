"""Image files: validate before decoding, open upright in RGB, crop to a bucket, convert to pixels.

Front ends may import this: torch is imported by the functions that return tensors.
"""

import io
import mmap
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from PIL import Image

from sdlora.data.color_profiles import UnusableProfileError, to_srgb
from sdlora.data.deep_grey import is_deep, is_plain_16_bit, to_8_bits
from sdlora.data.image_formats import FORMATS, content_refusal, is_jxl, register_packages
from sdlora.data.jpeg_xl import require_plain_jxl
from sdlora.errors import DatasetError
from sdlora.filesystem.reading import sha256
from sdlora.formatting import first_line, format_bytes

if TYPE_CHECKING:
    import torch

# Pillow warns of odd EXIF and large images: this module has its own rules (threads rule out catch_warnings).
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 8192 * 8192
MAX_FILE_BYTES = 200_000_000
MAX_READS = 200_000
"""Reads of one image: a PNG of the largest size has 75,000, a file of empty pieces as many as it has bytes."""
MAX_SCANS = 100
"""Scans of a JPEG: a progressive one has about ten. Each goes over all pixels, and may have no more than 50 bytes."""
MIN_SIDE = 32
MAX_RATIO = 8

_ANIMATED = frozenset(("PNG", "WEBP", "GIF", "TIFF", "AVIF", "HEIF"))
"""Formats whose further frames are named; not MPO: phones add a preview frame to plain JPEGs."""
_JPEG = ("JPEG", "MPO")
_TURNED = ("TIFF", "HEIF", "JXL")
"""Formats whose reader turns an image upright by itself, whatever EXIF says; not a JPEG that is packed as JPEG XL."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Colors = Literal["as stored", "converted", "damaged profile"]


class ImageSize(NamedTuple):
    """Width and height, in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class ImageInfo:
    """Facts of an image file."""

    size: ImageSize
    """Its upright size."""
    animated: bool
    colors: Colors
    """Whether an embedded profile says that its colors are others than those of sRGB."""
    digest: str
    """SHA-256 of its bytes."""
    key: str
    """Key of caches: the digest, and a mark where pixels are read in another way than they once were."""


class MaskedImage(NamedTuple):
    """An upright image (RGB, 8 bits) and the weight of its parts (L, same size; None if all parts count alike)."""

    rgb: Image.Image
    mask: Image.Image | None


def inspect_image(path: Path) -> ImageInfo:
    """Return the facts of an image that can be trained on; it is decoded once to make sure that it is complete.

    Raises DatasetError with the reason alone (``is empty (0 bytes)``); the caller names the file. Results are cached by
    modification time and length.
    """
    try:
        status = path.stat()
    except (OSError, RuntimeError) as error:
        raise DatasetError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError("is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file")
    return _inspect_image(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=20_000)
def _inspect_image(path: Path, length: int, modified: int) -> ImageInfo:
    if length == 0:
        raise DatasetError("is empty (0 bytes)")
    if length > MAX_FILE_BYTES:
        raise DatasetError(f"has {format_bytes(length)}; {format_bytes(MAX_FILE_BYTES)} at most: save it smaller")
    try:
        with open_untrusted(path) as image:
            stated = image.size
            size = ImageSize(*(stated[::-1] if _orientation(image) >= 5 else stated))
            _require_usable(size)
            animated = image.format in _ANIMATED and getattr(image, "is_animated", False)
            is_png = image.format == "PNG"
        if is_png:  # Pillow checks a PNG's checksums here, and not while it decodes
            with open_untrusted(path) as image:
                image.verify()
        with open_untrusted(path) as image:
            _draft(image, (1, 1))  # All the data is read, an eighth of the pixels is made.
            image.load()
            if image.format not in _JPEG and image.size not in (stated, stated[::-1]):
                raise DatasetError(f"has {image.width} x {image.height} pixels and says {stated[0]} x {stated[1]}")
            if image.has_transparency_data and _alpha(image).getextrema() == (0, 0):
                raise DatasetError("is fully transparent: nothing of it is visible")
            guessed = is_deep(image) and not is_plain_16_bit(image)
            pixel = image.resize((1, 1), Image.Resampling.NEAREST)
            colors = _in_srgb(pixel)[1]
            _to_rgb(pixel, "#ffffff")
        digest = sha256(path)
        return ImageInfo(size, animated, colors, digest, f"{digest}/range" if guessed else digest)
    except DatasetError:
        raise
    except PermissionError:
        raise DatasetError("cannot be read (permission denied)") from None
    except Exception as error:  # a hostile or broken file makes Pillow raise almost anything
        raise DatasetError(_rejection(path, error)) from None


class _BoundedReader(io.BufferedReader):
    """A file of which at most ``MAX_READS`` pieces are read: each costs time, and some memory."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise DatasetError(f"is in more than {MAX_READS} pieces, which no picture is; save it again")
        return super().read(size)


@contextmanager
def open_untrusted(path: Path) -> Iterator[Image.Image]:
    """Open a stranger's image, not decoded yet, of which neither size nor structure takes long.

    Raises DatasetError with the reason alone, and almost anything that Pillow raises.
    """
    register_packages()
    with _BoundedReader(io.FileIO(path)) as file:
        if is_jxl(file.peek(12)[:12]):
            _require_small(*require_plain_jxl(file))  # Opening it decodes it.
        with Image.open(file, formats=FORMATS) as image:
            _require_small(*image.size)
            if image.format in _JPEG:
                _require_few_scans(path)
            yield image


def _require_few_scans(path: Path) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = -1
        for _ in range(MAX_SCANS + 1):
            at = content.find(b"\xff\xda", at + 1)
            if at < 0:
                return
    raise DatasetError(f"goes over its pixels more than {MAX_SCANS} times, which no picture does; save it again")


def _require_small(width: int, height: int) -> None:
    """Raise DatasetError by the header alone, before any access that makes Pillow decode the image."""
    if width * height > MAX_PIXELS:
        limit = f"over {MAX_PIXELS / 1e6:.0f} million it is not opened"
        raise DatasetError(f"has {width} x {height} pixels; {limit}: scale it down")


def _require_usable(size: ImageSize) -> None:
    pixels = f"{size.width} x {size.height} pixels"
    if min(size) < MIN_SIDE:
        raise DatasetError(f"is too small ({pixels}); each side needs at least {MIN_SIDE}")
    if max(size) > MAX_RATIO * min(size):
        raise DatasetError(f"is too long for its width ({pixels}); the ratio may be 1:{MAX_RATIO} at most: crop it")


def _rejection(path: Path, error: Exception) -> str:
    if isinstance(error, DatasetError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"has too many pixels; over {MAX_PIXELS / 1e6:.0f} million it is not opened: scale it down"
    if isinstance(error, OSError) and error.errno:  # Pillow's own have none.
        return f"cannot be read ({error.strerror})"
    if isinstance(error, Image.UnidentifiedImageError):
        try:
            with open(path, "rb") as file:
                return content_refusal(file.read(64))
        except OSError as unreadable:
            return _rejection(path, unreadable)
    if "MAX_TEXT" in str(error):
        return "has over a megabyte of text beside its pixels; save it again without metadata"
    reason = first_line(error)
    return f"is damaged or cut short ({reason})" if "libjxl" not in reason else "is damaged or cut short"


def open_image(path: Path, background: str = "#ffffff", at_least: ImageSize | None = None) -> MaskedImage:
    """Open the first frame of an image, upright, in RGB, on ``background`` where it is transparent.

    ``at_least`` (upright) allows a large JPEG to be decoded at 1/2 to 1/8, still at twice that size or more. Colors of
    an embedded profile are converted to sRGB. The mask is the image's own transparency. Raises DatasetError naming the
    file if it cannot be decoded.
    """
    with _opened(path) as image:
        if at_least:
            wanted = (2 * at_least.width, 2 * at_least.height)
            _draft(image, wanted[::-1] if _orientation(image) >= 5 else wanted)
        upright = _in_srgb(_upright(image))[0]
        return MaskedImage(_to_rgb(upright, background), _transparency(upright))


def _draft(image: Image.Image, size: tuple[int, int]) -> None:
    """Have a JPEG decoded at 1/2 to 1/8. HEIC would give its thumbnail, which is another image."""
    if image.format in _JPEG:
        image.draft(None, size)


def orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 (upright) to 8. Raises DatasetError as ``open_image`` does."""
    with _opened(path) as image:
        return _orientation(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image that is no larger than allowed. Raises DatasetError naming the file for what fails in the block."""
    try:
        with open_untrusted(path) as image:
            yield image
    except Exception as error:
        raise DatasetError(f"{path}: {_rejection(path, error) if os.path.exists(path) else 'is gone'}") from error


def open_mask(path: Path) -> Image.Image:
    """Open a mask file as brightness (L), upright: white counts in full, black not at all, whatever its profile."""
    with _opened(path) as image:
        return _to_rgb(_upright(image), "#000000").convert("L")


def _upright(image: Image.Image) -> Image.Image:
    """Decode an image, and return it upright."""
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _in_srgb(image: Image.Image) -> tuple[Image.Image, Colors]:
    """Return an image with its colors in sRGB; as it is stored if its profile cannot be used."""
    try:
        converted = to_srgb(image)
    except UnusableProfileError:
        return image, "damaged profile"
    return converted, "as stored" if converted is image else "converted"


def _orientation(image: Image.Image) -> int:
    """Return EXIF orientation 1 to 8; 1 if it is missing or broken.

    Pillow decodes a PNG to look for it behind the pixels.
    """
    try:
        turned = image.format in _TURNED and not getattr(image, "jpeg", False)
        value = 1 if turned else image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF makes Pillow raise almost anything, and says nothing of the pixels
        return 1
    return value if value in _UPRIGHT else 1


def _transparency(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel (L), or None if the image is fully opaque."""
    if not image.has_transparency_data:
        return None
    alpha = _alpha(image)
    return None if alpha.getextrema() == (255, 255) else alpha


def _alpha(image: Image.Image) -> Image.Image:
    return (image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).getchannel("A")


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if is_deep(image):
        return to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_pixels(image: Image.Image) -> "torch.Tensor":
    """Convert an RGB image to float32 (3, H, W) in [-1, 1]."""
    import numpy as np
    import torch

    values = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
