"""The cache: the same bits whatever was there before, and damage made good."""

import hashlib
import os
import sys
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdlora.data import cache as cache_module
from sdlora.data.cache import LatentCache, TextCache, View
from sdlora.data.images import ImageSize, open_image, to_pixels
from sdlora.data.tensor_store import TensorStore
from sdlora.errors import FileError, NonFiniteError
from sdlora.filesystem.reading import sha256
from tests.support.images import block_means

SQUARE = ImageSize(64, 64)


@pytest.fixture(scope="module")
def encode():
    """Return a tiny VAE's encoder: pixels -> mean and deviation at an eighth of the size."""
    from tests.support.tiny_models import tiny_models

    vae = tiny_models()["vae"]

    def run(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distribution = vae.encode(pixels).latent_dist
        return distribution.mean, distribution.std

    return run


def latents_of(views: list[View], cache: LatentCache) -> list[torch.Tensor]:
    return [part for view in views for part in (cache.read(view).mean, cache.read(view).std)]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_latents_are_those_of_the_picture(example, tmp_path: Path) -> None:
    picture = example()
    cache = LatentCache(TensorStore(tmp_path), "vae")
    assert cache.prepare([View(picture, SQUARE)], block_means)
    found = cache.read(View(picture, SQUARE))
    expected = block_means(to_pixels(open_image(picture.path).rgb)[None])
    assert torch.equal(found.mean, expected[0][0]) and torch.equal(found.std, expected[1][0]) and found.mask is None
    assert found.mean.shape == (4, 8, 8) and found.mean.dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_half_filled_cache_gives_the_same_bits(example, encode, tmp_path: Path, batch_size: int) -> None:
    views = [View(example(f"{i}.png", seed=i), SQUARE, flip=i % 2 == 1) for i in range(6)]
    views += [View(views[0].example, ImageSize(80, 48))]
    whole = LatentCache(TensorStore(tmp_path / "whole"), "vae", batch_size=batch_size)
    assert whole.prepare(views, encode)
    for taken in ([4], [6, 5, 1]):
        half = LatentCache(TensorStore(tmp_path / str(taken)), "vae", batch_size=batch_size)
        assert half.prepare([views[i] for i in taken], encode)
        assert half.prepare(views, encode)
        reread = LatentCache(TensorStore(tmp_path / str(taken)), "vae", batch_size=batch_size)
        assert equal(latents_of(views, whole), latents_of(views, reread))


def test_what_is_there_is_not_made_again(example, tmp_path: Path) -> None:
    views = [View(example(f"{i}.png", seed=i), SQUARE) for i in range(3)]
    LatentCache(TensorStore(tmp_path), "vae").prepare(views, block_means)
    progress: list[tuple[int, int]] = []
    again = LatentCache(TensorStore(tmp_path), "vae")
    assert again.prepare(views, lambda pixels: pytest.fail("encoded again"), lambda *n: progress.append(n))
    assert progress == [(3, 3)]


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "garbage"])
def test_a_damaged_entry_is_made_again(example, tmp_path: Path, damage: str) -> None:
    view = View(example(), SQUARE)
    cache = LatentCache(TensorStore(tmp_path), "vae")
    cache.prepare([view], block_means)
    sound, path = cache.read(view), cache.store.path(cache.key(view))
    content = path.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 4]) + content[-4:]
    path.write_bytes({"flipped": flipped, "cut": content[:-9], "emptied": b"", "garbage": b"\xff" * 99}[damage])
    again = LatentCache(TensorStore(tmp_path), "vae")
    with pytest.raises(FileError, match=r"a\.png: its latents are missing or damaged"):
        again.read(view)
    assert again.prepare([view], block_means)
    assert torch.equal(again.read(view).mean, sound.mean) and path.read_bytes() == content


def test_all_that_decides_latents_is_in_the_key(example, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, other = example(), example("b.png", seed=1)
    view = View(picture, SQUARE)
    caches = [
        LatentCache(TensorStore(None), *arguments, **more)
        for arguments, more in (
            (("vae",), {}), (("vae 2",), {}), (("vae", "#000000"), {}), (("vae",), {"masks": False}),
            (("vae",), {"batch_size": 2}),
        )
    ]  # fmt: skip
    views = [
        View(other, SQUARE),
        View(picture, ImageSize(80, 48)),
        View(picture, SQUARE, 0.0),
        View(picture, SQUARE, flip=True),
    ]
    keys = [cache.key(view) for cache in caches] + [caches[0].key(view) for view in views]
    monkeypatch.setattr(cache_module, "LATENTS_VERSION", cache_module.LATENTS_VERSION + 1)
    keys.append(caches[0].key(view))
    assert len(set(keys)) == len(keys) == 10


def test_stopping_keeps_what_was_made(example, tmp_path: Path) -> None:
    views = [View(example(f"{i}.png", seed=i), SQUARE) for i in range(4)]
    cache, stops = LatentCache(TensorStore(tmp_path), "vae"), iter([False, False, True])
    assert not cache.prepare(views, block_means, should_stop=lambda: next(stops))
    assert [cache.store.get(cache.key(view)) is not None for view in views] == [True, True, False, False]


def test_masks_come_from_files_or_from_transparency(example, folder: Path) -> None:
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    half.save(folder / "a.mask.png")
    see_through = open_image(example("b.png", seed=1).path).rgb
    see_through.putalpha(half)
    see_through.save(folder / "b.png")
    masked = example("a.png", mask=folder / "a.mask.png", mask_digest=sha256(folder / "a.mask.png"))
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes())
    from_alpha = replace(masked, path=folder / "c.png", mask=None, mask_digest="", digest=sha256(folder / "c.png"))
    for picture in (masked, from_alpha):
        plain, mirrored = View(picture, SQUARE), View(picture, SQUARE, flip=True)
        cache = LatentCache(TensorStore(None), "vae")
        cache.prepare([plain, mirrored], block_means)
        mask = cache.read(plain).mask
        assert mask is not None and mask.shape == (1, 8, 8)
        assert mask[0, 3].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
        assert cache.read(mirrored).mask[0, 3].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # type: ignore[index]
        ignored = LatentCache(TensorStore(None), "vae", masks=False)
        ignored.prepare([plain], block_means)
        assert ignored.read(plain).mask is None


