"""Grey of more than 8 bits, 16- and 32-bit numbers and floats, as 8 bits.

Pillow's own conversion clips at 255, so that nearly all is white, and passes over what a TIFF says of its numbers.
"""

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

_PIXELS = 1 << 20
"""Pixels that are scaled at once: as numbers of 64 bits, all of them would take 2 GB."""
_EXPOSURES = 16
"""Largest float up to which brightness counts as that of 0 to 1 overexposed; more is a number of levels."""
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF 6.0."""
_UNSIGNED, _SIGNED = 1, 2


def is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def is_plain_16_bit(image: Image.Image) -> bool:
    """Return whether an image is grey of unsigned 16 bits, 0 for black, which needs no guess at its range."""
    return image.mode.startswith("I;16") and _tag(image, _PHOTOMETRIC, 1) != 0


def to_8_bits(image: Image.Image) -> Image.Image:
    """Return grey of 16 or 32 bits, or of floats, as 8 bits (L).

    Unsigned 16 bits are 0 to 65535, signed ones 0 to 32767. Of others the range is the least of 0 to 1 (floats), 0 to
    255 and 0 to 65535 that holds the largest value, else that value is white. Negative values, and what is no number,
    are black. ``image`` is as it was opened: the tags of a TIFF say what its numbers are.
    """
    import numpy as np

    values = np.asarray(image)
    if image.mode == "I" and _tag(image, _BITS, 0) == 32 and _tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED:
        values = values.view(np.uint32)  # Pillow reads them as signed: the upper half would be black.
    rows = range(0, image.height, max(1, _PIXELS // image.width))
    bands = [slice(row, row + rows.step) for row in rows]
    largest = max(_largest(values[band]) for band in bands)
    top = _white(image, largest)
    grey = np.empty(values.shape, np.uint8)
    for band in bands:
        finite = np.nan_to_num(values[band].astype(np.float64), nan=0, posinf=top, neginf=0)
        grey[band] = (finite.clip(0, top) * (255 / top)).round()
    return Image.fromarray(255 - grey if _tag(image, _PHOTOMETRIC, 1) == 0 else grey)


def _largest(values: "np.ndarray") -> float:
    import numpy as np

    return float(values[np.isfinite(values)].max(initial=0))


def _white(image: Image.Image, largest: float) -> float:
    """Return the value that is white."""
    if image.mode.startswith("I;16"):
        return 65535.0
    if image.mode == "I" and _tag(image, _BITS, 0) == 16 and _tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _SIGNED:
        return 32767.0
    if image.mode == "F" and largest <= _EXPOSURES:
        return max(1.0, largest)
    return next((top for top in (255.0, 65535.0) if largest <= top), largest)


def _tag(image: Image.Image, number: int, default: int) -> int:
    """Return the first value of a TIFF's tag; ``default`` without it, and for other formats."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)
