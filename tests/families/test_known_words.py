"""Words that a small base knows: read from its folder, nearest ones found, nothing said of other bases."""

import json
import shutil
from pathlib import Path

import pytest

from sdlora.captioning.sources import HUB_CAPTIONER, default_captioner
from sdlora.families.base_models import BUNDLED
from sdlora.families.known_words import FILE, known_words
from tools.pocket import known_words as words


def test_the_bundled_file_is_what_the_world_says() -> None:
    assert json.loads(words.FILE.read_text()) == words.vocabulary()


def test_pocket_names_what_it_cannot_know_and_the_nearest_that_it_does() -> None:
    known = known_words("pocket")
    assert known is not None
    assert known.unknown(["a photo of sks Dog, on the grass", "sks dog"], "sks") == ["dog", "photo"]
    assert known.unknown(["a watercolor painting of a red house in the city, nice"]) == []
    nearest = {word: known.nearest(word) for word in ("dog", "beach", "houses", "umbrela", "sofa")}
    assert nearest == {
        "dog": ["cat"], "beach": ["on sand"], "houses": ["house"], "umbrela": ["umbrella"], "sofa": [],
    }  # fmt: skip
    assert "house, tree" in known.summary() and "; red, orange" in known.summary()


def test_everything_near_is_near_to_something_known_and_is_itself_unknown() -> None:
    known = known_words("pocket")
    assert known is not None
    assert known.unknown(known.near) == []
    for phrase, near in known.near.items():
        assert {*near} & known.words == set(), phrase


def test_a_base_without_a_list_says_nothing(tiny_base: Path) -> None:
    assert known_words(str(tiny_base)) is known_words("someone/some-model") is known_words("no such thing") is None


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "{",
        '{"objects": "house"}',
        '{"objects": [1]}',
        "{}",
        '{"objects": ["a"], "near": []}',
        '{"objects": ["a"], "style_phrases": "{}"}',
    ],
)
def test_a_strangers_list_that_is_none_says_nothing(tmp_path: Path, content: str) -> None:
    shutil.copytree(BUNDLED["pocket"], tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors", "clip"))
    (tmp_path / "base" / FILE).write_text(content)
    assert known_words(str(tmp_path / "base")) is None


def test_a_list_of_another_base_is_read(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED["pocket"], tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors", "clip"))
    (tmp_path / "base" / FILE).write_text(
        '{"objects": ["Dog"], "colours": [], "places": ["on the moon"], "other": ["a"]}'
    )
    known = known_words(str(tmp_path / "base"))
    assert known is not None and known.unknown(["a dog on the moon, a cat"]) == ["cat"]
    assert known.summary() == "dog; on the moon"
    assert default_captioner(str(tmp_path / "base")) == HUB_CAPTIONER  # Its list does not say that it has a captioner.
