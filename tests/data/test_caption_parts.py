"""Words around a caption, and words that may be left out of it."""

from sdlora.data.caption_parts import caption_parts
from sdlora.data.settings import Data


def parts(line: str, own: str, **settings: object) -> list[tuple[str, bool, bool]]:
    return [tuple(part) for part in caption_parts(line, own, Data(folder=".", **settings))]


def test_what_the_settings_add_is_told_from_what_was_written():
    assert parts("sks, photo of a dog, 4k", "a dog") == [
        ("sks, photo of ", True, False), ("a dog", False, False), (", 4k", True, False),
    ]  # fmt: skip
    assert parts("sks dog", "") == [("sks dog", True, False)]
    assert parts("", "") == []


def test_parts_behind_the_kept_ones_may_be_left_out():
    settings = {"tag_dropout": 0.2, "keep_tokens": 2}
    assert parts("sks, a, b, c", "a, b, c", **settings) == [
        ("sks, ", True, False), ("a,", False, False), (" b, c", False, True),
    ]  # fmt: skip
    assert parts("sks, a", "sks, a", shuffle_captions=True, keep_tokens=5) == [("sks, a", False, False)]
    assert parts("a, b", "a, b", shuffle_captions=True, keep_tokens=0) == [("a, b", False, True)]
    weighted = {"shuffle_captions": True, "caption_weights": True}
    assert parts("(a, b:1.2), c", "(a, b:1.2), c", **weighted) == [("(a, b:1.2),", False, False), (" c", False, True)]
