"""Folders: what is found in them, and that everything wrong is said at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.data.dataset import load_dataset, survey_folder
from sdlora.data.settings import Data
from sdlora.errors import DatasetError
from tests.support.images import noise_image


def draw(*paths: Path, **size: int) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(**size, seed=number).save(path)


def problems(folder: Path, **settings: object) -> dict[str, str]:
    """Return the reason for each refused file, by its name."""
    with pytest.raises(DatasetError) as caught:
        load_dataset(Data(folder=folder, **settings))
    lines = str(caught.value).splitlines()[1:]
    return dict(line.strip().split(": ", 1) for line in lines)


def test_pictures_and_captions_are_paired_in_the_order_of_their_names(folder: Path) -> None:
    draw(folder / "b.JPG", folder / "a.png", folder / "c 空.webp")
    (folder / "a.txt").write_text("a dog", encoding="utf-8")
    (folder / "c 空.txt").write_text("eine Katze", encoding="utf-8")
    found = load_dataset(Data(folder=folder, prompt="a photo"))
    assert [(e.path.name, e.caption) for e in found.examples] == [
        ("a.png", "a dog"), ("b.JPG", "a photo"), ("c 空.webp", "eine Katze"),
    ]  # fmt: skip
    assert found.notices == ()
    assert found.examples[0].size == (64, 48) and found.examples[0].repeats == 1


def test_every_bad_file_is_named_at_once(folder: Path) -> None:
    draw(*(folder / f"good{i}.png" for i in range(3)), folder / "cut.png", folder / "crc.png", folder / "cut.jpg")
    (folder / "empty.png").touch()
    (folder / "page.png").write_text("<html><body>not found</body></html>")
    (folder / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (folder / "layers.png").write_bytes(b"8BPS\0\1" + bytes(60))
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for name in ("cut.png", "cut.jpg"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-600])
    damaged = bytearray((folder / "crc.png").read_bytes())
    damaged[-14] ^= 1  # in the checksum of the last IDAT chunk, before the 12 bytes of IEND
    (folder / "crc.png").write_bytes(damaged)
    draw(folder / "dot.png", width=1, height=1)
    draw(folder / "line.png", width=1, height=4000)
    draw(folder / "banner.png", width=400, height=40)
    (folder / "good0.txt").write_bytes("Hündchen".encode("latin-1"))
    reasons = problems(folder)
    expected = {
        "banner.png": "too long", "crc.png": "damaged", "cut.jpg": "cut short", "cut.png": "cut short",
        "dot.png": "too small", "drawing.svg": "SVG, which is not read", "empty.png": "empty (0 bytes)",
        "good0.txt": "Latin-1", "layers.png": "Photoshop", "line.png": "too small", "page.png": "HTML",
        "script.jpg": "EPS",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name], (name, reasons[name])


def test_one_caption_for_two_pictures_is_a_conflict(folder: Path) -> None:
    draw(folder / "a.png", folder / "a.jpg")
    assert len(load_dataset(Data(folder=folder, prompt="x")).examples) == 2
    (folder / "a.txt").write_text("a dog")
    assert problems(folder) == {"a.txt": "belongs to a.jpg and to a.png; give the pictures different names"}


def test_a_folder_named_like_a_picture_or_caption_is_refused(folder: Path) -> None:
    draw(folder / "b.png")
    (folder / "a.png").mkdir()
    (folder / "b.txt").mkdir()
    assert problems(folder) == {"a.png": "is a folder", "b.txt": "is a folder"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX matter")
def test_a_named_pipe_is_refused_and_never_opened(folder: Path) -> None:
    draw(folder / "b.png")
    os.mkfifo(folder / "a.png")
    os.mkfifo(folder / "b.txt")
    assert problems(folder) == {"a.png": "is no regular file", "b.txt": "is no regular file"}


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    draw(folder / "a.png", tmp_path / "secret.png", tmp_path / "10_secret" / "b.png")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "within.png").symlink_to(folder / "a.png")
    assert len(load_dataset(Data(folder=folder, prompt="x")).examples) == 2
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "a.mask.png").symlink_to(tmp_path / "secret.png")
    (folder / "nothing.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "10_secret").symlink_to(tmp_path / "10_secret")
    reasons = problems(folder)
    assert reasons.keys() == {"out.png", "a.txt", "a.mask.png", "nothing.png", "loop.png", "10_secret"}
    assert all("link" in reason for reason in reasons.values())


def test_a_folder_without_pictures_says_where_to_point(folder: Path) -> None:
    for name in ("notes.md", "a.txt", "b.json"):
        (folder / name).write_text("x")
    with pytest.raises(DatasetError) as caught:
        load_dataset(Data(folder=folder))
    assert str(caught.value) == (
        f"{folder}: no .png or .jpg among 3 files; point data.folder at the folder that holds the images"
    )
    draw(folder / "pictures" / "a.png")
    with pytest.raises(DatasetError, match=r"such as pictures"):
        load_dataset(Data(folder=folder))


def test_a_folder_that_is_missing_or_a_file_is_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        load_dataset(Data(folder=folder / "nowhere"))
    (folder / "a.zip").touch()
    with pytest.raises(DatasetError, match=r"a\.zip: is a file"):
        load_dataset(Data(folder=folder / "a.zip"))


def test_kohya_folders_repeat_and_caption_their_pictures(folder: Path) -> None:
    draw(folder / "10_sks dog" / "a.png", folder / "10_sks dog" / "b.png", folder / "2_a cat" / "c.png")
    (folder / "10_sks dog" / "b.txt").write_text("my dog")
    draw(folder / "others" / "d.png")
    found = load_dataset(Data(folder=folder))
    assert [(e.path.name, e.repeats, e.caption) for e in found.examples] == [
        ("a.png", 10, "sks dog"), ("b.png", 10, "my dog"), ("c.png", 2, "a cat"),
    ]  # fmt: skip
    text = "\n".join(found.notices)
    assert "others: its 1 picture is not used" in text
    alone = load_dataset(Data(folder=folder / "10_sks dog"))
    assert [e.repeats for e in alone.examples] == [10, 10]


def test_a_year_is_no_number_of_repeats(folder: Path) -> None:
    draw(folder / "2024_summer" / "a.png")
    assert load_dataset(Data(folder=folder / "2024_summer")).examples[0].repeats == 1


def test_masks_belong_to_their_pictures(folder: Path) -> None:
    draw(folder / "a.png", folder / "b.png", folder / "c.png")
    Image.new("L", (64, 48), 200).save(folder / "a.mask.png")
    first, second, _ = load_dataset(Data(folder=folder, prompt="x")).examples
    assert first.mask == folder / "a.mask.png" and first.mask_digest and second.mask is None
    assert load_dataset(Data(folder=folder, prompt="x", masks=False)).examples[0].mask is None
    Image.new("L", (64, 64), 200).save(folder / "b.mask.png")
    Image.new("L", (64, 48), 0).save(folder / "c.mask.png")
    reasons = problems(folder)
    assert "64 x 64, its picture 64 x 48" in reasons["b.mask.png"] and "black" in reasons["c.mask.png"]


@pytest.mark.parametrize(
    "name", ["a-masklabel.png", "a_mask.png", "a.mask.webp", "a.mask.jpg", "masks/a.png", "mask/a_mask.jpg"]
)
def test_masks_of_other_tools_are_masks_and_no_images(folder: Path, name: str) -> None:
    draw(folder / "a.png", folder / "b.png")
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("L", (64, 48), 200).save(folder / name)
    found = load_dataset(Data(folder=folder, prompt="x"))
    assert [(example.path.name, example.mask) for example in found.examples] == [
        ("a.png", folder / name), ("b.png", None),
    ]  # fmt: skip
    assert found.notices == (f"Masks of other tools: 1 file ({name}); they are used as NAME.mask.png is.",)


def test_a_picture_that_is_only_called_a_mask_is_a_picture(folder: Path) -> None:
    draw(folder / "gas_mask.png", folder / "b_mask.png", folder / "c.png")
    assert len(load_dataset(Data(folder=folder, prompt="x")).examples) == 3


def test_a_picture_called_a_mask_has_masks_of_its_own(folder: Path) -> None:
    draw(folder / "gas_mask.png", folder / "b.png", folder / "c_mask.png")
    (folder / "masks").mkdir()
    for name in ("gas_mask_mask.png", "masks/b.png", "c_mask.mask.png"):
        Image.new("L", (64, 48), 200).save(folder / name)
    found = load_dataset(Data(folder=folder, prompt="x"))
    assert {example.path.name: example.mask.relative_to(folder).as_posix() for example in found.examples} == {
        "gas_mask.png": "gas_mask_mask.png", "b.png": "masks/b.png", "c_mask.png": "c_mask.mask.png",
    }  # fmt: skip


def test_masks_that_are_not_used_are_not_said_to_weight_the_loss(folder: Path) -> None:
    draw(folder / "a.png")
    (folder / "masks").mkdir()
    for name in ("a_mask.png", "masks/x.png"):
        Image.new("L", (64, 48), 200).save(folder / name)
    without = load_dataset(Data(folder=folder, prompt="x", masks=False))
    assert without.notices == ("masks/x.png: belongs to no picture and is not used.",)


def test_a_list_names_pictures_in_kohyas_folders_too(folder: Path) -> None:
    draw(folder / "10_sks dog" / "a.png", folder / "10_sks dog" / "b.png")
    lines = [{"file_name": f"10_sks dog/{name}.png", "text": f"what {name} shows"} for name in "abc"]
    (folder / "metadata.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "10_sks dog" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "its folder\'s"}')
    found = load_dataset(Data(folder=folder))
    assert [example.caption for example in found.examples] == ["what a shows", "its folder's"]
    assert found.notices == ("metadata.jsonl: lists 1 file (10_sks dog/c.png) that no picture here is called.",)


def test_a_list_without_captions_is_told_and_stops_nothing(folder: Path) -> None:
    draw(folder / "a.png")
    (folder / "a.txt").write_text("its own")
    lines = ('{"image": "a.png"}', '{"file_name": 3, "text": null}', '{"file_name": "a.png", "text": "x\u2028y"}')
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = load_dataset(Data(folder=folder))
    assert found.examples[0].caption == "its own"
    assert found.notices == ("metadata.jsonl: 2 entries without `file_name` or a caption in `text`.",)


def test_lists_and_folders_of_masks_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    draw(folder / "a.png", tmp_path / "elsewhere" / "a.png")
    (tmp_path / "secret.jsonl").write_text('{"file_name": "a.png", "text": "secret"}')
    (folder / "masks").symlink_to(tmp_path / "elsewhere")
    (folder / "metadata.jsonl").symlink_to(tmp_path / "secret.jsonl")
    reasons = problems(folder)
    assert all("link out of the data folder" in reasons[name] for name in ("masks", "metadata.jsonl"))


def test_of_two_masks_of_a_picture_its_own_is_read(folder: Path) -> None:
    draw(folder / "a.png")
    (folder / "masks").mkdir()
    for name in ("masks/a.png", "a.mask.png", "a_mask.png"):
        Image.new("L", (64, 48), 200).save(folder / name)
    found = load_dataset(Data(folder=folder, prompt="x"))
    assert found.examples[0].mask == folder / "a.mask.png"
    assert sorted(found.notices) == [
        "a_mask.png: is not read, since a.mask.png is.", "masks/a.png: is not read, since a.mask.png is.",
    ]  # fmt: skip


def test_a_mask_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    draw(folder / "a.png")
    Image.new("L", (64, 48), 200).save(tmp_path / "secret.png")
    (folder / "masks").mkdir()
    (folder / "masks" / "a.png").symlink_to(tmp_path / "secret.png")
    assert "is a link out of the data folder" in problems(folder)["masks/a.png"]


def test_captions_in_a_list_are_read_and_own_ones_before_them(folder: Path) -> None:
    draw(*(folder / f"{name}.png" for name in ("a", "b", "c", "é")))
    lines = [
        {"file_name": "a.png", "text": "what a\nshows"}, {"file_name": "./b.png", "caption": "listed"},
        {"file_name": "e\u0301.png", "prompt": "accented", "other": 3}, {"file_name": "gone.png", "text": "x"},
    ]  # fmt: skip
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (folder / "b.txt").write_text("its own")
    found = load_dataset(Data(folder=folder, trigger="sks"))
    assert [example.caption for example in found.examples] == [
        "sks, what a shows", "sks, its own", "sks", "sks, accented",
    ]  # fmt: skip
    assert found.notices == ("metadata.jsonl: lists 1 file (gone.png) that no picture here is called.",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "line 1 is no"), ('\n["a.png"]', "line 2 is no"),
        ('{"file_name": "a.png", "text": "%s"}' % ("x" * 20_000), "a caption of more than 10.0 KiB"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "line 1 is no"), ("\xff", "is no text in UTF-8"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused_with_its_line(folder: Path, content: str, reason: str) -> None:
    draw(folder / "a.png")
    (folder / "metadata.jsonl").write_bytes(content.encode("latin-1"))
    assert reason in problems(folder)["metadata.jsonl"]


def test_pictures_in_folders_that_are_not_read_are_named_however_deep(folder: Path) -> None:
    draw(folder / "10_sks dog" / "a.png", folder / "10_sks dog" / "more" / "b.png")
    draw(folder / "deep" / "deeper" / "c.png", folder / "deep" / "d.png", folder / ".hidden" / "e.png")
    assert load_dataset(Data(folder=folder)).notices == (
        "10_sks dog/more: its 1 picture is not used; only those right in a folder named like `10_sks dog` are.",
        "deep: its 2 pictures are not used; only sub-folders named like `10_sks dog` are.",
    )


def test_kohyas_project_folder_points_at_the_folder_of_its_images(folder: Path) -> None:
    draw(folder / "img" / "10_sks dog" / "a.png", folder / "reg" / "1_dog" / "b.png")
    with pytest.raises(DatasetError, match=r"folder that holds the images \(such as img\)"):
        load_dataset(Data(folder=folder))


def test_notices_are_honest(folder: Path) -> None:
    draw(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    noise_image().save(folder / "c.gif", save_all=True, append_images=[noise_image(seed=1)])
    (folder / "stray.txt").write_text("x")
    assert load_dataset(Data(folder=folder)).notices == (
        "stray.txt: belongs to no picture and is not used.",
        "Several frames: 1 picture (c.gif); the first is used.",
    )


def test_hidden_files_are_passed_over(folder: Path) -> None:
    draw(folder / "a.png")
    (folder / "._a.png").write_bytes(b"Mac OS X")  # left on foreign disks by macOS
    (folder / ".DS_Store").touch()
    assert len(load_dataset(Data(folder=folder, prompt="x")).examples) == 1


def test_a_name_cannot_break_the_message(folder: Path) -> None:
    try:
        (folder / "a\nb\u202e.png").touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert list(problems(folder)) == [r"'a\nb\u202e.png'"]


def test_the_scan_orients_sizes(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(folder / "a.jpg", exif=exif)
    assert load_dataset(Data(folder=folder, prompt="x")).examples[0].size == (40, 80)


def test_scanning_needs_no_torch(folder: Path) -> None:
    draw(folder / "a.png")
    code = (
        "import sys; from sdlora.data import batches, buckets, class_images;"
        "from sdlora.data.dataset import load_dataset; from sdlora.data.settings import Data;"
        "load_dataset(Data(folder=sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_no_file_is_passed_over_in_silence(tmp_path):
    for number, name in enumerate(("a.png", "b.jfif", "c.jpe", "d.apng")):
        noise_image(seed=number).save(tmp_path / name, "JPEG" if name.endswith(("jfif", "jpe")) else "PNG")
    for name in ("a.txt", "a.caption", "b.tags", "c.json", "c.npz", "notes", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_text("a red house")
    (tmp_path / "r.cr2").write_bytes(bytes(100))
    survey = survey_folder(Data(folder=tmp_path, prompt="a house"))
    assert [example.path.name for example in survey.examples] == ["a.png", "b.jfif", "c.jpe", "d.apng"]
    assert survey.problems == ("r.cr2: is CR2, which is not read here; save it as PNG or JPEG",)
    assert survey.notices == (
        "a.caption: is not read, since a.txt is.",
        "Captions of other tools: 2 files (b.tags, c.json); they are not read; captions are .txt or .caption "
        "files of their picture's name, or in metadata.jsonl.",
        "Not read: 2 files (c.npz, notes); they are no pictures.",
    )
