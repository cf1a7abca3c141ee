"""Class pictures: counted, kept by what made them, and never mixed with the user's own."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from sdlora.data.advice import suggested_steps
from sdlora.data.prior import class_folder, class_pictures, class_prompt, fill, picture_path
from sdlora.data.settings import Data, Prior
from sdlora.errors import ConfigError, DatasetError
from tests.data.conftest import drawn

MADE_BY = {"base": "f00d", "prompt": "a dog 犬", "size": [64, 64], "sampler": "DDIM", "steps": 25, "cfg": 7.0}


def make(seeds: Sequence[int]) -> list[Image.Image]:
    return [drawn(64, 64, seed) for seed in seeds]


def test_a_folder_belongs_to_all_that_decides_its_pictures(tmp_path: Path) -> None:
    first = class_folder(tmp_path, MADE_BY)
    assert first == class_folder(tmp_path, dict(reversed(MADE_BY.items())))
    assert first != class_folder(tmp_path, MADE_BY | {"cfg": 7.5}) and first.parent == tmp_path


def test_missing_pictures_are_made_by_their_seeds_and_kept(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, MADE_BY)
    wanted = class_pictures(Prior(count=5, seed=40), "a dog", folder)
    told: list[tuple[int, int]] = []
    assert wanted.missing() == [40, 41, 42, 43, 44]
    assert fill(folder, wanted.missing(), make, MADE_BY, batch_size=2, on_progress=lambda *n: told.append(n))
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert wanted.missing() == []
    assert json.loads((folder / "made_by.json").read_text(encoding="utf-8")) == MADE_BY
    assert [example.path for example in wanted.examples()] == [picture_path(folder, seed) for seed in range(40, 45)]
    assert all(e.caption == "a dog" and e.size == (64, 64) and e.digest for e in wanted.examples())
    assert Image.open(picture_path(folder, 42)).tobytes() == drawn(64, 64, 42).tobytes()
    assert class_pictures(Prior(count=7, seed=40), "a dog", folder).missing() == [
        45,
        46,
    ]  # more are added to what is kept


def test_a_damaged_picture_is_missing(tmp_path: Path) -> None:
    wanted = class_pictures(Prior(count=3), "a dog", tmp_path)
    fill(tmp_path, wanted.missing(), make, MADE_BY)
    path = picture_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-100])
    assert wanted.missing() == [1]
    with pytest.raises(DatasetError, match="start again to have it made anew"):
        wanted.examples()


def test_stopping_keeps_what_was_made(tmp_path: Path) -> None:
    wanted, asked = class_pictures(Prior(count=4), "a dog", tmp_path), iter([False, True])
    assert not fill(tmp_path, wanted.missing(), make, MADE_BY, should_stop=lambda: next(asked))
    assert wanted.missing() == [1, 2, 3]


def test_own_pictures_come_first_and_their_folder_stays_as_it_is(tmp_path: Path) -> None:
    own, kept = tmp_path / "own", tmp_path / "kept"
    own.mkdir()
    for number in range(2):
        drawn(seed=number).save(own / f"{number}.png")
    (own / "1.txt").write_text("a brown dog")
    wanted = class_pictures(Prior(count=5, folder=own), "a dog", kept)
    assert "2 of 5 class pictures; the base model makes the rest" in wanted.notices[0] and len(wanted.notices) == 1
    assert wanted.missing() == [0, 1, 2]
    fill(kept, wanted.missing(), make, MADE_BY)
    assert [e.caption for e in wanted.examples()] == ["a dog", "a brown dog", "a dog", "a dog", "a dog"]
    assert sorted(path.name for path in own.iterdir()) == ["0.png", "1.png", "1.txt"]
    fewer = class_pictures(Prior(count=1, folder=own), "a dog", kept)
    assert [e.path.name for e in fewer.examples()] == ["0.png"] and fewer.missing() == []
    assert "of 2 class pictures, the first 1 are used" in fewer.notices[0]


def test_an_empty_folder_of_ones_own_is_filled_elsewhere_and_a_missing_one_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert len(class_pictures(Prior(count=3, folder=tmp_path / "own"), "a dog", tmp_path / "kept").missing()) == 3
    with pytest.raises(DatasetError, match=r"nowhere: does not exist; point prior\.folder"):
        class_pictures(Prior(count=3, folder=tmp_path / "nowhere"), "a dog", tmp_path / "kept")


def test_the_class_prompt_comes_from_the_class_name() -> None:
    assert class_prompt(Data(folder=".", class_name="dog"), Prior()) == "a dog"
    assert class_prompt(Data(folder="."), Prior(class_prompt="a photo of a dog")) == "a photo of a dog"
    with pytest.raises(ConfigError, match=r"prior\.class_prompt"):
        class_prompt(Data(folder="."), Prior())


def test_suggested_steps() -> None:
    assert suggested_steps(5, "subject") == 500  # diffusers' DreamBooth LoRA page
    assert suggested_steps(10, "style") == 800
    assert suggested_steps(10, "style", batch_size=4) == 200
    assert suggested_steps(1, "subject") == 400 and suggested_steps(1000, "style") == 4000
    assert suggested_steps(7, "style", batch_size=3) == 200  # 600 looks, in threes
