"""Measures on features whose right order is known: directions in a plane, and images that are made for it."""

import math

import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from sdlora.evaluation import measures


def at(*degrees):
    """Unit vectors of a plane at these angles."""
    return torch.tensor([[math.cos(math.radians(each)), math.sin(math.radians(each))] for each in degrees])


TRAINING = at(-2, 0, 2)


def test_look_is_0_at_the_base_and_1_among_the_training_images():
    base = at(80, 90)
    assert measures.look(base, base, TRAINING).share == pytest.approx(0)
    found = measures.look(TRAINING, base, TRAINING)
    assert found.share == pytest.approx(1, abs=0.01)
    assert found.base == pytest.approx(math.cos(math.radians(85)), abs=0.01)
    halfway = measures.look(at(40, 45), base, TRAINING)
    assert 0.5 < halfway.share < 0.9  # A cosine falls slowly at first.


def test_look_orders_images_by_their_nearness():
    shares = [measures.look(at(angle), at(90), TRAINING).share for angle in (90, 60, 30, 10)]
    assert shares == sorted(shares) and shares[0] == pytest.approx(0)


def test_one_training_image_is_its_own_limit_and_a_base_that_has_the_look_gives_no_share():
    assert measures.look(at(0), at(90), at(0)).share == pytest.approx(1)
    assert measures.look(at(1), at(0), at(0)).share is None


def test_prompts_kept_is_the_share_of_the_bases_margin_over_other_prompts():
    texts = torch.eye(3)
    faithful, base = torch.eye(3), torch.nn.functional.normalize(torch.eye(3) + 0.3, dim=1)
    swapped = torch.eye(3)[[1, 2, 0]]
    assert measures.prompts_kept(base, base, texts, [0, 1, 2]).share == pytest.approx(1)
    assert measures.prompts_kept(faithful, base, texts, [0, 1, 2]).share > 1
    assert measures.prompts_kept(swapped, base, texts, [0, 1, 2]).share < 0
    same = torch.nn.functional.normalize(torch.ones(3, 3), dim=1)
    found = measures.prompts_kept(same, base, texts, [0, 1, 2])
    assert found.share == pytest.approx(0, abs=1e-6)  # Equally near to all prompts: whatever its CLIP-T, none is kept.
    assert found.value == pytest.approx(1 / math.sqrt(3)) and found.base > found.value


def test_prompts_are_kept_where_images_are_read_as_well_as_the_training_pictures():
    """CLIP reads a look worse than the base's own, or a training picture better than the base: the lesser counts."""
    texts = torch.eye(3)
    blurred, sharp = (torch.nn.functional.normalize(torch.eye(3) + each, dim=1) for each in (1.0, 0.1))
    poor, good = (measures.Described(each, texts) for each in (blurred, torch.eye(3)))
    assert measures.prompts_kept(blurred, sharp, texts, [0, 1, 2]).share < 0.7
    kept = measures.prompts_kept(blurred, sharp, texts, [0, 1, 2], poor)
    assert kept.share == pytest.approx(1) and kept.training == pytest.approx(kept.value)
    assert measures.prompts_kept(blurred, sharp, texts, [0, 1, 2], good).share < 0.7


def test_drift_is_1_where_images_change_as_if_another_thing_had_been_asked_for():
    base, others = at(0, 10), at(60, 70)
    assert measures.drift(base, base, others).share == pytest.approx(0, abs=1e-4)
    assert measures.drift(at(60, 70), base, others).share == pytest.approx(1, abs=0.05)
    found = measures.drift(at(20, 30), base, others)
    assert found.share == pytest.approx(0.12, abs=0.01) and found.value == pytest.approx(1 - math.cos(math.radians(20)))
    assert measures.drift(at(5, 5), base, at(5, 5)).share == pytest.approx(1, abs=1e-4)


def test_diversity_is_the_share_of_the_bases_distance_between_seeds():
    base = at(0, 20, 50, 70)
    assert measures.diversity(base, base, 2).share == pytest.approx(1)
    assert measures.diversity(at(0, 0, 50, 50), base, 2).share == pytest.approx(0, abs=1e-4)
    assert measures.diversity(at(0, 5, 50, 55), base, 2).share < 0.2
    assert measures.diversity(at(0), at(0), 1) is None


def test_the_nearest_image_is_0_as_among_training_images_and_1_for_a_copy():
    training, base = at(0, 20, 40), at(120, 130)
    assert measures.nearest(training, base, training).share == pytest.approx(1)
    assert measures.nearest(at(60), base, training).share == pytest.approx(0, abs=1e-5)
    assert measures.nearest(base, base, training).share < 0
    assert measures.nearest(at(3), base, training).share > measures.nearest(at(10), base, training).share
    assert measures.nearest(at(0), base, at(0)).share is None


def test_the_training_image_that_most_are_nearest_to_is_named():
    assert measures.most_frequent_nearest(at(31, 29, 33, 2), at(0, 30, 60), ["a.png", "b.png", "c.png"]) == "b.png"


def scene(left, colour="white", top=20):
    image = Image.new("RGB", (96, 96), "#303030")
    ImageDraw.Draw(image).ellipse((left, top, left + 40, top + 40), fill=colour)
    return image


TRAINING_SCENES = [scene(5), scene(28, top=50)]


def copies(*images):
    """The figure of copies among ``images``, asked for by the captions of the two scenes, and the scene copied."""
    base = [scene(28), scene(45, top=30)]
    return measures.copies(*map(measures.details, (images, base, TRAINING_SCENES)), [[0], [1]])


def test_a_copy_is_told_whatever_its_colours_and_its_side():
    for copy in (scene(6, "#ffe0c0"), ImageOps.mirror(scene(5)), scene(5)):
        figure, picture = copies(copy, scene(45, top=30))
        assert figure.share > 0.8 and picture == 0 and figure.base < 0.7 < figure.value


def test_what_the_base_makes_of_a_caption_is_no_copy():
    figure, _ = copies(scene(28), scene(45, top=30))
    assert figure.share == pytest.approx(0, abs=1e-5) and figure.value == pytest.approx(figure.base)
    assert copies(scene(28, top=45), scene(5))[0].share < 0.5  # Copies of each other's picture are none of their own.


def test_of_several_images_of_a_caption_the_nearest_is_named():
    asked, base = measures.details([scene(28, top=50)]), measures.details([scene(28)])
    figure, picture = measures.copies(asked, base, measures.details(TRAINING_SCENES), [[0, 1]])
    assert picture == 1 and figure.share == pytest.approx(1)
