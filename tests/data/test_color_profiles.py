"""Embedded color profiles: the colors that are meant, by the formulas of the color spaces."""

import io
import random
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdlora.data.color_profiles import INVISIBLE, LARGEST_PROFILE, UnusableProfileError, to_srgb
from sdlora.data.dataset import survey_folder
from sdlora.data.images import inspect_image, open_image, open_mask
from sdlora.data.settings import Data

WHITE = (0.9642, 1.0, 0.8249)
"""D50 in XYZ, to which a profile's columns are adapted."""
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""Linear sRGB to XYZ at D50."""
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
PROPHOTO = np.array([[0.79767, 0.13519, 0.03134], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]])
SPACES = {"P3": (P3, 2.2), "Adobe RGB": (ADOBE, 2.2), "ProPhoto": (PROPHOTO, 1.8)}
COLOR = (180, 60, 60)


def profile(to_xyz, gamma):
    """An ICC profile (version 2.1) of three primaries and a power curve."""

    def fixed(*numbers):
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    name = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    parts = {b"desc": name, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": b"XYZ " + bytes(4) + fixed(*WHITE)}
    for channel, column in zip((b"r", b"g", b"b"), to_xyz.T, strict=True):
        parts |= {channel + b"XYZ": b"XYZ " + bytes(4) + fixed(*column), channel + b"TRC": curve}
    table, body, start = struct.pack(">I", len(parts)), b"", 128 + 4 + 12 * len(parts)
    for tag, part in parts.items():
        table += tag + struct.pack(">II", start + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    header = bytes(4) + struct.pack(">I", 0x02100000) + b"mntrRGB XYZ " + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    header = (header + b"acsp").ljust(64, b"\0") + fixed(*WHITE)
    return struct.pack(">I", start + len(body)) + header.ljust(124, b"\0") + table + body


def in_srgb(color, to_xyz, gamma):
    """The color's numbers in sRGB: decoded, through XYZ, encoded (IEC 61966-2-1), cut to the space."""
    linear = np.linalg.solve(SRGB, to_xyz @ (np.array(color) / 255) ** gamma).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("jpg", {"quality": 98}), ("webp", {"lossless": True}), ("tif", {})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_of_another_space_become_those_of_srgb(tmp_path, space, suffix, options):
    path = tmp_path / f"one.{suffix}"
    Image.new("RGB", (160, 160), COLOR).save(path, icc_profile=profile(*SPACES[space]), **options)
    meant = in_srgb(COLOR, *SPACES[space])
    assert np.abs(np.array(COLOR) - meant).max() > 15
    assert np.abs(np.array(open_image(path).rgb.getpixel((80, 80))) - meant).max() <= 2
    assert inspect_image(path).colors == "converted"


def test_a_profile_of_srgb_changes_no_bit(tmp_path):
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = Image.effect_noise((64, 64), 80).convert("RGB")
    plain.save(tmp_path / "tagged.png", icc_profile=own)
    assert open_image(tmp_path / "tagged.png").rgb.tobytes() == plain.tobytes()
    assert inspect_image(tmp_path / "tagged.png").colors == "as stored"
    assert 0 < INVISIBLE < 15


def test_transparency_and_a_palette_go_through_a_profile(tmp_path):
    picture = Image.new("RGBA", (64, 64), (*COLOR, 255))
    picture.paste((*COLOR, 0), (0, 0, 32, 64))
    path = tmp_path / "half.png"
    picture.save(path, icc_profile=profile(*SPACES["P3"]))
    opened, meant = open_image(path, "#000000"), in_srgb(COLOR, *SPACES["P3"])
    assert opened.rgb.getpixel((10, 10)) == (0, 0, 0)
    assert np.abs(np.array(opened.rgb.getpixel((50, 10))) - meant).max() <= 2
    assert (opened.mask.getpixel((10, 10)), opened.mask.getpixel((50, 10))) == (0, 255)
    Image.new("RGB", (64, 64), COLOR).quantize(2).save(path, icc_profile=profile(*SPACES["P3"]))
    assert np.abs(np.array(open_image(path).rgb.getpixel((50, 10))) - meant).max() <= 2


