"""Shapes of masks: what belongs to them, how far they grow, and how their edges fade."""

import numpy as np
import pytest
from PIL import Image

from sdlora.errors import ConfigError
from sdlora.masking.mask_shape import grow, shape_mask
from sdlora.masking.settings import MaskSettings

SIZE = (200, 100)


def square(level=255, background=0):
    """A map of probabilities with a square of 20 x 20 in its middle."""
    found = Image.new("L", SIZE, background)
    found.paste(level, (90, 40, 110, 60))
    return found


def shape(found, size=SIZE, **settings):
    return shape_mask(found, size, MaskSettings(**{"grow": 0.0, "feather": 0.0, **settings}))


def test_what_is_likely_enough_counts_in_full_and_the_rest_not_at_all():
    assert np.unique(np.asarray(shape(square(200, 50)))).tolist() == [0, 255]
    assert shape(square(200, 50)).getbbox() == (90, 40, 110, 60)
    assert shape(square(200, 50), threshold=0.1).getextrema() == (255, 255)


def test_soft_masks_keep_the_probabilities_above_the_threshold():
    assert np.unique(np.asarray(shape(square(200, 50), soft=True))).tolist() == [0, 200]


@pytest.mark.parametrize("found", [Image.new("L", SIZE), Image.new("L", SIZE, 60)])
def test_where_nothing_is_likely_enough_there_is_no_mask(found):
    assert shape(found) is None
    assert shape(Image.new("L", SIZE), threshold=0.0) is None


def test_a_mask_grows_by_a_share_of_the_longer_side():
    assert shape(square(), grow=0.05).getbbox() == (80, 30, 120, 70)
    assert shape(square(), grow=0.5).getextrema() == (255, 255)


@pytest.mark.parametrize("pixels", [0, 1, 2, 3, 5, 10])
def test_growth_is_a_dilation_by_a_square(pixels):
    rng = np.random.default_rng(pixels)
    mask = np.where(rng.random((24, 31)) < 0.02, rng.integers(1, 256, (24, 31)), 0).astype(np.uint8)
    padded = np.pad(mask, pixels)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * pixels + 1, 2 * pixels + 1))
    assert np.array_equal(grow(mask, pixels), windows.max((2, 3)))


def test_a_feathered_edge_is_half_where_the_sharp_one_was():
    mask = np.asarray(shape(square(), feather=0.04)).astype(int)
    assert mask[50, 100] > 240 and mask[50, 70] == 0
    assert abs(mask[50, 89:91].mean() - 127) < 8


def test_a_map_is_stretched_over_its_image_and_large_masks_stay_small():
    mask = shape(square().resize((352, 352)), size=(4000, 2000))
    assert mask.size == (1024, 512)
    assert np.allclose(mask.getbbox(), [461, 205, 563, 307], atol=3)


@pytest.mark.parametrize(
    "wrong", [{"mode": "add"}, {"threshold": 1.5}, {"grow": -0.1}, {"feather": 1}, {"batch_size": 0}]
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MaskSettings.checked(**wrong)
