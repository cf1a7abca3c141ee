"""The drawn world: the same picture every time, parts of it kept out of training, captions that fit."""

import numpy as np
import pytest

from tools.pocket import captions, painters, world
from tools.pocket.pool import EXAM_OFFSET, label


@pytest.mark.parametrize("style", world.STYLES + world.UNSEEN_STYLES)
def test_a_picture_depends_on_its_arguments_alone(style):
    first = np.asarray(world.draw("cat", "red", "on grass", style, 3))
    assert first.shape == (128, 128, 3)
    assert (first == np.asarray(world.draw("cat", "red", "on grass", style, 3))).all()
    assert (first != np.asarray(world.draw("cat", "red", "on grass", style, 4))).any()


@pytest.mark.parametrize("thing", world.OBJECTS)
@pytest.mark.parametrize("place", world.PLACES)
def test_the_object_stays_in_the_picture(thing, place):
    for seed in range(5):
        shapes = world.scene(thing, "blue", place, seed)
        points = np.concatenate([p for s in shapes if s.role in ("object", "detail") for p in s.parts])
        assert points.min() > -0.05 and points.max() < 1.05
        assert 0.3 < np.ptp(points, axis=0).max() < 0.9


def test_each_object_at_each_place_lacks_one_colour():
    kept = world.combinations(kept_out=True)
    assert len(kept) == len(world.OBJECTS) * len(world.PLACES)
    assert len({(thing, place) for thing, _, place in kept}) == len(kept)
    assert not set(kept) & set(world.combinations(kept_out=False))


def test_training_never_draws_what_is_held_out_and_the_exam_draws_both():
    assert not any(world.held_out(*label(i)[:3]) for i in range(2000))
    assert [world.held_out(*label(EXAM_OFFSET + i)[:3]) for i in range(100)] == [False, True] * 50


def test_every_style_is_painted():
    assert set(world.STYLES + world.UNSEEN_STYLES) == set(painters.PAINTERS)
    assert not set(world.STYLES) & set(world.UNSEEN_STYLES)


def test_plain_captions():
    assert captions.caption("house", "red", "on grass") == "a red house on grass"
    assert captions.caption("cup", "orange", "in space", "clay") == "a clay model of an orange cup in space"
    assert captions.caption("tree", None, None) == "a tree"


def test_a_caption_says_what_it_is_told_and_nothing_else():
    rng = np.random.default_rng(0)
    for _ in range(300):
        full = ("boat", "purple", "in the city", "watercolor")
        words = captions.leave_out(rng, *full)
        text = captions.phrase(rng, *words)
        for word, message in zip(("boat", "purple", "the city", "watercolor"), words, strict=True):
            assert (word in text) == (message is not None), text


def test_fillers_name_nothing_of_the_world():
    words = set(" ".join(captions.FILLERS).split())
    assert not words & {
        *world.OBJECTS,
        *world.COLOURS,
        *world.STYLES,
        "grass",
        "sand",
        "snow",
        "water",
        "city",
        "space",
    }
