"""Bars for the bundled model and its presets, against the last measurements in ``benchmarks/results``."""

import json

import pytest

from benchmarks.page import RESULTS
from sdlora.families.base_models import BUNDLED


def kept(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("seed", [1, 2])
def test_text_steers_the_pictures(seed):
    exam = kept(f"pocket-exam-{seed}")
    assert exam["prompts"] >= 300
    assert min(exam["classifier on held-out drawings"].values()) >= 0.98
    for what, bar in {"object": 0.90, "colour": 0.90, "place": 0.90, "style": 0.85}.items():
        assert exam["all"][what] >= bar
        assert exam["held-out"][what] >= exam["seen"][what] - 0.10


def test_the_measuring_clip_tells_looks_and_subjects_apart():
    found = kept("pocket-clip")
    assert min(found["AUC of unseen styles"].values()) >= 0.95
    assert min(found["AUC of the subject"]["middle layer"].values()) >= 0.95


def test_a_style_is_learnt_in_minutes_and_prompts_are_still_followed():
    trial = kept("quality-style")
    assert trial["machine"]["cores"] == 2
    assert trial["train_seconds"] < 180
    assert trial["share_of_gap"] >= 0.5
    assert trial["clip_t_kept"] >= 0.9
    assert trial["scale_0_equals_base"]


def test_a_subject_is_learnt_and_prior_preservation_keeps_its_class():
    trial = kept("quality-subject")
    base, prior, without = (trial[name] for name in ("base", "with prior", "without prior"))
    halfway = (base["likeness_with_trigger"] + trial["subject_within"]) / 2
    assert prior["likeness_with_trigger"] > halfway
    assert prior["likeness_of_the_class"] < halfway < without["likeness_of_the_class"]
    assert prior["class_to_base"] > without["class_to_base"]


def test_the_card_says_what_was_measured():
    card = (BUNDLED["pocket"] / "README.md").read_text(encoding="utf-8")
    for name, figures in {"all 300": kept("pocket-exam-1")["all"], "300 others": kept("pocket-exam-2")["all"]}.items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name}"))
        assert [cell.strip() for cell in row.split("|")[2:6]] == [f"{figure:.1%}" for figure in figures.values()]
    for figure in kept("pocket-clip")["AUC of unseen styles"].values():
        assert f"{figure:.3f}" in card
