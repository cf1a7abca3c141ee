"""The expected readings are those of stable-diffusion-webui's prompt_parser.py and sd_hijack_clip.py."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdlora.generation.prompt_encoding import apply_token_weights
from sdlora.generation.prompt_weighting import PromptChunk, WeightedText, escape_weights, parse_weights, split_chunks

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SYNTAX = st.text(st.sampled_from("()[]\\:1.,a BREAK+-"), max_size=60)


def tokens(text):
    """A token a word, and a comma is one: the number of a word ``w12`` is its id."""
    return [0 if word == "," else int(word[1:]) for word in re.findall(r"w\d+|,", text)]


def words(first, last):
    return " ".join(f"w{number}" for number in range(first, last + 1))


def cut(text, room=75):
    return [chunk.tokens for chunk in split_chunks(parse_weights(text), tokens, room)]


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[unbalanced", [("unbalanced", 1 / 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"a_\(b\), (c_\(d\):1.2)", [("a_(b), ", 1), ("c_(d)", 1.2)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
                ("sky", 1.4641), (".", 1.1),
            ],
        ),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("fine) and ]:1.2)", [("fine) and ]:1.2)", 1)]),
        ("(a:b: 2 ) [c:0.5]", [("a:b", 2), (" ", 1), ("c:0.5", 1 / 1.1)]),
        ("(a:-.5)(b:0)", [("a", -0.5), ("b", 0)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        (r"C:\new \o/ \\", [(r"C:\new \o/ " + "\\", 1)]),
        ("", [("", 1)]),
        ("()", [("", 1)]),
        ("a BREAK b, BREAKfast", [("a", 1), (None, 1), ("b, BREAKfast", 1)]),
    ],
)  # fmt: skip
def test_brackets_become_weights(prompt, runs):
    read = parse_weights(prompt)
    assert [run.text for run in read] == [text for text, _ in runs]
    assert [run.weight for run in read if run.text is not None] == pytest.approx([w for t, w in runs if t is not None])


def test_a_break_in_brackets_parts_the_words_and_both_keep_their_weight():
    assert [run.text for run in parse_weights("(a BREAK b:2)")] == ["a", None, "b"]
    assert cut("(w1 BREAK w2:2) w3") == [[1], [2, 3]]


@given(st.one_of(TEXT, SYNTAX))
def test_any_text_can_be_read_and_no_letter_outside_the_syntax_is_lost(text):
    read = "".join(run.text or "" for run in parse_weights(text))
    kept = [letter for letter in text if letter.isalpha() and letter not in "BREAK"]
    assert [letter for letter in read if letter.isalpha() and letter not in "BREAK"] == kept


@given(st.one_of(TEXT, SYNTAX).filter(lambda text: "BREAK" not in text))
def test_escaped_text_reads_as_itself(text):
    assert parse_weights(escape_weights(text)) == [WeightedText(text)]
    assert [run for run in parse_weights(f"({escape_weights(text)}:1.5)x") if run.weight == 1.5] == (
        [WeightedText(text, 1.5)] if text else []
    )


@given(
    st.text(st.characters(exclude_characters="()[]\\", exclude_categories=["Cs"])).filter(lambda t: "BREAK" not in t)
)
def test_a_prompt_without_the_syntax_is_left_as_it_is(text):
    assert parse_weights(text) == [WeightedText(text)]


def test_a_full_part_ends_at_its_last_comma_if_that_is_near():
    assert cut(words(1, 75)) == [list(range(1, 76))]
    assert cut(words(1, 80)) == [list(range(1, 76)), list(range(76, 81))]
    near = f"{words(1, 55)}, {words(56, 80)}"  # The comma is the 56th: 19 words after it fill the part.
    assert cut(near) == [[*range(1, 56), 0], list(range(56, 81))]
    far = f"{words(1, 54)}, {words(55, 80)}"  # The 55th is one too far back.
    assert cut(far) == [[*range(1, 55), 0, *range(55, 75)], list(range(75, 81))]
    behind = f"{words(1, 75)}, w76"
    assert cut(behind) == [list(range(1, 76)), [0, 76]]


def test_break_begins_a_new_part_and_weights_stay_with_their_words():
    assert cut("w1 BREAK w2") == [[1], [2]]
    assert cut("w1 BREAK") == [[1]]
    assert cut("") == [[]]
    assert split_chunks(parse_weights("w1 (w2 w3:1.5) w4"), tokens, 3) == [
        PromptChunk([1, 2, 3], [1.0, 1.5, 1.5]),
        PromptChunk([4], [1.0]),
    ]


@given(st.lists(st.sampled_from(["w1", ",", "(w2", "w3)", "w4:1.5)", "[", "BREAK"]), max_size=60), st.integers(1, 25))
def test_parts_hold_every_token_in_its_order(pieces, room):
    runs = parse_weights(" ".join(pieces))
    made = split_chunks(runs, tokens, room)
    assert [token for chunk in made for token in chunk.tokens] == [t for run in runs for t in tokens(run.text or "")]
    assert all(len(chunk.tokens) == len(chunk.weights) <= room for chunk in made)


def test_weighed_vectors_keep_the_mean():
    """Tokens of means 1, 2, 3 with weights 1, 2, 1: their mean grows from 2 to 8 / 3, so that all shrink by 3 / 4."""
    vectors = torch.tensor([[[0.0, 2.0], [2.0, 2.0], [3.0, 3.0]]])
    expected = torch.tensor([[[0.0, 1.5], [3.0, 3.0], [2.25, 2.25]]])
    assert torch.allclose(apply_token_weights(vectors, [2.0]), expected)
    assert apply_token_weights(vectors, [1.0, 1.0]) is vectors


def test_where_the_means_have_no_common_sign_vectors_are_only_weighted():
    """Means of 1 and -1.1: weighting the second by 2 would turn every sign and grow all twelvefold."""
    vectors = torch.tensor([[[1.0, 1.0], [-1.1, -1.1]]])
    assert torch.allclose(apply_token_weights(vectors, [2.0]), torch.tensor([[[1.0, 1.0], [-2.2, -2.2]]]))
    assert torch.isfinite(apply_token_weights(torch.zeros(1, 3, 2), [1.2])).all()