def test_non_finite_latents_name_the_picture(example) -> None:
    def overflowing(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = block_means(pixels)
        return mean / 0, std

    with pytest.raises(NonFiniteError, match=r"a\.png"):
        LatentCache(TensorStore(None), "vae").prepare([View(example(), SQUARE)], overflowing)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_the_encoder_goes_before_those_who_decode_for_it(example, monkeypatch: pytest.MonkeyPatch) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own, decoding = priority(), []
    opened = cache_module.open_image
    monkeypatch.setattr(cache_module, "open_image", lambda *given: decoding.append(priority()) or opened(*given))
    cache = LatentCache(TensorStore(None), "vae")
    assert cache.prepare([View(example(), SQUARE)], block_means)
    assert decoding == [19] and priority() == own


def test_an_error_leaves_no_thread_behind(example) -> None:
    before = threading.active_count()
    views = [View(example(f"{i}.png", seed=i), SQUARE) for i in range(12)]
    with pytest.raises(ZeroDivisionError):
        LatentCache(TensorStore(None), "vae").prepare(views, lambda pixels: 1 / 0)  # type: ignore[arg-type, return-value]
    assert threading.active_count() <= before


def test_memory_stays_within_its_budget(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, memory=3000)
    for number in range(20):
        store.put(f"{number:064d}", {"a": torch.full((256,), float(number))})  # 1024 bytes each
    assert sum(t["a"].nbytes for t in store._in_memory.values()) <= 3000
    assert [float(store.get(f"{n:064d}")["a"][0]) for n in range(20)] == list(range(20))  # type: ignore[index]


def test_a_store_without_folder_forgets_nothing() -> None:
    store = TensorStore(None, memory=10)
    for number in range(5):
        store.put(str(number), {"a": torch.zeros(100)})
    assert all(store.get(str(number)) is not None for number in range(5))


def test_another_entrys_content_is_not_taken(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    for number in range(2):
        store.put(f"{number:064x}", {"a": torch.full((4,), float(number))})
    one, other = (store.path(f"{number:064x}") for number in range(2))
    one.write_bytes(other.read_bytes())
    assert TensorStore(tmp_path).get(f"{0:064x}") is None


def test_an_entry_of_version_0_1_0_is_taken(tmp_path: Path) -> None:
    """The hash in those files is of the tensors alone."""
    tensors = {"a": torch.ones(4)}
    path = TensorStore(tmp_path).path("0" * 64)
    path.parent.mkdir()
    digest = hashlib.sha256(b"a (4,) torch.float32" + tensors["a"].numpy().tobytes()).hexdigest()
    save_file(tensors, path, {"sha256": digest})
    assert TensorStore(tmp_path).get("0" * 64) is not None


def test_text_is_encoded_once_and_kept(tmp_path: Path) -> None:
    requests = []

    def encode_text(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        requests.append(ids.tolist())
        return {"text": ids[..., None].to(torch.bfloat16).expand(-1, -1, 3), "pooled": ids.sum(1, keepdim=True).float()}

    ids = torch.tensor([[1, 2], [3, 4], [1, 2]])
    cache = TextCache(TensorStore(tmp_path), "clip", encode_text)
    assert cache.prepare(ids) and requests == [[[1, 2]], [[3, 4]]]
    again = TextCache(TensorStore(tmp_path), "clip", encode_text).read(ids)
    assert len(requests) == 2
    assert again["text"].shape == (3, 2, 3) and again["text"].dtype == torch.bfloat16
    assert again["pooled"].tolist() == [[3], [7], [3]]
    TextCache(TensorStore(tmp_path), "other clip", encode_text).read(ids[:1])
    assert len(requests) == 3
    assert not cache.prepare(torch.tensor([[9, 9]]), should_stop=lambda: True)


def test_a_store_with_little_memory_can_be_read_by_two_threads():
    """Nothing is put in between the two lines in which the other finds an entry, here made as wide as it takes."""
    store = TensorStore(None)
    for key in "ab":
        store.put(key, {"mean": torch.zeros(1)})
    met = threading.Event()

    class Watched(OrderedDict):
        def move_to_end(self, key, last=True):
            evicting = threading.Thread(target=lambda: (store._remember("c", {}), met.set()))
            evicting.start()
            assert not met.wait(0.05)
            super().move_to_end(key, last)

    store._in_memory = Watched(store._in_memory)
    assert store.get("a") is not None
    assert met.wait(5)
