"""Wildcards in captions: what can be drawn from them, how often, and what is read as it stands."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.data.wildcards import MOST_READINGS, count_readings, draw_reading, list_readings, unread_syntax


@pytest.mark.parametrize(
    ("caption", "readings"),
    [
        ("a red house", ["a red house"]),
        ("a {red|blue} house", ["a red house", "a blue house"]),
        ("a {red|{dark|light} blue} house", ["a red house", "a dark blue house", "a light blue house"]),
        ("{{a|b}|c}", ["a", "b", "c"]),
        ("{3::red|blue} sky", ["red sky", "blue sky"]),
        ("a house{, red|}, {|old}, big",
         ["a house, red, big", "a house, red, old, big", "a house, big", "a house, old, big"]),
        ("{, x|y}, z", ["x, z", "y, z"]),
        ("one\ntwo {a|b}", ["one", "two a", "two b"]),
        ("{word}", ["word"]),
        # Letters: escaped, doubled as kohya's scripts have them, or without a partner.
        (r"\{red\|blue\}", ["{red|blue}"]),
        ("{{red|blue}}", ["{red|blue}"]),
        (r"a \(cat\) | b", [r"a \(cat\) | b"]),
        ("a {red", ["a {red"]),
        ("a {red|blue", ["a {red|blue"]),
        ("a} {b|c}", ["a} b", "a} c"]),
    ],
)  # fmt: skip
def test_a_caption_has_these_readings(caption: str, readings: list[str]) -> None:
    assert list_readings(caption) == readings
    assert count_readings(caption) == len(readings)
    assert {draw_reading(caption, 5, number) for number in range(300)} == {*readings}


def test_options_are_drawn_by_their_weights_and_lines_alike() -> None:
    drawn = Counter(draw_reading("{3::red|blue}", 0, number) for number in range(4000))
    assert 2890 <= drawn["red"] <= 3110  # 3000, within 4 standard deviations (27.4)
    assert {draw_reading("{0::red|blue}", 0, number) for number in range(50)} == {"blue"}
    lines = Counter(draw_reading("a\n{b|c}", 0, number) for number in range(4000))
    assert 1873 <= lines["a"] <= 2127  # 2000, within 4 standard deviations (31.6)


def test_choices_are_drawn_each_on_its_own() -> None:
    both = Counter(draw_reading("{a|b}{a|b}", 0, number) for number in range(4000))
    assert all(890 <= count <= 1110 for count in both.values()) and len(both) == 4  # 1000, 4 deviations of 27.4


def test_of_many_readings_some_are_drawn() -> None:
    caption = ", ".join(["{red|green|blue} house"] * 40)
    found = list_readings(caption)
    assert count_readings(caption) == 3**40 and MOST_READINGS // 2 < len(found) <= MOST_READINGS


def test_what_other_tools_would_read_and_lone_braces_are_named() -> None:
    assert unread_syntax("{2$$red|blue} house in __colour__") == ["2$$", "__colour__"]
    assert unread_syntax("a {red\n{b}\nc}") == ["{", "}"]
    assert unread_syntax(r"a \{ snake_case, {one|{two|three}}") == []


@given(st.text(alphabet="ab {}|\\:12$\n", max_size=60))
def test_any_text_can_be_read_and_nothing_is_drawn_that_is_not_listed(caption: str) -> None:
    drawn = draw_reading(caption, 1)
    if count_readings(caption) <= MOST_READINGS:
        assert drawn in list_readings(caption)


def test_hostile_captions_take_no_time() -> None:
    for caption in ("{" * 10_000, "{a|b}" * 2_000, "{" * 5_000 + "}" * 5_000, "|" * 10_000):
        assert len(draw_reading(caption, 1)) <= len(caption) and len(list_readings(caption)) <= MOST_READINGS
        assert unread_syntax(caption) in ([], ["{"])
