"""Proposed prompts: what they name, and that no training image shows it."""

from sdlora.data.captions import without_trigger
from sdlora.evaluation.prompts import EvaluationPrompts, complete_prompts, propose_prompts
from sdlora.families.known_words import known_words

STYLE = ["ohwx style, a yellow house on grass", "ohwx style, an orange cat on snow", "ohwx style, a red boat on water"]
SUBJECT = ["a sks dog on a sofa", "a sks dog in a park", "a sks dog with a ball"]


def test_captions_of_a_style_are_recombined_and_none_is_a_training_caption():
    found = propose_prompts(STYLE, "ohwx style")
    assert len(found.triggered) == 3 and not {*found.triggered} & {*STYLE}
    heads = ("a yellow house", "an orange cat", "a red boat")
    assert all(any(head in text for head in heads) for text in found.triggered)
    assert found.of_class == tuple(without_trigger(text, "ohwx style") for text in found.triggered[:2])


def test_a_subject_comes_to_new_places_with_its_trigger_before_its_class():
    found = propose_prompts(SUBJECT, "sks", "dog")
    assert found.triggered[0] == "a sks dog on a beach" and found.of_class[0] == "a dog on a beach"
    assert not {*found.triggered} & {*SUBJECT}
    assert all("dog" not in text and "sks" not in text for text in found.unrelated) and found.unrelated


def test_the_words_of_a_small_base_are_used_and_nothing_that_captions_name_is_unrelated():
    known = known_words("pocket")
    found = propose_prompts(["a sks cat on grass", "a sks cat on snow"], "sks", "cat", known=known)
    assert found.triggered[0] == "a sks cat on sand"
    assert known.unknown(found.all, "sks") == []
    assert "cat" not in found.unrelated[0]


def test_where_all_places_are_trained_a_known_style_is_new():
    places = known_words("pocket").subjects["places"]
    found = propose_prompts([f"a sks cat {place}" for place in places], "sks", "cat", known=known_words("pocket"))
    assert found.triggered[0] == "a flat drawing of a sks cat on grass"


def test_the_runs_own_prompts_come_first_with_the_trigger_alone():
    found = propose_prompts(STYLE, "ohwx style", previews=["ohwx style, a green cup", "a plain cup"])
    assert found.triggered[0] == "ohwx style, a green cup" and "a plain cup" not in found.triggered


def test_pictures_without_captions_get_prompts_too():
    style = propose_prompts(["ohwx style"] * 3, "ohwx style")
    assert all(text.startswith("ohwx style, ") for text in style.triggered) and len(style.triggered) == 3
    subject = propose_prompts(["sks dog"] * 3, "sks", "dog")
    assert all("a sks dog " in text for text in subject.triggered)
    assert propose_prompts([], "").triggered


def test_without_a_trigger_there_is_no_class_to_spill_into():
    found = propose_prompts(["a yellow house on grass", "a cat on snow", "a boat on water"])
    assert found.triggered and not found.of_class and found.unrelated


def test_edited_prompts_replace_their_kind_and_class_prompts_follow_them():
    proposed = propose_prompts(SUBJECT, "sks", "dog")
    found = complete_prompts(proposed, EvaluationPrompts(("a sks dog swims", "a sks dog swims")), "sks")
    assert found.triggered == ("a sks dog swims",) and found.of_class == ("a dog swims",)
    assert found.unrelated == proposed.unrelated
    own = complete_prompts(proposed, EvaluationPrompts((), ("a wolf",), ("a tree",)), "sks")
    assert (own.triggered, own.of_class, own.unrelated) == (proposed.triggered, ("a wolf",), ("a tree",))


def test_the_captions_that_are_trained_most_often_are_asked_for():
    captions = [f"sks, thing {number}" for number in range(9)]
    assert propose_prompts(captions, "sks", repeats=[1] * 8 + [20]).captions[0] == "sks, thing 8"
    assert propose_prompts([*captions, "sks, thing 4"], "sks").captions[0] == "sks, thing 4"
    assert len(propose_prompts(captions, "sks").captions) == 4
