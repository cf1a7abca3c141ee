"""The images that a run measures, and how often: by counts alone."""

from pathlib import Path

import pytest

from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize
from sdlora.data.settings import Concept
from sdlora.training.measured_images import SHARE, STEP_PASSES, plan_measurements
from sdlora.training.settings import Monitor

SIZE = ImageSize(64, 64)
STYLE = (Concept(folder="x"),)


def images(count, concept=0, folder="x"):
    return [
        (Example(Path(folder, f"{n}.png"), f"picture {n}", 64, 64, digest=f"{folder}{n}", concepts=(concept,)), SIZE)
        for n in range(count)
    ]


def plan(settings=None, steps=300, per_step=4, trained=10, held_out=0, seed=0, **others):
    return plan_measurements(
        settings or Monitor(), seed, steps, per_step, STYLE, images(trained), images(held_out, folder="y"), **others
    )


def passes(plan, steps, settings):
    """Predictions of all measurements, and of the base's losses."""
    points = [step for step in range(int(plan.is_base_at_start), steps + 1) if plan.is_due(step, steps)]
    adapted = sum(len(plan.measured_at(step)) for step in points)
    return (adapted + len(plan.images)) * settings.timesteps


@pytest.mark.parametrize("trained", [3, 5, 10, 40, 500])
@pytest.mark.parametrize("held_out", [0, 1, 30])
@pytest.mark.parametrize(("steps", "per_step"), [(60, 4), (300, 4), (1000, 1), (4000, 2), (20000, 1), (7, 1)])
@pytest.mark.parametrize("is_base_at_start", [True, False])
def test_they_cost_no_more_than_their_share_of_a_run(trained, held_out, steps, per_step, is_base_at_start):
    found = plan(steps=steps, per_step=per_step, trained=trained, held_out=held_out, is_base_at_start=is_base_at_start)
    assert passes(found, steps, Monitor()) <= SHARE * steps * per_step * STEP_PASSES


@pytest.mark.parametrize(
    ("steps", "points", "full"),
    [
        (150, [0, 25, 150], [25]),
        (151, [0, 25, 151], [25]),
        (300, [0, 50, 60, 120, 180, 240, 300], [50, 300]),
    ],
)
def test_a_usual_run_measures_all_its_ten_pictures_early(steps, points, full):
    found = plan(steps=steps)
    assert [step for step in range(steps + 1) if found.is_due(step, steps)] == points
    assert [len(found.measured_at(step)) for step in points] == [10 if step in full else 4 for step in points]


def test_a_run_that_ends_early_measures_all_where_it_ends():
    found = plan()
    assert [len(found.ending_at(45).measured_at(step)) for step in (40, 45, 50)] == [4, 10, 4]
    assert [len(found.ending_at(130).measured_at(step)) for step in (50, 120, 130, 300)] == [10, 4, 10, 4]
    assert found.ending_at(300) == found


def test_off_by_one_setting_and_a_run_that_is_too_short_has_none():
    assert plan(Monitor(every=0)).images == () == plan(steps=10).images
    assert not plan(Monitor(every=0)).is_due(300, 300)


@pytest.mark.parametrize(("steps", "least", "every"), [(300, 12, 24), (20000, 12, 488), (9, 12, 1), (300, 0, 75)])
def test_a_run_that_may_stop_early_measures_often_enough_whatever_it_costs(steps, least, every):
    found = plan_measurements(Monitor(), 0, steps, 4, STYLE, images(10), images(2, folder="y"), least)
    if least:
        assert found.every == every
        assert len(found.steps_before(steps)) >= min(least, steps)
    assert found.share(steps, 4) == pytest.approx(passes(found, steps, Monitor()) / (steps * 4 * STEP_PASSES))
    slow = plan_measurements(Monitor(every=100), 0, steps, 4, STYLE, images(10), (), least)
    assert slow.every == 100


def test_whoever_says_how_often_gets_it():
    found = plan(Monitor(every=4), steps=10)
    assert [step for step in range(11) if found.is_due(step, 10)] == [0, 4, 8, 10]


def test_the_choice_depends_on_content_and_seed_not_on_the_order():
    first, second = (sorted(image.name for image in plan(seed=seed).measured_at(0)) for seed in (1, 2))
    assert first != second
    shuffled = plan_measurements(Monitor(), 1, 300, 4, STYLE, images(10)[::-1], ())
    assert sorted(image.name for image in shuffled.measured_at(0)) == first


def test_each_concept_has_as_many_and_a_copy_none():
    trained = [*images(20), *images(20), *images(3, 1, "z")]
    concepts = (Concept(folder="x", trigger="sks"), Concept(folder="z", trigger="ohwx"))
    found = plan_measurements(Monitor(), 0, 300, 4, concepts, trained, ())
    always = found.measured_at(0)
    assert [image.view.example.concepts[0] for image in always] == [0, 1, 0, 1]
    assert len({image.name for image in found.images}) == len(found.images)
    assert {"x/1.png", "z/1.png"} <= {image.name for image in plan_all(concepts, trained).images}


def plan_all(concepts, trained):
    return plan_measurements(Monitor(images=30), 0, 9000, 4, concepts, trained, ())


def test_captions_are_without_dropout_and_of_several_readings_the_first():
    concept = Concept(folder="x", wildcards=True, caption_dropout=1.0, tag_dropout=1.0, shuffle_captions=True)
    example = Example(Path("a.png"), "a {red|blue} house, snow", 64, 64, digest="a")
    [image] = plan_measurements(Monitor(), 0, 900, 4, (concept,), [(example, SIZE)], ()).images
    assert (image.caption, image.view.position, image.view.flip) == ("a red house, snow", 0.5, False)
