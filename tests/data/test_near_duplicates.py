"""Near duplicates: what people do to copies is seen through, and other pictures are left alone.

The thresholds stand between the two: over the made samples and the photographs of four subjects, 46 pictures in all,
the changes below leave at most 0.11 of the hash's bits and 0.03 of the colours different, while the most alike two
different pictures, frames of one cartoon, differ in 0.14 of the bits.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sdlora.data.near_duplicates import DuplicatePair, comparison_grids, group_duplicates, near_duplicates

SAMPLES = sorted((Path(__file__).parents[2] / "sample_data").glob("*/*.png"))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


CHANGES = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "JPEG of low quality": lambda image: recompressed(image, 25),
    "darker": lambda image: image.point(lambda value: int(value * 0.8)),
    "a twentieth off every side's pair": lambda image: cut(image, 0.025, 0.025, 0.975, 0.975),
    "a tenth off one corner": lambda image: cut(image, 0, 0, 0.9, 0.9),
    "a tenth off one side": lambda image: cut(image, 0.1, 0, 1, 1),
    "between the cuts that are compared": lambda image: cut(image, 0.035, 0.035, 0.965, 0.965),
    "mirrored": ImageOps.mirror,
    "mirrored and cut": lambda image: cut(ImageOps.mirror(image), 0, 0, 0.95, 0.95),
    "cut, small and recompressed": lambda image: recompressed(cut(image, 0, 0.05, 0.95, 1).resize((160, 160)), 40),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_recognised(change):
    for path in SAMPLES[::4]:
        image = opened(path)
        assert len(near_duplicates([comparison_grids(image), comparison_grids(change(image))])) == 1, path


def test_different_pictures_of_one_style_or_subject_are_not_alike():
    assert len(SAMPLES) > 20
    assert near_duplicates([comparison_grids(opened(path)) for path in SAMPLES]) == []


def test_different_drawings_on_one_flat_ground_are_not_alike():
    drawings = []
    for place in range(3):
        image = Image.new("RGB", (256, 256), "white")
        image.paste("black", (20 + 70 * place, 100, 60 + 70 * place, 140))
        drawings.append(comparison_grids(image))
    assert near_duplicates(drawings) == []


def test_a_pair_says_whether_one_is_the_mirror_image():
    image = opened(SAMPLES[0])
    grids = [comparison_grids(each) for each in (image, ImageOps.mirror(image), image)]
    assert near_duplicates(grids) == [
        DuplicatePair(0, 1, True), DuplicatePair(0, 2, False), DuplicatePair(1, 2, True),
    ]  # fmt: skip


def test_likes_of_likes_are_one_group():
    assert group_duplicates([DuplicatePair(4, 5, False), DuplicatePair(0, 2, False), DuplicatePair(2, 7, True)]) == [
        [0, 2, 7],
        [4, 5],
    ]
    assert group_duplicates([]) == []


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_is_alike_among_fewer_than_two(number):
    assert near_duplicates([comparison_grids(Image.fromarray(np.zeros((50, 40, 3), np.uint8)))] * number) == []
