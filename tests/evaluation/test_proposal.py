"""The rule of a proposal on tables that are made up."""

import pytest

from sdlora.evaluation.figures import Candidate, Figure
from sdlora.evaluation.proposal import TrainedAs, propose, score

TRAINED = TrainedAs(prior_weight=1.0)


def candidate(step, look, prompts=1.0, spill=0.0, scale=1.0, drift=0.1, copies=None):
    shares = {"look": look, "prompts": prompts, "spill": spill, "drift": drift, "copies": copies}
    figures = {name: Figure(0.5, 0.4, None, share) for name, share in shares.items()}
    return Candidate(f"checkpoints/{step:06d}.safetensors", step, scale, figures, "01.png", "03.png")


def names(proposal):
    return {alarm.name for alarm in proposal.alarms}


def test_of_an_overfitted_run_the_middle_is_taken_and_the_turning_points_are_told():
    rows = [
        candidate(60, 0.4),
        candidate(120, 0.8, 0.95, 0.1),
        candidate(180, 0.85, 0.45, 0.8),
        candidate(240, 0.9, 0.4, 0.8),
    ]
    found = propose(rows, "subject", TrainedAs())
    assert found.chosen == 1
    assert found.reasons[0].startswith("We would take step 120 at scale 1: it has 80% of the look")
    assert "From step 180 on the class turns into the subject (80%)." in found.reasons
    assert "From step 180 on prompts are lost (40% of what can be had)." in found.reasons
    assert "Up to step 60 the look is hardly there (40%)." in found.reasons
    assert {"overfitted", "spill", "prompts"} <= names(found)
    spill, *_ = (alarm for alarm in found.alarms if alarm.name == "spill")
    assert "prior.weight = 1" in spill.remedy
    fit, *_ = (alarm for alarm in found.alarms if alarm.name == "overfitted")
    assert "about step 120" in fit.remedy


def test_an_underfitted_run_is_told_to_train_longer():
    found = propose([candidate(50, 0.1), candidate(100, 0.3)], "style", TRAINED)
    assert found.chosen == 1 and names(found) == {"underfitted"}
    assert "train.steps = 200" in found.alarms[0].remedy


def test_candidates_that_are_no_nearer_than_the_base_are_not_proposed():
    found = propose([candidate(50, -0.1), candidate(100, 0.0)], "style", TRAINED)
    assert found.chosen is None and not found.front and names(found) == {"underfitted"}
    assert "no candidate is nearer to the training pictures than the base" in found.reasons[0]
    assert propose([candidate(50, -0.1), candidate(100, 0.01)], "style", TRAINED).chosen is not None


def test_a_look_that_still_grows_is_told():
    found = propose([candidate(50, 0.5), candidate(100, 0.75)], "style", TRAINED)
    assert found.chosen == 1 and "still grew by 25%" in found.alarms[0].text


def test_a_memorised_picture_is_told_and_counts_where_it_was_found():
    rows = [candidate(50, 0.8, copies=0.3), candidate(100, 0.9, copies=0.7), candidate(100, 0.85, scale=0.8)]
    found = propose(rows, "style", TRAINED)
    assert found.chosen == 2 and "copies" in names(found)
    assert "From step 100 on pictures copy 03.png" in " ".join(found.reasons)


def test_a_picture_that_is_like_a_training_picture_is_no_copy():
    """Healthy runs have up to 0.3 of it."""
    rows = [candidate(50, 0.7, copies=0.2), candidate(100, 0.9, copies=0.45)]
    found = propose(rows, "style", TRAINED)
    assert found.chosen == 1 and "copies" not in names(found)


def test_a_broken_adapter_is_not_taken_for_its_little_spill():
    """An adapter that makes no picture of the subject any more spills least of all that have lost a class."""
    rows = [candidate(75, 1.0, 0.9, 1.2, drift=0.1), candidate(600, 0.15, 0.8, 0.31, drift=0.63)]
    found = propose(rows, "subject", TRAINED)
    assert found.chosen == 0 and "spill" in names(found)


def test_what_is_hardly_learnt_has_lost_no_class():
    assert "spill" not in names(propose([candidate(10, 0.1, spill=0.1)], "subject", TRAINED))


def test_of_equal_candidates_the_fewest_steps_at_the_largest_scale_are_taken():
    rows = [candidate(step, 0.9, scale=scale) for step in (100, 50) for scale in (0.6, 1.0)]
    found = propose(rows, "subject", TRAINED)
    assert (rows[found.chosen].step, rows[found.chosen].scale) == (50, 1.0)
    assert found.front == (0, 1, 2, 3) and not found.alarms


def test_one_checkpoint_is_proposed_whatever_it_is():
    assert propose([candidate(10, 0.9)], "style", TRAINED).chosen == 0
    assert propose([candidate(10, 0.05)], "style", TRAINED).chosen == 0


def test_without_a_look_to_tell_nothing_is_proposed():
    found = propose([candidate(10, None)], "style", TRAINED)
    assert found.chosen is None and found.reasons[0].startswith("Nothing can be proposed") and not found.front
    assert propose([], "style", TRAINED).chosen is None


def test_a_style_may_show_without_its_trigger_and_on_other_things():
    rows = [candidate(50, 0.9, spill=0.9, drift=1.2)]
    assert names(propose(rows, "style", TRAINED)) == set()
    assert names(propose(rows, "subject", TRAINED)) == {"spill", "drift"}


def test_the_front_holds_what_no_other_beats_in_everything():
    rows = [candidate(50, 0.5, 1.0), candidate(100, 0.9, 0.8), candidate(150, 0.8, 0.7)]
    assert propose(rows, "style", TRAINED).front == (0, 1)


def test_no_good_figure_makes_up_for_a_bad_one():
    balanced, lopsided = candidate(1, 0.7, 0.7, 0.21, drift=0.3), candidate(1, 1.0, 1.0, 0.9)
    assert score(balanced, "subject") == pytest.approx(0.7) and score(lopsided, "subject") < 0.35


def test_of_candidates_whose_class_is_lost_the_one_that_keeps_other_things_is_taken():
    """Like ``pocket-subject`` without prior: spill is about 1 everywhere, and at last houses turn into the cat."""
    early, late = candidate(200, 1.1, 1.3, 1.06, drift=0.1), candidate(500, 1.1, 1.3, 0.94, drift=0.9)
    found = propose([early, late], "subject", TrainedAs())
    assert found.chosen == 0 and {"spill", "drift", "overfitted"} <= names(found)


def test_lost_prompts_of_uncaptioned_pictures_are_answered_with_captions():
    found = propose([candidate(50, 0.9, 0.3)], "style", TrainedAs(captions=False))
    assert "sdlora caption" in next(alarm.remedy for alarm in found.alarms if alarm.name == "prompts")
