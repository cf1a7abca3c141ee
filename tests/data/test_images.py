"""Opening pictures: every colour mode and orientation comes out upright, in RGB, at its true brightness."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.data.cropping import crop_and_resize, crop_and_resize_mask, crop_box, overflow
from sdlora.data.images import ImageSize, inspect_image, open_image, open_mask, to_pixels
from sdlora.errors import DatasetError
from tests.support.hostile_files import picture_bomb, text_bomb
from tests.support.images import noise_image

# how an upright array lies in the file, by EXIF 2.32 tag 0x0112 ("row 0 is the visual right side", and so on)
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_undone(folder: Path, orientation: int, suffix: str) -> None:
    upright = np.asarray(noise_image(64, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, **options)
    assert inspect_image(path).size == (64, 48)
    assert np.array_equal(np.asarray(open_image(path).rgb), upright)


def test_broken_exif_is_ignored(folder: Path) -> None:
    path = folder / "a.jpg"
    noise_image(64, 48).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff garbage", quality=95)
    assert inspect_image(path).size == (64, 48)
    assert open_image(path).rgb.size == (64, 48)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(folder: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for name, values in (("a.png", ramp), ("b.tif", ramp), ("c.tif", ramp.astype(np.int32)), ("d.tif", ramp / 65535)):
        Image.fromarray(values.astype(np.float32) if values.dtype == np.float64 else values).save(folder / name)
        grey = np.asarray(open_image(folder / name).rgb)[..., 0].astype(int)
        assert np.abs(grey - ramp / 257).max() <= 1, name
    dark = folder / "dark.png"
    Image.fromarray(ramp // 512).save(dark)
    assert np.asarray(open_image(dark).rgb).max() == 0  # a dark picture stays dark


def test_cmyk_palette_and_grey_become_rgb(folder: Path) -> None:
    red = Image.new("RGB", (40, 40), "#ff0000")
    red.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    red.convert("1").save(folder / "bits.png")
    for name in ("cmyk.jpg", "palette.png"):
        assert np.abs(np.asarray(open_image(folder / name).rgb).astype(int) - (255, 0, 0)).max() <= 3, name
    assert open_image(folder / "bits.png").rgb.mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background_and_becomes_the_mask(folder: Path, mode: str) -> None:
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    picture.paste((255, 255, 255, 255), (0, 0, 20, 40))
    picture.convert(mode).save(folder / "a.png")
    rgb, mask = open_image(folder / "a.png", "#336699")
    assert rgb.getpixel((5, 5)) == (255, 255, 255) and rgb.getpixel((30, 5)) == (0x33, 0x66, 0x99)
    assert mask is not None and mask.getpixel((5, 5)) == 255 and mask.getpixel((30, 5)) == 0


def test_an_alpha_channel_that_hides_nothing_is_no_mask(folder: Path) -> None:
    noise_image().convert("RGBA").save(folder / "a.png")
    assert open_image(folder / "a.png").mask is None


def test_a_large_jpeg_decoded_small_looks_the_same(folder: Path) -> None:
    path = folder / "a.jpg"
    noise_image(64, 48).resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=95)
    size = ImageSize(64, 64)
    whole, small = (
        np.asarray(crop_and_resize(open_image(path, at_least=s).rgb, size)).astype(int) for s in (None, size)
    )
    assert open_image(path, at_least=size).rgb.width < 1600
    assert np.abs(whole - small).mean() < 2


def test_fit_cuts_to_the_ratio_and_keeps_what_it_is_told_to() -> None:
    picture = noise_image(120, 40)
    left, middle, right = (crop_and_resize(picture, ImageSize(40, 40), position) for position in (0, 0.5, 1))
    for cut, start in ((left, 0), (middle, 40), (right, 80)):
        assert np.array_equal(np.asarray(cut), np.asarray(picture.crop((start, 0, start + 40, 40))))
    mirrored = np.asarray(crop_and_resize(picture, ImageSize(40, 40), 0, flip=True))
    assert np.array_equal(mirrored, np.asarray(left)[:, ::-1])


def test_the_cut_stays_inside_and_touches_two_sides() -> None:
    for picture, size in (
        (ImageSize(781, 780), ImageSize(512, 512)),
        (ImageSize(33, 200), ImageSize(64, 256)),
        (ImageSize(3, 7), ImageSize(8, 8)),
    ):
        for position in (0, 0.3, 1):
            left, top, right, bottom = crop_box(picture, size, position)
            assert 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
            assert abs((right - left) / (bottom - top) - size.width / size.height) < 1e-9
    assert (
        overflow(ImageSize(100, 50), ImageSize(64, 64)) == 64 and overflow(ImageSize(640, 640), ImageSize(64, 64)) == 0
    )


def test_a_mask_is_averaged_over_each_latent_and_cut_like_its_picture() -> None:
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 68, 64))  # white up to pixel 68: half of the latent that spans 64 to 72
    latents = crop_and_resize_mask(mask, ImageSize(8, 8), position=0.5)
    assert latents.shape == (1, 8, 8)
    expected = [1, 1, 1, 1, 0.5, 0, 0, 0]  # the middle cut begins at pixel 32
    assert np.allclose(latents[0, 3].numpy(), expected, atol=1 / 255)
    assert np.allclose(
        crop_and_resize_mask(mask, ImageSize(8, 8), flip=True)[0, 3].numpy(), expected[::-1], atol=1 / 255
    )


def test_a_mask_file_is_read_as_brightness(folder: Path) -> None:
    Image.fromarray(np.full((40, 40), 32896, np.uint16)).save(folder / "a.mask.png")
    assert open_mask(folder / "a.mask.png").getextrema() == (128, 128)


def test_pixels_run_from_minus_one_to_one() -> None:
    pixels = to_pixels(Image.new("RGB", (8, 4), (0, 255, 51)))
    assert pixels.shape == (3, 4, 8) and pixels.is_contiguous()
    assert [round(float(channel[0, 0]), 6) for channel in pixels] == [-1, 1, -0.6]


def test_a_picture_that_went_away_is_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.png: is gone"):
        open_image(folder / "a.png")


def _rise_in_memory(path: Path) -> int:
    """Bytes by which examining ``path`` raises the peak of resident memory."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError):
        inspect_image(path)
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


@pytest.mark.parametrize(
    ("write", "reason"),
    [(picture_bomb, "13000 x 13000 pixels; over 67 million"), (text_bomb, "text beside its pixels")],
)
def test_a_bomb_is_refused_before_it_fills_memory(folder: Path, write: Callable[[Path], None], reason: str) -> None:
    path = folder / "bomb.png"
    write(path)
    assert path.stat().st_size < 500_000
    assert _rise_in_memory(path) < 300e6
    with pytest.raises(DatasetError, match=reason):
        inspect_image(path)


def test_a_second_look_decodes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_image().save(folder / "a.png")
    first = inspect_image(folder / "a.png")
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded again"))
    assert inspect_image(folder / "a.png") == first


def test_twelve_megapixels_pass(folder: Path) -> None:
    Image.new("RGB", (4000, 3000), "#80a0c0").save(folder / "photo.jpg")
    assert inspect_image(folder / "photo.jpg").size == (4000, 3000)


def test_content_decides_and_not_the_name(folder: Path) -> None:
    jpeg = io.BytesIO()
    noise_image().save(jpeg, "JPEG")
    (folder / "a.png").write_bytes(jpeg.getvalue())
    assert inspect_image(folder / "a.png").size == (64, 48)
