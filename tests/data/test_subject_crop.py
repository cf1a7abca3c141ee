"""Crops to the subject: which part of an image its mask marks, and that all that tells sizes follows it."""

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.data import doctor
from sdlora.data.buckets import assign_buckets
from sdlora.data.cache import LatentCache, View
from sdlora.data.cropping import CropBox, crop_and_resize
from sdlora.data.dataset import load_dataset
from sdlora.data.images import ImageSize, open_image, to_pixels
from sdlora.data.settings import Data
from sdlora.data.subject_crop import subject_box
from sdlora.data.tensor_store import TensorStore
from sdlora.errors import ConfigError
from tests.support.images import noise_image

SIZE = ImageSize(400, 300)


def write_mask(path, box, size=SIZE, level=255):
    mask = Image.new("L", size)
    mask.paste(level, box)
    mask.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """An image with a mask, and one without."""
    folder = tmp_path / "set"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        noise_image(*SIZE, seed=seed).save(folder / name)
    write_mask(folder / "a.mask.png", (100, 50, 200, 250))
    return folder


def example(folder, **settings):
    return load_dataset(Data(folder=folder, **settings)).examples[0]


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [((100, 50, 200, 250), 0, (100, 50, 200, 250)),
     ((100, 50, 200, 250), 0.1, (80, 30, 220, 270)),  # A tenth of 200, the longer side.
     ((0, 50, 200, 250), 0.25, (0, 0, 250, 300)),  # Clipped to the image.
     ((0, 0, 400, 300), 0, None), ((100, 50, 200, 250), 10, None),
     ((200, 150, 204, 154), 0, (186, 136, 218, 168)),  # No side is shorter than an image's may be.
     ((0, 0, 4, 4), 0, (0, 0, 32, 32)),
     ((0, 290, 400, 300), 0, (0, 250, 400, 300))],  # Nor less than an eighth of the other.
)  # fmt: skip
def test_the_box_is_what_the_mask_marks_with_a_margin_within_the_image(tmp_path, box, margin, expected):
    assert subject_box(write_mask(tmp_path / "a.mask.png", box), SIZE, margin) == expected


def test_a_mask_of_another_size_marks_the_same_part(tmp_path):
    path = write_mask(tmp_path / "a.mask.png", (25, 10, 50, 60), size=(100, 75))
    assert subject_box(path, SIZE, 0) == (100, 40, 200, 240)


def test_faint_places_are_no_subject_but_a_faint_mask_has_one(tmp_path):
    mask = Image.new("L", SIZE, 20)
    mask.paste(60, (100, 50, 200, 250))
    mask.save(tmp_path / "a.mask.png")
    assert subject_box(tmp_path / "a.mask.png", SIZE, 0) == (100, 50, 200, 250)


def test_a_mask_that_is_painted_anew_crops_anew(tmp_path):
    path = write_mask(tmp_path / "a.mask.png", (100, 50, 200, 250))
    first = subject_box(path, SIZE, 0)
    path.unlink()
    assert subject_box(write_mask(path, (0, 0, 200, 200)), SIZE, 0) != first


def test_by_default_nothing_is_cropped(folder):
    assert example(folder).crop is None
    assert example(folder).size == SIZE
    with pytest.raises(ConfigError, match="crop_margin"):
        Data.checked(folder=folder, crop_margin=-1)


def test_sizes_buckets_and_findings_follow_the_crop(folder):
    data = Data(folder=folder, crop="subject", crop_margin=0)
    first, second = load_dataset(data).examples
    assert (first.size, first.image_size, second.size) == ((100, 200), SIZE, SIZE)
    narrow, wide = assign_buckets([first, second], 256, 64)
    assert narrow.width < narrow.height and wide.width > wide.height
    texts = {finding.label: finding.text for finding in doctor.check_dataset(data, 256)}
    assert "the shortest side has 100" in texts["small"]
    assert texts["no mask"].startswith("No mask to crop by: 1 picture (b.png).")
    assert any("Cropped to what the mask marks: 1 picture (a.png)" in text for text in texts.values())


def test_masks_may_crop_and_not_weight_the_loss(folder):
    cropped = example(folder, crop="subject", masks=False)
    assert cropped.crop == (80, 30, 220, 270)
    cache = LatentCache(TensorStore(None), "vae", masks=False)
    view = View(cropped, ImageSize(64, 64))
    cache.prepare([view], encode)
    assert cache.read(view).mask is None


def encode(pixels):
    """Latents that are means of 8 x 8 px."""
    means = torch.nn.functional.avg_pool2d(pixels, 8)
    return means, torch.zeros_like(means)


def latents(cropped, size, masks=True, **view):
    cache = LatentCache(TensorStore(None), "vae", masks=masks)
    found = View(cropped, size, **view)
    cache.prepare([found], encode)
    return cache.read(found)


