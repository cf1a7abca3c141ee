"""Several concepts: balanced by repeats, read together, with class images per class; and what is refused."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdlora.data.batches import BatchLoader
from sdlora.data.cache import LatentCache
from sdlora.data.class_images import ClassImageStore, class_images_of_concepts
from sdlora.data.concepts import (
    balanced_repeats,
    class_groups,
    concept_shares,
    load_concepts,
    reworded_prompts,
    run_concepts,
)
from sdlora.data.dataset import Example
from sdlora.data.doctor import check_concepts, shared_images
from sdlora.data.images import ImageSize
from sdlora.data.settings import Concept, Data, ImageSet, suggested_steps, suggested_steps_together
from sdlora.data.tensor_store import TensorStore
from sdlora.errors import ConfigError, DatasetError
from sdlora.generation.settings import Prior
from tests.support.images import block_means, noise_image

SQUARE, WIDE = ImageSize(64, 64), ImageSize(80, 48)


def fill(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        noise_image(64, 64, first + index).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def cat_and_dog(tmp_path: Path) -> tuple[Concept, ...]:
    cat = Concept(folder=fill(tmp_path / "cat", 2), trigger="sks", class_name="cat")
    dog = Concept(folder=fill(tmp_path / "dog", 7, 50), trigger="ohwx", class_name="dog", caption_suffix="at noon")
    return run_concepts(Data(folder="."), Prior(weight=1, count=4), (cat, dog))


def test_a_run_without_a_list_has_the_one_concept_of_its_sections() -> None:
    data = Data(folder="x", trigger="sks", class_name="cat", flip=True)
    prior = Prior(weight=0.5, class_prompt="a cat", folder="y", count=7)
    [one] = run_concepts(data, prior)
    assert {name: getattr(one, name) for name in Data.model_fields} == dict(data)
    assert (one.prior_weight, one.class_prompt, one.class_folder, one.class_count) == (0.5, "a cat", Path("y"), 7)
    assert (one.weight, one.repeats, one.kind) == (1, None, "subject")


def test_what_a_concept_does_not_set_is_as_the_run_has_it() -> None:
    data, prior = Data(folder="x", flip=True, tag_dropout=0.5), Prior(weight=0.5, count=7)
    own = Concept(folder="a", flip=False, prior_weight=0)
    plain, other = run_concepts(data, prior, (Concept(folder="b"), own))
    assert (plain.flip, plain.tag_dropout, plain.prior_weight, plain.class_count) == (True, 0.5, 0.5, 7)
    assert (other.flip, other.tag_dropout, other.prior_weight) == (False, 0.5, 0)


@pytest.mark.parametrize("counts", [[5, 50], [1, 2, 3], [7, 7], [33, 50], [34, 50], [1, 1000], [12, 9, 100, 41]])
def test_no_concept_starves(counts: list[int]) -> None:
    repeats = balanced_repeats(counts, [True] * len(counts))
    largest = max(counts)
    assert repeats[counts.index(largest)] == 1
    assert all(2 / 3 <= count * times / largest <= 4 / 3 for count, times in zip(counts, repeats, strict=True))


def test_repeats_that_somebody_chose_stay() -> None:
    assert balanced_repeats([5, 50, 50], [True, True, False]) == [10, 1, 1]
    assert balanced_repeats([5, 50], [False, True]) == [1, 1]
    assert balanced_repeats([1, 5000], [True, True]) == [1000, 1]  # as many as a folder's name may ask for


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 7])
def test_an_epoch_shows_five_pictures_as_often_as_fifty(batch_size: int, seed: int) -> None:
    concepts = run_concepts(Data(folder="."), Prior(), (Concept(folder="few"), Concept(folder="many")))
    few = [Example(Path(f"few{i}"), "", 64, 64, repeats=10) for i in range(5)]
    many = [Example(Path(f"many{i}"), "", 64, 64, concepts=(1,)) for i in range(50)]
    sizes = [SQUARE, WIDE, WIDE, SQUARE, SQUARE] * 11
    loader = BatchLoader([*few, *many], sizes, concepts[0], batch_size, seed, concepts=concepts)
    fresh = BatchLoader([*few, *many], sizes, concepts[0], batch_size, seed, concepts=concepts)
    for epoch in range(2):
        numbers = range(epoch * loader.per_epoch, (epoch + 1) * loader.per_epoch)
        shown = [example.view.example for n in numbers for example in loader.scheduled(n)]
        seen = Counter(example.concepts[0] for example in shown)
        assert {example.path for example in shown} == {example.path for example in (*few, *many)}
        assert abs(seen[0] - seen[1]) <= 2 * (batch_size - 1)  # Two buckets are filled up.
        assert all(loader.scheduled(n) == fresh.scheduled(n) for n in reversed(numbers))  # A function of seed and n.


def test_concepts_are_read_together_with_their_own_words(cat_and_dog: tuple[Concept, ...]) -> None:
    found = load_concepts(cat_and_dog)
    assert Counter(example.concepts for example in found.examples) == {(0,): 2, (1,): 7}
    assert {(e.concepts[0], e.caption, e.repeats) for e in found.examples} == {
        (0, "sks cat", 4),  # 8 beside 7 is nearer than 6
        (1, "ohwx dog at noon", 1),
    }
    assert found.notices == (
        "An epoch has 2 concepts. sks: 2 pictures, 8 times seen (53%); ohwx: 7 pictures, 7 times seen (47%).",
    )
    assert [one.share for one in concept_shares(cat_and_dog, found.examples)] == [8 / 15, 7 / 15]


def test_a_concepts_repeats_take_the_place_of_its_folders(tmp_path: Path) -> None:
    named, plain = fill(tmp_path / "10_sks cat", 2), fill(tmp_path / "dogs", 3, 20)

    def repeats(**settings: int) -> list[int]:
        concepts = run_concepts(Data(folder="."), Prior(), (Concept(folder=named, **settings), Concept(folder=plain)))
        return [example.repeats for example in load_concepts(concepts).examples]

    assert repeats() == [10, 10, 7, 7, 7]  # 21 beside 20
    assert repeats(repeats=1) == [1, 1, 1, 1, 1]


def test_all_folders_with_problems_are_told_at_once_with_their_concepts(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", fill(tmp_path / "broken", 1)
    empty.mkdir()
    (broken / "b.png").write_bytes(b"no picture")
    concepts = run_concepts(
        Data(folder="."), Prior(), (Concept(folder=empty, trigger="sks"), Concept(folder=broken, trigger="ohwx"))
    )
    with pytest.raises(DatasetError) as caught:
        load_concepts(concepts)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("concept 1 (sks):") and "no .png or .jpg among 0 files; point folder at" in first
    assert second.startswith("concept 2 (ohwx):") and "1 problem" in second
    assert third.startswith("  b.png")


def test_concepts_of_one_class_share_its_pictures(tmp_path: Path) -> None:
    cats = [Concept(folder=name, trigger=name, class_name="cat") for name in ("sks", "ohwx")]
    dog = Concept(folder="c", trigger="abcd", class_name="dog", class_prompt="one dog", class_count=2)
    style = Concept(folder="d", trigger="zwx", prior_weight=0)
    concepts = run_concepts(Data(folder="."), Prior(weight=1, count=4), (*cats, dog, style))
    assert class_groups(concepts) == [(0, 1), (2,)]
    captions = ("a sks cat on sand", "a ohwx cat in snow", "a abcd dog", "zwx style")
    examples = [Example(Path(f"{i}.png"), text, 64, 64, concepts=(i,)) for i, text in enumerate(captions)]
    store = ClassImageStore(tmp_path, {})
    selected = class_images_of_concepts(Prior(weight=1, count=4), concepts, examples, store)
    assert [found.concepts for found in selected] == [(0, 1), (2,)]
    assert [image.prompt for image in selected[0].generated] == ["a cat on sand", "a cat in snow"] * 2
    assert [image.prompt for image in selected[1].generated] == ["one dog"] * 2


def test_a_class_that_nothing_names_is_told_with_its_concept(tmp_path: Path) -> None:
    concepts = run_concepts(Data(folder="."), Prior(weight=1), (Concept(folder="a", trigger="sks"),) * 2)
    examples = [Example(Path("a.png"), "sks", 64, 64, concepts=(i,)) for i in range(2)]
    with pytest.raises(ConfigError, match=r"concept 1 \(sks\): class_prompt: empty"):
        class_images_of_concepts(Prior(weight=1), concepts, examples, ClassImageStore(tmp_path, {}))


def test_each_example_comes_with_a_picture_of_its_own_class_and_the_weights_of_its_concept(
    example: Callable[..., Example],
) -> None:
    settings = (
        Concept(folder="a", weight=2, prior_weight=0.5), Concept(folder="b"), Concept(folder="c", prior_weight=0),
    )  # fmt: skip
    concepts = run_concepts(Data(folder="."), Prior(weight=1), settings)
    own = [example(f"{i}.png", seed=i, caption=str(i), concepts=(i,)) for i in range(3)]
    classes = [example(f"class{i}.png", seed=9 + i, caption=f"class {i}", concepts=(i,)) for i in range(2)]
    loader = BatchLoader(own, [SQUARE] * 3, concepts[0], 3, 0, classes, concepts=concepts)
    scheduled = loader.scheduled(0)
    by_caption = {one.caption: (one.weight, one.position) for one in scheduled}
    assert {caption: weight for caption, (weight, _) in by_caption.items()} == {
        "0": 2, "1": 1, "2": 1, "class 0": 1, "class 1": 1,  # 2 * 0.5
    }  # fmt: skip
    assert all(by_caption[f"class {i}"][1] == by_caption[str(i)][1] + 3 for i in range(2))


def test_two_processes_share_the_batches_of_several_concepts(example: Callable[..., Example]) -> None:
    settings = (Concept(folder="a", weight=2), Concept(folder="b", prior_weight=0), Concept(folder="c"))
    concepts = run_concepts(Data(folder="."), Prior(weight=0.5), settings)
    own = [example(f"{i}.png", seed=i, caption=str(i), concepts=(i % 3,)) for i in range(8)]
    classes = [example(f"class{i}.png", seed=20 + i, caption=f"class {i}", concepts=(0, 2)) for i in range(3)]

    def shares(batch_size: int, processes: int) -> list[dict[int, tuple[str, float, torch.Tensor]]]:
        found: list[dict[int, tuple[str, float, torch.Tensor]]] = [{} for _ in range(6)]
        for rank in range(processes):
            loader = BatchLoader(
                own, [SQUARE] * 8, concepts[0], batch_size, 1, classes, processes, rank, concepts=concepts
            )
            cache = LatentCache(TensorStore(None), "vae")
            cache.prepare(loader.views(0, 6), block_means)
            for n, batch in enumerate(found):
                read = loader.read(n, cache)
                assert read.weights is not None and read.instances == batch_size
                rows = zip(read.captions, read.weights.tolist(), read.mean, strict=True)
                batch.update(dict(zip(read.positions, rows, strict=True)))
        return found

    for one, shared in zip(shares(4, 1), shares(2, 2), strict=True):
        assert one.keys() == shared.keys()
        assert all(one[i][:2] == shared[i][:2] and torch.equal(one[i][2], shared[i][2]) for i in one)


def test_captions_vary_as_each_concept_says(example: Callable[..., Example]) -> None:
    settings = (Concept(folder="a", caption_dropout=1), Concept(folder="b", flip=True))
    concepts = run_concepts(Data(folder="."), Prior(), settings)
    own = [example(f"{i}.png", seed=i, caption=str(i), concepts=(i,)) for i in range(2)]
    loader = BatchLoader(own, [SQUARE] * 2, concepts[0], 2, 0, concepts=concepts)
    shown = [one for n in range(20) for one in loader.scheduled(n)]
    assert {(one.view.example.concepts, one.caption) for one in shown} == {((0,), ""), ((1,), "1")}
    assert {one.view.flip for one in shown if one.view.example.concepts == (0,)} == {False}
    assert {one.view.flip for one in shown if one.view.example.concepts == (1,)} == {False, True}


def test_the_steps_of_a_run_are_those_of_a_run_of_each() -> None:
    together = suggested_steps_together([ImageSet("subject", 10, 10), ImageSet("style", 10, 40)], 2)
    assert together == suggested_steps(10, "subject", 2) + suggested_steps(10, "style", 2)


def test_a_file_in_two_concepts_must_be_mended(cat_and_dog: tuple[Concept, ...]) -> None:
    for name in ("x.png", "y.png"):
        noise_image(64, 64, 99).save((cat_and_dog[0] if name == "x.png" else cat_and_dog[1]).folder / name)
    [finding] = shared_images(["concept 1 (sks)", "concept 2 (ohwx)"], load_concepts(cat_and_dog).examples)
    assert finding.severity == "must"
    assert "concept 1 (sks) as x.png and concept 2 (ohwx) as y.png" in finding.text


def test_the_doctor_names_each_concept_and_their_shares(cat_and_dog: tuple[Concept, ...]) -> None:
    texts = [finding.text for finding in check_concepts(cat_and_dog, 64)]
    assert texts[0].startswith("concept 1 (sks): Only 2 pictures")
    assert any(text.startswith("concept 2 (ohwx): 7 pictures can do") for text in texts)
    assert texts[-1].startswith("An epoch has 2 concepts.")
    [missing] = check_concepts(run_concepts(Data(folder="nowhere"), Prior()), 64)
    assert missing.severity == "must" and "nowhere: does not exist" in missing.text


def test_prompts_are_reworded_for_each_concept() -> None:
    prompts = ("a sks cat on sand", "a cat on sand", "a house")
    words = {"trigger": "sks", "class_name": "cat"}
    concepts = [{"trigger": "abc", "class_name": "cat"}, {"trigger": "ohwx", "class_name": "dog"}]
    assert reworded_prompts(prompts, words, concepts) == [
        "a abc cat on sand", "a cat on sand", "a house", "a ohwx dog on sand", "a dog on sand",
    ]  # fmt: skip
