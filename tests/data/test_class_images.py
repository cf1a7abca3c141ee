"""Class pictures: counted, kept by what made them, and never mixed with the user's own."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from sdlora.data.class_images import (
    ClassImages,
    ClassImageStore,
    class_prompt,
    class_prompts,
    generate_missing,
    select_class_images,
)
from sdlora.data.settings import Data, suggested_steps
from sdlora.errors import ConfigError, DatasetError
from sdlora.generation.settings import Prior
from tests.support.images import noise_image

MADE_BY = {"base": "f00d", "size": [64, 64], "sampler": "DDIM", "steps": 25, "cfg": 7.0}
DOG = ("a dog 犬",)


def make(prompt: str, seed: int) -> Image.Image:
    return noise_image(64, 64, seed)


@pytest.fixture
def store(tmp_path: Path) -> ClassImageStore:
    return ClassImageStore(tmp_path / "kept", MADE_BY)


def select(prior: Prior, store: ClassImageStore, prompts: Sequence[str] = DOG) -> ClassImages:
    return select_class_images(prior, prompts, "a dog", store)


def seeds(pictures: ClassImages) -> list[int]:
    return [picture.seed for picture in pictures.missing()]


def test_a_folder_belongs_to_all_that_decides_its_pictures(store: ClassImageStore) -> None:
    first = store.image_path("a dog", 1).path
    assert first == ClassImageStore(store.root, dict(reversed(MADE_BY.items()))).image_path("a dog", 1).path
    others = [
        store.image_path("a cat", 1).path,
        ClassImageStore(store.root, MADE_BY | {"cfg": 7.5}).image_path("a dog", 1).path,
    ]
    assert len({path.parent for path in (first, *others)}) == 3
    assert first.parent == store.image_path("a dog", 2).path.parent and first.parent.parent == store.root


def test_missing_pictures_are_made_by_their_seeds_and_kept(store: ClassImageStore) -> None:
    wanted = select(Prior(count=5, seed=40), store)
    progress: list[tuple[int, int]] = []
    assert seeds(wanted) == [40, 41, 42, 43, 44]
    assert generate_missing(store, wanted.missing(), make, on_progress=lambda *n: progress.append(n))
    assert progress == [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert wanted.missing() == []
    paths = [store.image_path(DOG[0], seed).path for seed in range(40, 45)]
    assert json.loads((paths[0].parent / "made_by.json").read_text(encoding="utf-8")) == MADE_BY | {"prompt": DOG[0]}
    assert [example.path for example in wanted.examples()] == paths
    assert all(e.caption == DOG[0] and e.size == (64, 64) and e.digest for e in wanted.examples())
    assert Image.open(paths[2]).tobytes() == noise_image(64, 64, 42).tobytes()
    assert seeds(select(Prior(count=7, seed=40), store)) == [45, 46]  # more are added to what is kept


def test_prompts_come_in_turn_and_are_the_captions(store: ClassImageStore) -> None:
    wanted = select(Prior(count=5), store, ["a dog on grass", "a dog on sand"])
    requests: list[tuple[str, int]] = []

    def asking(prompt: str, seed: int) -> Image.Image:
        requests.append((prompt, seed))
        return make(prompt, seed)

    assert generate_missing(store, wanted.missing(), asking)
    captions = ["a dog on grass", "a dog on sand", "a dog on grass", "a dog on sand", "a dog on grass"]
    assert requests == list(zip(captions, range(5), strict=True))
    assert [example.caption for example in wanted.examples()] == captions


def test_a_damaged_picture_is_missing(store: ClassImageStore) -> None:
    wanted = select(Prior(count=3), store)
    generate_missing(store, wanted.missing(), make)
    path = wanted.generated[1].path
    path.write_bytes(path.read_bytes()[:-100])
    assert seeds(wanted) == [1]
    with pytest.raises(DatasetError, match="start the run again to generate it anew"):
        wanted.examples()


def test_stopping_keeps_what_was_made(store: ClassImageStore) -> None:
    wanted, stops = select(Prior(count=4), store), iter([False, True])
    assert not generate_missing(store, wanted.missing(), make, should_stop=lambda: next(stops))
    assert seeds(wanted) == [1, 2, 3]


def test_own_pictures_come_first_and_their_folder_stays_as_it_is(tmp_path: Path, store: ClassImageStore) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for number in range(2):
        noise_image(seed=number).save(own / f"{number}.png")
    (own / "1.txt").write_text("a brown dog")
    wanted = select(Prior(count=5, folder=own), store)
    assert "2 of 5 class pictures; the base model makes the rest" in wanted.notices[0] and len(wanted.notices) == 1
    assert seeds(wanted) == [0, 1, 2]
    generate_missing(store, wanted.missing(), make)
    assert [e.caption for e in wanted.examples()] == ["a dog", "a brown dog", *DOG * 3]
    assert sorted(path.name for path in own.iterdir()) == ["0.png", "1.png", "1.txt"]
    fewer = select(Prior(count=1, folder=own), store)
    assert [e.path.name for e in fewer.examples()] == ["0.png"] and fewer.missing() == []
    assert "of 2 class pictures, the first 1 are used" in fewer.notices[0]


def test_an_empty_folder_of_ones_own_is_filled_elsewhere_and_a_missing_one_refused(
    tmp_path: Path, store: ClassImageStore
) -> None:
    (tmp_path / "own").mkdir()
    assert len(select(Prior(count=3, folder=tmp_path / "own"), store).missing()) == 3
    with pytest.raises(DatasetError, match=r"nowhere: does not exist; point prior\.folder"):
        select(Prior(count=3, folder=tmp_path / "nowhere"), store)


def test_the_class_prompt_comes_from_the_class_name() -> None:
    assert class_prompt(Data(folder=".", class_name="dog"), Prior()) == "a dog"
    assert class_prompt(Data(folder="."), Prior(class_prompt="a photo of a dog")) == "a photo of a dog"
    assert class_prompt(Data(folder="."), Prior()) == ""


def test_class_prompts_are_the_captions_without_the_trigger() -> None:
    data = Data(folder=".", trigger="sks", class_name="dog")
    captions = [
        "a sks dog on grass",
        "SKS dog",
        "sks, a Dog in snow, sitting",
        "sks",
        "a sks dog on grass",
        "sks, a hill",
    ]
    assert class_prompts(data, Prior(), captions) == ("a dog on grass", "a dog", "a Dog in snow, sitting")
    assert class_prompts(data, Prior(class_prompt="one dog"), captions) == ("one dog",)
    assert class_prompts(data, Prior(), []) == ("a dog",)
    style = Data(folder=".", trigger="sks")
    assert class_prompts(style, Prior(), ["sks, a red house", "sks", "a cat, sks"]) == ("a red house", "a cat")
    with pytest.raises(ConfigError, match=r"prior\.class_prompt"):
        class_prompts(style, Prior(), ["sks", "sks"])


def test_class_images_of_ones_own_need_captions_where_nothing_names_the_class(tmp_path, store) -> None:
    (tmp_path / "own").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "own" / "a.png")
    with pytest.raises(ConfigError, match=r"prior\.folder: a\.png has no caption"):
        select_class_images(Prior(count=1, folder=tmp_path / "own"), ("a house",), "", store)


def test_suggested_steps() -> None:
    assert suggested_steps(5, "subject") == 500  # diffusers' DreamBooth LoRA page
    assert suggested_steps(10, "style") == 800
    assert suggested_steps(10, "style", batch_size=4) == 200
    assert suggested_steps(1, "subject") == 400 and suggested_steps(1000, "style") == 4000
    assert suggested_steps(7, "style", batch_size=3) == 200  # 600 looks, in threes
