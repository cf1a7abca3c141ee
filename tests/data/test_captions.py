"""Captions: what is read, what is derived, and how it varies."""

from pathlib import Path

import pytest

from sdlora.data.captions import augment_caption, caption_for, caption_readings, read_caption, with_trigger
from sdlora.data.settings import Data
from sdlora.errors import DatasetError


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"a dog\n", "a dog"),
        (b"\xef\xbb\xbfa dog", "a dog"),
        (b"a\x00 dog\x00", "a dog"),
        ("ein Hündchen 犬".encode(), "ein Hündchen 犬"),
        (b"a dog,\r\n\r\n  on   grass\r\n", "a dog,\non grass"),
        (b"<script>alert(1)</script>", "<script>alert(1)</script>"),
        (b"", ""),
    ],
)
def test_a_caption_is_its_lines_of_text(tmp_path: Path, content: bytes, caption: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read_caption(tmp_path / "a.txt") == caption


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a dog".encode("utf-16"), "UTF-16"),
        ("a dog".encode("utf-16-le"), "UTF-16"),
        ("ein Hündchen".encode("latin-1"), "Latin-1"),
        (b"dog " * 3000, "longer than 10.0 KiB"),
    ],
)
def test_other_encodings_and_novels_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=reason):
        read_caption(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("own", "settings", "folder_name", "caption"),
    [
        ("a dog", {"prompt": "p"}, "sks dog", "a dog"),
        ("", {"prompt": "a photo of sks dog", "class_name": "cat"}, "sks dog", "a photo of sks dog"),
        ("", {"trigger": "sks", "class_name": "dog"}, "ohwx cat", "sks dog"),
        ("", {"class_name": "dog"}, "", "dog"),
        ("", {}, "sks dog", "sks dog"),
        ("", {"trigger": "sks"}, "", "sks"),
        ("", {}, "", ""),
        ("a dog on grass", {"trigger": "sks"}, "", "sks, a dog on grass"),
        ("a photo of SKS dog", {"trigger": "sks"}, "", "a photo of SKS dog"),
        (
            "a dog",
            {"trigger": "sks", "caption_prefix": "a photo of", "caption_suffix": ", 4k"},
            "",
            "sks, a photo of a dog, 4k",
        ),
        ("a dog", {"trigger": "sks", "caption_prefix": "sks photo,"}, "", "sks photo, a dog"),
        ("", {"class_name": "dog", "caption_suffix": "at night"}, "", "dog at night"),
        ("", {"trigger": "sks", "caption_suffix": ", 4k"}, "", "sks, 4k"),
        (". a dog", {}, "", ". a dog"),
        ("a dog,\non grass", {}, "", "a dog, on grass"),
        ("a dog\n{one|two} cats", {"trigger": "sks"}, "", "sks, a dog {one|two} cats"),
    ],
)
def test_the_caption_comes_from_the_nearest_source(
    own: str, settings: dict[str, str], folder_name: str, caption: str
) -> None:
    assert caption_for(own, Data(folder=Path(), **settings), folder_name) == caption


def test_each_line_of_a_caption_with_wildcards_gets_trigger_prefix_and_suffix() -> None:
    settings = varied(trigger="sks", caption_prefix="photo of", caption_suffix=", 4k", wildcards=True)
    assert caption_for("a dog\na cat, sks", settings, "") == "sks, photo of a dog, 4k\nphoto of a cat, sks, 4k"


def varied(**settings: object) -> Data:
    return Data(folder=Path(), **settings)


def test_the_trigger_counts_as_a_word_only() -> None:
    assert with_trigger("masks on a wall", "sks") == "sks, masks on a wall"
    assert with_trigger("a (sks) dog", "sks") == "a (sks) dog"
    assert with_trigger("a", "") == "a"
    assert with_trigger("a c++ dog", "c++") == "a c++ dog"


def test_shuffling_keeps_the_first_part_and_all_others() -> None:
    captions = {
        augment_caption("sks, red, blue, green", varied(shuffle_captions=True), 1, epoch) for epoch in range(200)
    }
    assert len(captions) == 6  # 3! orders of the rest
    assert all(caption.startswith("sks, ") for caption in captions)
    assert all(sorted(caption.split(", ")) == ["blue", "green", "red", "sks"] for caption in captions)
    assert augment_caption("a  b, c", varied(), 1) == "a  b, c"


def test_dropout_empties_its_share_of_captions() -> None:
    dropped = sum(augment_caption("a dog", varied(caption_dropout=0.1), 5, index) == "" for index in range(4000))
    assert 320 <= dropped <= 480  # 400, within 4 standard deviations (19)
    assert augment_caption("a dog", varied(caption_dropout=1.0), 1) == ""
    assert augment_caption("a dog", varied(), 1) == "a dog"


def test_tags_behind_the_kept_ones_are_dropped_each_on_its_own() -> None:
    tags = ["sks", "cat", "red", "blue"]
    found = [
        augment_caption(", ".join(tags), varied(tag_dropout=0.3, keep_tokens=2), 1, epoch).split(", ")
        for epoch in range(2000)
    ]
    assert all(each[:2] == ["sks", "cat"] for each in found)
    for tag in ("red", "blue"):
        assert 1318 <= sum(tag in each for each in found) <= 1482  # 1400, within 4 standard deviations (20.5)
    both = sum({"red", "blue"} <= {*each} for each in found)
    assert 890 <= both <= 1070  # 0.7 ** 2 of 2000 is 980, within 4 standard deviations (22.4)
    assert augment_caption("sks, a, b", varied(tag_dropout=1.0), 1) == "sks"
    assert augment_caption("sks, a, b", varied(tag_dropout=1.0, keep_tokens=0), 1) == ""


def test_weighted_words_are_not_cut_at_their_commas() -> None:
    options = varied(shuffle_captions=True, caption_weights=True, keep_tokens=0)
    found = {augment_caption("(red, blue:1.3), cat", options, 1, epoch) for epoch in range(50)}
    assert found == {"(red, blue:1.3), cat", "cat, (red, blue:1.3)"}


def test_kept_tags_are_not_shuffled_and_none_is_lost() -> None:
    options = varied(shuffle_captions=True, keep_tokens=3)
    found = {augment_caption("a, b, c, d, e", options, 1, epoch) for epoch in range(100)}
    assert found == {"a, b, c, d, e", "a, b, c, e, d"}
    assert augment_caption("a, b", varied(shuffle_captions=True, keep_tokens=9), 1) == "a, b"


def test_a_caption_with_wildcards_is_drawn_before_it_is_shuffled() -> None:
    options = varied(shuffle_captions=True, wildcards=True)
    found = {augment_caption("sks, {red, blue|green}\nsks, cat", options, 1, epoch) for epoch in range(100)}
    assert found == {"sks, red, blue", "sks, blue, red", "sks, green", "sks, cat"}


def test_an_option_without_the_trigger_gets_it() -> None:
    options = varied(trigger="sks", wildcards=True)
    caption = caption_for("a {sks|red} dog", options, "")
    found = {augment_caption(caption, options, 1, epoch) for epoch in range(30)}
    assert found == {"a sks dog", "sks, a red dog"} == {*caption_readings(caption, options)}


def test_without_wildcards_braces_are_letters() -> None:
    assert augment_caption("a {red|blue} dog", varied(), 1) == "a {red|blue} dog"
    assert caption_readings("a {red|blue} dog", varied()) == ["a {red|blue} dog"]
