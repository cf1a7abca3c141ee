"""Batches: full, determined by seed and number alone, and the same however many processes share them."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from sdlora.data.batches import Batch, BatchLoader
from sdlora.data.cache import LatentCache
from sdlora.data.dataset import Example
from sdlora.data.epoch_sampler import EpochSampler, ShuffledCycle
from sdlora.data.images import ImageSize
from sdlora.data.settings import Data
from sdlora.data.tensor_store import TensorStore
from sdlora.filesystem.reading import sha256
from tests.support.images import block_means

SQUARE, WIDE = ImageSize(64, 64), ImageSize(80, 48)


def data(**settings: object) -> Data:
    return Data(folder=".", **settings)


def read(batches: BatchLoader, first: int, last: int, masks: bool = True) -> list[Batch]:
    cache = LatentCache(TensorStore(None), "vae", masks=masks)
    cache.prepare(batches.views(first, last), block_means)
    return [batches.read(n, cache) for n in range(first, last)]


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.mean, second.mean)
        and torch.equal(first.std, second.std)
        and first.captions == second.captions
        and first.positions == second.positions
    )


@pytest.fixture
def pictures(example) -> list[Example]:
    return [example(f"{i}.png", seed=i, caption=f"sks, {i}, dog, grass", width=96, height=64) for i in range(7)]


SIZES = [SQUARE] * 5 + [WIDE] * 2
BUSY = {"flip": True, "random_crop": True, "variants": 3, "shuffle_captions": True, "caption_dropout": 0.2}


def test_a_plan_shows_every_item_each_epoch_in_full_batches_of_one_bucket() -> None:
    plan = EpochSampler("aaaaabbc", batch_size=2, seed=1)
    assert plan.per_epoch == 3 + 1 + 1 and plan.repeated == 2
    for epoch in range(3):
        slots = [plan[n] for n in range(epoch * 5, epoch * 5 + 5)]
        assert all(slot.epoch == epoch and len(slot.items) == 2 for slot in slots)
        assert all("aaaaabbc"[item] == slot.bucket for slot in slots for item in slot.items)
        assert {item for slot in slots for item in slot.items} == set(range(8))
    assert [plan[n] for n in range(5)] != [plan[n] for n in range(5, 10)]


def test_a_bucket_smaller_than_a_batch_goes_round() -> None:
    assert sorted(EpochSampler("ab", batch_size=3, seed=0)[0].items) in ([0, 0, 0], [1, 1, 1])


def test_a_rotation_takes_all_in_each_round() -> None:
    rotation = ShuffledCycle(5, seed=3)
    rounds = [[rotation[5 * r + i] for i in range(5)] for r in range(4)]
    assert all(sorted(turn) == list(range(5)) for turn in rounds) and len(set(map(tuple, rounds))) > 1


def test_a_batch_says_how_each_picture_was_cut(pictures) -> None:
    [square] = read(BatchLoader(pictures[:2], [SQUARE] * 2, data(), batch_size=2, seed=0), 0, 1)
    assert square.size_and_crop.tolist() == [[64, 96, 0, 16]] * 2  # 96 x 64, a square of 64 out of its middle.


def test_repeats_are_times_an_epoch(example) -> None:
    pictures = [example("a.png", repeats=10), example("b.png", seed=1), example("c.png", seed=2, repeats=3)]
    batches = BatchLoader(pictures, [SQUARE] * 3, data(flip=True), batch_size=1, seed=0)
    assert batches.per_epoch == 14
    for epoch in range(2):
        shown = [batches.scheduled(n)[0].view for n in range(epoch * 14, (epoch + 1) * 14)]
        assert Counter(view.example.path.name for view in shown) == {"a.png": 10, "b.png": 1, "c.png": 3}
        assert {view.flip for view in shown if view.example.path.name == "a.png"} == {
            True,
            False,
        }  # each repeat by itself


def test_a_resumed_run_goes_on_with_the_same_batches(pictures: list[Example]) -> None:
    def fresh() -> BatchLoader:
        return BatchLoader(pictures, SIZES, data(**BUSY), 2, seed=5, class_examples=pictures[:3])

    whole = read(fresh(), 0, 9)
    resumed = read(fresh(), 5, 9)  # 4 micro-batches an epoch: from the middle of the second
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    other = read(BatchLoader(pictures, SIZES, data(**BUSY), 2, seed=6, class_examples=pictures[:3]), 0, 9)
    assert not all(a.captions == b.captions for a, b in zip(whole, other, strict=True))


def test_the_shares_of_two_processes_make_up_the_batch_of_one(pictures: list[Example]) -> None:
    def of(batch_size: int, processes: int, rank: int) -> list[Batch]:
        return read(BatchLoader(pictures, SIZES, data(**BUSY), batch_size, 1, pictures[:4], processes, rank), 0, 8)

    for one, first, second in zip(of(4, 1, 0), of(2, 2, 0), of(2, 2, 1), strict=True):
        assert (one.instances, first.instances, second.instances) == (4, 2, 2)
        assert first.positions == [0, 1, 4, 5] and second.positions == [2, 3, 6, 7]
        for share in (first, second):
            for i, place in enumerate(share.positions):
                assert torch.equal(share.mean[i], one.mean[place]) and share.captions[i] == one.captions[place]


def test_all_captions_of_a_batch_are_read_as_long_as_its_longest_whoever_has_that(pictures: list[Example]) -> None:
    def count(caption: str) -> int:
        return 3 if ", 2," in caption else 1

    def chunks(processes: int, rank: int) -> list[int]:
        batches = BatchLoader(pictures[:4], SIZES[:4], data(), 2 // processes, 1, (), processes, rank, count)
        cache = LatentCache(TensorStore(None), "vae")
        cache.prepare(batches.views(0, 6), block_means)
        longest = [max(count(example.caption) for example in batches.scheduled(n)) for n in range(6)]
        assert [batches.read(n, cache).chunks for n in range(6)] == longest
        return longest

    assert {*chunks(1, 0)} == {1, 3}
    assert chunks(1, 0) == chunks(2, 0) == chunks(2, 1)


def test_class_examples_have_the_size_of_their_instances_and_turns_of_their_own(
    example, pictures: list[Example]
) -> None:
    classes = [example(f"class{i}.png", seed=50 + i, caption="a dog") for i in range(5)]
    batches = BatchLoader(pictures, SIZES, data(**BUSY), 2, seed=0, class_examples=classes)
    used: list[str] = []
    for n, batch in enumerate(read(batches, 0, 10)):
        assert len(batch) == 4 and batch.instances == 2 and batch.mean.shape[0] == 4
        assert "a dog" not in batch.captions[:2] and batch.captions[2:] == ["a dog", "a dog"]
        shown = batches.scheduled(n)
        assert len({s.view.size for s in shown}) == 1
        assert all(s.view.position == 0.5 and not s.view.flip for s in shown[2:])
        used += [s.view.example.path.name for s in shown[2:]]
    assert set(Counter(used).values()) == {4}  # 20 places, 5 class pictures: all equally often


def test_cuts_and_mirror_images_are_a_few_that_were_encoded_beforehand(example) -> None:
    wide, fitting = example("a.png", 128, 64), example("b.png", 64, 64, seed=1)
    batches = BatchLoader([wide, fitting], [SQUARE] * 2, data(random_crop=True, variants=3, flip=True), 1, seed=0)
    views = batches.views(0, 200)
    assert {view.position for view in views if view.example is wide} == {0.0, 0.5, 1.0}
    assert {view.position for view in views if view.example is fitting} == {0.5}  # nothing sticks out: one cut
    assert len(views) == 3 * 2 + 2
    plain = BatchLoader([wide, fitting], [SQUARE] * 2, data(), 1, seed=0)
    assert len(plain.views(0, 200)) == 2


def test_captions_tell_all_that_will_be_said(pictures: list[Example]) -> None:
    batches = BatchLoader(pictures, SIZES, data(**BUSY), 2, seed=0)
    captions = set(batches.captions(3, 20))
    assert captions == {caption for batch in read(batches, 3, 20) for caption in batch.captions} and "" in captions


def test_masks_weight_in_full_what_has_none(example, folder) -> None:
    Image.new("L", (64, 64), 51).save(folder / "a.mask.png")
    masked = example("a.png", mask=folder / "a.mask.png", mask_digest=sha256(folder / "a.mask.png"))
    batches = BatchLoader([masked, example("b.png", seed=1)], [SQUARE] * 2, data(), 2, seed=0)
    (batch,) = read(batches, 0, 1)
    assert batch.mask is not None and batch.mask.shape == (2, 1, 8, 8)
    weights = {shown.view.example.path.name: float(batch.mask[shown.position].mean()) for shown in batches.scheduled(0)}
    assert weights == pytest.approx({"a.png": 0.2, "b.png": 1.0})
    (without,) = read(batches, 0, 1, masks=False)
    assert without.mask is None


def test_a_notice_says_when_pictures_fill_up_batches(pictures: list[Example]) -> None:
    def captions(batch_size: int, sizes: Sequence[ImageSize]) -> list[str]:
        return BatchLoader(pictures, sizes, data(), batch_size, seed=0).notices()

    assert captions(1, SIZES) == []
    assert captions(4, SIZES) == ["The buckets do not fill batches of 4: 5 of 12 examples in an epoch are repeats."]


def test_a_share_of_the_examples_preserves_the_base_without_caption_or_trigger(example) -> None:
    captions = [f"ohwx style, a {number} on grass" for number in range(4)]
    pictures = [example(f"{number}.png", seed=number, caption=text) for number, text in enumerate(captions)]
    told = data(trigger="ohwx style", preserve_empty=0.25, preserve_untriggered=0.5)
    batches = BatchLoader(pictures, [SQUARE] * 4, told, 2, seed=0)
    shown = [each for n in range(400) for each in batches.scheduled(n)]
    kinds = Counter((each.from_base, each.caption == "", "ohwx style" in each.caption) for each in shown)
    assert {*kinds} == {(True, True, False), (True, False, False), (False, False, True)}
    # 800 drawings: four standard deviations are below 0.07.
    for kind, share in ((True, True, False), 0.25), ((True, False, False), 0.5), ((False, False, True), 0.25):
        assert kinds[kind] / 800 == pytest.approx(share, abs=0.07)
    first = batches.scheduled(7)
    assert [each.from_base for each in BatchLoader(pictures, [SQUARE] * 4, told, 2, seed=0).scheduled(7)] == [
        each.from_base for each in first
    ]
    assert batches.needs_base and not BatchLoader(pictures, [SQUARE] * 4, data(), 2, seed=0).needs_base


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preserve_empty": 0.5, "preserve_untriggered": 0.5, "trigger": "x"}, "nothing to learn"),
        ({"preserve_untriggered": 0.2}, "needs a trigger"),
    ],
)
def test_preserving_everything_or_without_a_trigger_is_refused(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        data(**settings)


def test_a_caption_that_is_the_trigger_alone_preserves_nothing(example) -> None:
    pictures = [example("a.png", caption="ohwx style"), example("b.png", seed=1, caption="ohwx style, a cat")]
    told = data(trigger="ohwx style", preserve_empty=0.4, preserve_untriggered=0.5)
    batches = BatchLoader(pictures, [SQUARE] * 2, told, 2, seed=0)
    shown = [each for n in range(60) for each in batches.scheduled(n)]
    assert {each.view.example.path.name for each in shown if each.from_base} == {"b.png"}


def test_wildcards_are_drawn_by_seed_epoch_and_image_alone(example) -> None:
    pictures = [example(f"{i}.png", seed=i, caption=f"{i} {{a|b|c|d}}\n{i} e") for i in range(3)]

    def captions(first: int, seed: int = 1) -> list[list[str]]:
        batches = BatchLoader(pictures, [SQUARE] * 3, data(wildcards=True), batch_size=1, seed=seed)
        return [[item.caption for item in batches.scheduled(n)] for n in range(first, 30)]

    assert captions(0)[9:] == captions(9) and captions(0) != captions(0, seed=2)
    assert len({caption for batch in captions(0) for caption in batch}) > 9
    batches = BatchLoader(pictures, [SQUARE] * 3, data(wildcards=True), batch_size=1, seed=1)
    assert {*batches.captions(0, 30)} == {caption for batch in captions(0) for caption in batch}
