"""The measure of looks, tried on drawings of which the look is known."""

from functools import cache

import pytest

from tools.pocket.look_measure import KINDS, OWN, LookMeasure, drawings
from tools.pocket.painters import PAINTERS

LOOKS = ("stained glass", "neon")


@cache
def measure(look):
    return LookMeasure(PAINTERS[look], through=list)


@cache
def drawn(look):
    return drawings([PAINTERS[look]], 24, seed=500)


@cache
def base():
    return drawings(OWN, 24, seed=500)


@pytest.mark.parametrize("look", LOOKS)
def test_a_true_drawing_scores_above_one_in_a_style_of_the_base(look):
    for name, discriminant in measure(look).discriminants.items():
        true, others = discriminant.scores(drawn(look)), discriminant.scores(base())
        assert (true[:, None] > others).mean() > 0.85, name


@pytest.mark.parametrize("look", LOOKS)
def test_the_base_has_nothing_of_a_look_its_true_drawings_all_and_half_of_them_half(look):
    found = measure(look)
    assert found.shares(base(), base(), drawn(look)) == pytest.approx(dict.fromkeys([*KINDS, "look"], 0.0))
    assert found.shares(drawn(look), base(), drawn(look)) == pytest.approx(dict.fromkeys([*KINDS, "look"], 1.0))
    half = [*drawn(look)[:12], *base()[12:]]
    assert found.shares(half, base(), drawn(look))["look"] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(("look", "other"), [LOOKS, LOOKS[::-1]])
def test_another_look_counts_little(look, other):
    assert measure(look).shares(drawn(other), base(), drawn(look))["look"] < 0.3


def test_what_is_further_than_the_true_drawings_counts_as_what_is_as_far_before_them():
    half = [*drawn("neon")[:12], *base()[12:]]
    shares = measure("neon").shares(drawn("neon"), base(), half)
    assert shares["colours"] == pytest.approx(2 - 1 / measure("neon").shares(half, base(), drawn("neon"))["colours"])