@pytest.mark.parametrize("flip", [False, True])
def test_latents_and_their_mask_are_those_of_an_image_that_was_cropped_by_hand(folder, tmp_path, flip):
    """The pixels beyond the crop reach into Lanczos' window at its edge alone."""
    cropped = example(folder, crop="subject", crop_margin=0.1)
    by_hand = tmp_path / "by hand"
    by_hand.mkdir()
    for name in ("a.png", "a.mask.png"):
        Image.open(folder / name).crop(tuple(map(int, cropped.crop))).save(by_hand / name)
    size = ImageSize(64, 128)
    found, expected = (latents(each, size, position=0.5, flip=flip) for each in (cropped, example(by_hand)))
    assert torch.allclose(found.mean[..., 1:-1, 1:-1], expected.mean[..., 1:-1, 1:-1], atol=0.02)
    assert torch.allclose(found.mask, expected.mask, atol=1 / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_part_is_that_of_the_upright_image(tmp_path, orientation):
    """The mask lies upright; what the file stores is turned by EXIF."""
    folder = tmp_path / "set"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise_image(120, 80, seed=orientation).save(folder / "a.jpg", exif=exif, quality=95)
    upright = open_image(folder / "a.jpg").rgb
    write_mask(folder / "a.mask.png", (8, 16, 40, 56), size=upright.size)
    cropped = example(folder, crop="subject", crop_margin=0)
    assert cropped.crop == (8, 16, 40, 56) and cropped.image_size == upright.size
    found = latents(cropped, ImageSize(32, 40), masks=False).mean[0]
    red = np.asarray(upright.crop((8, 16, 40, 56)), dtype=float)[..., 0] / 127.5 - 1
    assert np.allclose(found.numpy(), red.reshape(5, 8, 4, 8).mean((1, 3)), atol=0.01)


def test_a_large_jpeg_is_decoded_small_but_its_part_in_full(tmp_path):
    """A twentieth of the width is trained at 64 px: an eighth of the image's pixels would leave 13 of them."""
    folder = tmp_path / "set"
    folder.mkdir()
    image = noise_image(2000, 1500, seed=3)
    image.save(folder / "a.jpg", quality=95)
    write_mask(folder / "a.mask.png", (1000, 600, 1100, 700), size=image.size)
    view = View(example(folder, crop="subject", crop_margin=0), ImageSize(64, 64))
    cache = LatentCache(TensorStore(None), "pixels", masks=False)
    cache.prepare([view], lambda pixels: (pixels, torch.zeros_like(pixels)))
    part = crop_and_resize(open_image(folder / "a.jpg").rgb.crop((1000, 600, 1100, 700)), ImageSize(64, 64))
    inner = slice(4, -4)  # Lanczos' window reaches beyond the part at its edge.
    found, expected = (pixels[:, inner, inner] for pixels in (cache.read(view).mean, to_pixels(part)))
    assert torch.allclose(found, expected, atol=0.01)


def test_a_key_without_a_crop_is_what_it_was_and_each_crop_has_its_own(folder):
    """The first key was computed before there were such crops."""
    cache, keys = LatentCache(TensorStore(None), "vae"), []
    for settings in ({}, {"crop": "subject"}, {"crop": "subject", "crop_margin": 0.2}):
        keys.append(cache.key(View(example(folder, **settings), ImageSize(64, 64))))
    assert len({*keys}) == 3
    plain = example(folder)
    image = (plain.digest, plain.mask_digest, True, "#ffffff")
    assert keys[0] == key_of_version_2(image, ((64, 64), 0.5, False))


def key_of_version_2(image, crop):
    """The key of latents as it was written before there were crops to the subject."""
    from hashlib import sha256

    parts = ("latents", 2, "vae", 1, image, crop)
    return sha256("\x1f".join(map(repr, parts)).encode()).hexdigest()


@pytest.mark.parametrize(("flip", "left"), [(False, 64), (True, 128)])
def test_sdxl_is_told_the_whole_images_size_and_where_the_crop_lies_in_it(folder, flip, left):
    """The part of 100 x 200 px at 100, 50 of 400 x 300 fills 64 x 128: scaled by 0.64, it begins at 64, 32; in the
    mirrored image, whose width is 256, at 256 - 64 - 64.
    """
    view = View(example(folder, crop="subject", crop_margin=0), ImageSize(64, 128), flip=flip)
    assert view.size_and_crop == (300, 400, 32, left)


def test_what_a_bucket_cuts_off_the_part_is_told_too(folder):
    """The part of 100 x 200 becomes 64 x 128, of which the upper 64 rows begin at 32, the lower ones at 96."""
    cropped = example(folder, crop="subject", crop_margin=0)
    places = [View(cropped, ImageSize(64, 64), position).size_and_crop for position in (0, 1)]
    assert places == [(300, 400, 32, 64), (300, 400, 96, 64)]


def test_a_part_of_a_smaller_copy_is_scaled_alike():
    assert CropBox(100, 50, 200, 250).scaled(SIZE, (200, 150)) == (50, 25, 100, 125)
