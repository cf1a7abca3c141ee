"""Buckets: a few training sizes of about the same area; each image goes to the one nearest to its own ratio.

Front ends may import this: no torch.
"""

import math
from collections.abc import Sequence

from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize

LARGEST_STEP = 64
"""Pixels between the sides of neighbouring buckets at 512 px and more, as in sd-scripts."""
STEPS_PER_SIDE = 8
LONGEST = 2
"""Longest side of a bucket, as a multiple of the square's: ratios go from 1:4 to 4:1."""


def bucket_step(resolution: int, factor: int = 8) -> int:
    """Return the pixels between neighbouring sides: 64 at 512 px, 16 at 128 px.

    It is a multiple of ``factor``, the pixels per latent, and divides ``resolution`` if possible. Otherwise it is
    ``factor`` itself, so that the square keeps nearly all of its area.
    """
    most = max(factor, min(LARGEST_STEP, resolution // STEPS_PER_SIDE))
    fitting = (step for step in range(most - most % factor, 0, -factor) if resolution % step == 0)
    return next(fitting, factor)


def bucket_sizes(resolution: int, step: int, buckets: bool = True) -> tuple[ImageSize, ...]:
    """List all training sizes, narrowest first: sides are multiples of ``step``, the area is at most ``resolution``
    squared.

    Without ``buckets``, only the square.
    """
    square = max(step, resolution // step * step)
    if not buckets:
        return (ImageSize(square, square),)
    narrow = []
    for width in range(step, square + 1, step):
        height = resolution * resolution // width // step * step
        if width < height <= LONGEST * resolution:
            narrow.append(ImageSize(width, height))
    return (*narrow, ImageSize(square, square), *(ImageSize(height, width) for width, height in reversed(narrow)))


def nearest_bucket(size: ImageSize, sizes: Sequence[ImageSize]) -> ImageSize:
    """Choose the bucket whose log ratio is nearest to that of ``size``; of equally near ones, the larger."""
    ratio = math.log(size.width / size.height)
    return min(sizes, key=lambda s: (round(abs(math.log(s.width / s.height) - ratio), 9), -s.width * s.height))


def assign_buckets(
    examples: Sequence[Example], resolution: int, step: int, buckets: bool = True
) -> tuple[ImageSize, ...]:
    """Return the bucket of every example, in order."""
    sizes = bucket_sizes(resolution, step, buckets)
    return tuple(nearest_bucket(example.size, sizes) for example in examples)
