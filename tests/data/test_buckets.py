"""Training sizes: their areas, their steps, and which picture goes where."""

import pytest

from sdlora.data.buckets import bucket_sizes, bucket_step, nearest_bucket
from sdlora.data.images import ImageSize


@pytest.mark.parametrize(("resolution", "step"), [(64, 8), (128, 16), (256, 32), (512, 64), (1024, 64), (500, 8)])
def test_the_step_leaves_some_ratios_at_every_size(resolution: int, step: int) -> None:
    assert bucket_step(resolution) == step
    assert len(bucket_sizes(resolution, step)) >= 7


@pytest.mark.parametrize("resolution", [64, 100, 128, 500, 512, 768, 1000, 1024])
def test_every_size_keeps_to_the_area_and_the_step(resolution: int) -> None:
    step = bucket_step(resolution)
    sizes = bucket_sizes(resolution, step)
    assert all(w % step == 0 == h % step and w * h <= resolution**2 for w, h in sizes)
    assert all(max(size) <= 2 * resolution for size in sizes)
    assert {ImageSize(h, w) for w, h in sizes} == set(sizes)  # as many tall as wide ones
    ratios = [w / h for w, h in sizes]
    assert ratios == sorted(set(ratios))


def test_sizes_at_512_are_those_of_sd_scripts() -> None:
    # sd-scripts, BucketManager.make_buckets with min 256, max 1024, step 64, without the smaller twins of a width
    assert bucket_sizes(512, 64)[:5] == ((256, 1024), (320, 768), (384, 640), (448, 576), (512, 512))


def test_without_buckets_all_is_square() -> None:
    assert bucket_sizes(128, 16, buckets=False) == ((128, 128),)


@pytest.mark.parametrize(
    ("picture", "size"),
    [((781, 780), (128, 128)), ((4000, 3000), (144, 112)), ((300, 2400), (64, 256)), ((1920, 1080), (160, 96))],
)
def test_the_nearest_ratio_is_chosen(picture: tuple[int, int], size: tuple[int, int]) -> None:
    assert nearest_bucket(ImageSize(*picture), bucket_sizes(128, 16)) == size
