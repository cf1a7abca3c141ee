"""Embedded color profiles (ICC): numbers that were meant for another color space, as sRGB, which models are trained on.

Cameras and phones save Display P3, editors Adobe RGB or ProPhoto, printers' files CMYK.
"""

import io
from functools import lru_cache

from PIL import Image, ImageCms

LARGEST_PROFILE = 4 << 20
"""Bytes of a profile that is used: printers' largest have half of it."""
INVISIBLE = 2
"""Largest difference, of 255, by which a profile counts as sRGB's own: there are many that differ by rounding."""
GRID = (0, 51, 102, 153, 204, 255)
"""Levels of each channel that a profile is tried on."""


class UnusableProfileError(Exception):
    """A profile that is damaged, too large, or of another kind of image."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Return a decoded image (L, LA, P, PA, RGB, RGBA, CMYK) with its colors in sRGB, as RGB or RGBA.

    It is returned as it is if it has no profile, that of sRGB, or a mode without one, such as grey of 16 bits. Raises
    UnusableProfileError.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
        return image
    if not isinstance(profile, bytes) or len(profile) > LARGEST_PROFILE:
        raise UnusableProfileError
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colors = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    if colors.mode == "L" and _color_space(profile) != "GRAY":
        colors = colors.convert("RGB")
    transform = _transform(profile, colors.mode)
    if transform is None:
        return image
    try:
        converted = ImageCms.applyTransform(colors, transform)
    except ImageCms.PyCMSError:
        raise UnusableProfileError from None
    if converted is None:
        raise UnusableProfileError
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):
        raise UnusableProfileError from None


@lru_cache(maxsize=64)
def _color_space(profile: bytes) -> str:
    try:
        return str(_open(profile).profile.xcolor_space).strip()
    except ValueError:  # Letters that are none.
        raise UnusableProfileError from None


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from ``profile`` to sRGB; None if it would change nothing that can be seen."""
    try:
        transform = ImageCms.buildTransform(_open(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode != "RGB":
            return transform
        levels = [(red, green, blue) for red in GRID for green in GRID for blue in GRID]
        colors = Image.new("RGB", (len(levels), 1))
        colors.putdata(levels)
        converted = ImageCms.applyTransform(colors, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        raise UnusableProfileError from None
    if converted is None:
        raise UnusableProfileError
    largest = max(abs(one - other) for one, other in zip(colors.tobytes(), converted.tobytes(), strict=True))
    return transform if largest > INVISIBLE else None