def test_a_turned_photograph_is_converted_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (96, 64), COLOR)
    picture.save(tmp_path / "one.jpg", exif=exif, icc_profile=profile(*SPACES["P3"]), quality=98)
    rgb = open_image(tmp_path / "one.jpg").rgb
    assert rgb.size == (64, 96)
    assert np.abs(np.array(rgb.getpixel((30, 30))) - in_srgb(COLOR, *SPACES["P3"])).max() <= 3


@pytest.mark.parametrize("damage", [b"x" * 200, profile(*SPACES["P3"])[:150], bytes(LARGEST_PROFILE + 1)], ids=len)
def test_a_damaged_profile_leaves_the_numbers_and_is_told(tmp_path, damage):
    path = tmp_path / "one.jpg"
    Image.new("RGB", (64, 64), COLOR).save(path, icc_profile=damage, quality=98)
    assert np.abs(np.array(open_image(path).rgb.getpixel((30, 30))) - COLOR).max() <= 2
    assert inspect_image(path).colors == "damaged profile"
    assert any(
        "one.jpg" in notice and "taken as sRGB" in notice for notice in survey_folder(Data(folder=tmp_path)).notices
    )


def test_a_profile_of_another_kind_of_image_leaves_the_numbers(tmp_path):
    path = tmp_path / "one.jpg"
    Image.new("CMYK", (64, 64), (0, 170, 170, 70)).save(path, icc_profile=profile(*SPACES["P3"]), quality=98)
    plain = tmp_path / "plain.jpg"
    Image.new("CMYK", (64, 64), (0, 170, 170, 70)).save(plain, quality=98)
    assert open_image(path).rgb.tobytes() == open_image(plain).rgb.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_profile_is_used_or_refused(seed):
    rng = random.Random(seed)
    outcomes = Counter()
    for _ in range(200):
        changed = bytearray(profile(*SPACES["P3"]))
        for _ in range(rng.choice((1, 2, 8))):
            at = rng.randrange(len(changed))
            changed[at : at + rng.randrange(5)] = rng.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"", b"CMYK", b"GRAY", b"mft2", b"para", rng.randbytes(4))
            )
        image = Image.new(rng.choice(("RGB", "L", "RGBA", "CMYK", "LA", "P")), (4, 4))
        image.info["icc_profile"] = bytes(changed)
        try:
            outcomes[to_srgb(image).mode] += 1
        except UnusableProfileError:
            outcomes["refused"] += 1
    assert 0 < outcomes["refused"] < outcomes.total() and outcomes["RGB"] > 0


def test_a_mask_s_numbers_are_weights_and_no_colors(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("RGB", (64, 64), (128, 128, 128)).save(path, icc_profile=profile(P3, 1.0))
    assert open_mask(path).getpixel((5, 5)) == 128
    assert open_image(path).rgb.getpixel((5, 5))[0] > 160


def test_a_folder_says_which_pictures_were_converted(tmp_path):
    for name, options in {"wide.png": {"icc_profile": profile(*SPACES["P3"])}, "plain.png": {}}.items():
        Image.new("RGB", (64, 64), COLOR).save(tmp_path / name, **options)
    [notice] = [line for line in survey_folder(Data(folder=tmp_path)).notices if "sRGB" in line]
    assert "wide.png" in notice and "plain.png" not in notice


def test_a_grey_picture_with_a_profile_of_colors_keeps_its_grey(tmp_path):
    content = io.BytesIO()
    Image.new("L", (64, 64), 100).save(content, "JPEG", icc_profile=profile(PROPHOTO, 1.8), quality=98)
    path = tmp_path / "grey.jpg"
    path.write_bytes(content.getvalue())
    red, green, blue = open_image(path).rgb.getpixel((30, 30))
    meant = in_srgb((100, 100, 100), PROPHOTO, 1.8)
    assert max(abs(red - meant[0]), abs(green - meant[1]), abs(blue - meant[2])) <= 2
