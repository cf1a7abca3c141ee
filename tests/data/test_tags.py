"""How often each tag or word occurs in the captions that training reads."""

import json
from pathlib import Path

import pytest

from sdlora.cli.main import main
from sdlora.data.dataset import survey_folder
from sdlora.data.settings import Data
from sdlora.data.tags import TagCount, caption_tags, count_tags
from tests.support.images import noise_image


@pytest.fixture
def captioned(folder: Path):
    """Write pictures with captions, and return their data settings."""

    def write(*captions: str, **settings: object) -> Data:
        for number, caption in enumerate(captions):
            noise_image(64, 64, number).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(caption)
        return Data(folder=folder, **settings)

    return write


def counted(data: Data, unit=None) -> list[TagCount]:
    return count_tags(survey_folder(data).examples, data, unit)


def test_tags_are_counted_by_images_whatever_their_case(captioned):
    data = captioned("1girl, Red Hair, smile", "1girl, red hair, red hair, hat", "1girl, hat, tree", trigger="sks")
    assert counted(data) == [("sks", 3), ("1girl", 3), ("Red Hair", 2), ("hat", 2), ("smile", 1), ("tree", 1)]


def test_sentences_are_counted_by_words(captioned):
    data = captioned("a red house, at night", "A red-brick house")
    assert counted(data) == [("a", 2), ("house", 2), ("red", 1), ("at", 1), ("night", 1), ("red-brick", 1)]
    assert counted(data, "tags") == [("a red house", 1), ("at night", 1), ("A red-brick house", 1)]


def test_each_option_of_a_wildcard_counts(captioned):
    data = captioned("sks, {red|blue}, hat\nsks, tree, hat", wildcards=True)
    assert {*counted(data, "tags")} == {("sks", 1), ("red", 1), ("hat", 1), ("blue", 1), ("tree", 1)}
    assert caption_tags("a, b, a", Data(folder=".")) == ["a", "b", "a"]


def test_the_command_prints_a_table_or_json(captioned, capsys):
    data = captioned("cat, hat, tree", "cat, hat, house", "cat, sea, sand", "cat, sea, sky")
    assert main(["tags", str(data.folder)]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.split() == ["4", "100%", "#" * 20, "cat"] and second.split() == ["2", "50%", "#" * 10, "hat"]
    assert main(["tags", str(data.folder), "--json", "--count", "words", "--trigger", "sks"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 4 and found["counts"]["sks"] == 4


def test_a_folder_without_pictures_is_a_sentence(folder, capsys):
    assert main(["tags", str(folder)]) == 3
    assert "no .png or .jpg" in capsys.readouterr().err
