"""Pictures, captions and zip files from strangers, through every door: refused by name and reason, nothing written."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import sdlora
from sdlora.api.training import prepare_run
from sdlora.config import TrainConfig
from sdlora.data.projects import Project
from sdlora.errors import DatasetError
from sdlora.ui.app_state import AppState
from tests.support import hostile_files
from tests.support.hostile_files import Refused, content, picture, png
from tests.support.images import noise_image
from tests.support.page_calls import drop_files

PICTURES = {
    "empty.png": (content(), "empty (0 bytes)"),
    "cut.png": (content(png()[:-600]), "damaged or cut short"),
    "checksum.png": (hostile_files.wrong_checksum, "damaged"),
    "page.png": (content(b"<!DOCTYPE html><html>not found</html>"), "is an HTML page"),
    "drawing.png": (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is an SVG drawing"),
    "drawing.svg": (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "SVG"),
    "script.jpg": (content(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "PostScript"),
    "script.eps": (content(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "EPS"),
    "layers.png": (content(b"8BPS\0\1", bytes(60)), "Photoshop"),
    "layers.psd": (content(b"8BPS\0\1", bytes(60)), "PSD"),
    "bomb.png": (hostile_files.picture_bomb, "over 67 million it is not opened"),
    "texts.png": (hostile_files.text_bomb, "text beside its pixels"),
    "dot.png": (picture(1, 1), "too small"),
    "line.png": (picture(1, 4000), "too small"),
    "banner.png": (picture(4000, 40), "too long for its width"),
    "glass.png": (picture(64, 64, "RGBA"), "fully transparent"),
}
FOUND = {
    "folder.png": (hostile_files.folder, "is a folder"),
    "pipe.png": (hostile_files.pipe, "is no regular file"),
    "device.png": (hostile_files.device, "link out of the data folder"),
    "pipe.txt": (hostile_files.pipe, "is no regular file"),
    "folder.txt": (hostile_files.folder, "is a folder"),
    "device.txt": (hostile_files.device, "link out of the data folder"),
}
"""Entries of a folder that cannot be dropped on the page."""
CAPTIONS = {
    "utf-16": ("ein Hündchen".encode("utf-16"), "UTF-16"),
    "utf-16 without a mark": ("a dog".encode("utf-16-le"), "UTF-16"),
    "latin-1": ("ein Hündchen".encode("latin-1"), "Latin-1"),
    "a novel": (b"dog " * 3000, "longer than 10.0 KiB"),
}
ZIPS = {
    "slip.zip": (
        hostile_files.zip_of({"../../evil.txt": b"x", "/abs/evil2.txt": b"x"}),
        "belongs to none of the pictures",
    ),
    "bomb.zip": (hostile_files.zip_bomb, "times its size, which no pictures do"),
    "nested.zip": (hostile_files.zip_of({"inner.zip": b"PK", "deep.tar.gz": b""}), "archive inside the zip"),
    "many.zip": (hostile_files.zip_of({f"{n}.txt": b"" for n in range(5000)}), "holds 5000 files; 4000 at most"),
    "junk.zip": (content(b"PK\3\4 nothing more"), "is no zip file, or is damaged"),
    "odd.zip": (hostile_files.zip_of({"a.png": b"x"}, compression=zipfile.ZIP_LZMA), "ordinary zip"),
    "empty.zip": (content(), "is no zip file, or is damaged"),
}
Command = Callable[..., Refused]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with one good picture."""
    (tmp_path / "set").mkdir()
    noise_image().save(tmp_path / "set" / "good.png")
    return tmp_path / "set"


def refused_everywhere(command: Command, folder: Path, name: str, reason: str) -> None:
    """Both commands and Python refuse ``folder``, naming the file and the reason."""
    code, output = command("train", "pocket-style", "--data.folder", folder)
    assert code == 3
    line = next(line for line in output.splitlines() if line.strip().startswith(f"{name}: "))
    assert reason in line
    with pytest.raises(DatasetError, match="fix or remove these files") as caught:
        sdlora.train(TrainConfig.load("pocket-style", {"data.folder": folder}))
    assert line in str(caught.value)


@pytest.mark.parametrize("name", [*PICTURES, *FOUND])
def test_a_bad_picture_in_a_folder_is_named_with_its_reason(command: Command, folder: Path, name: str) -> None:
    make, reason = (PICTURES | FOUND)[name]
    if name.endswith(".txt"):
        noise_image(seed=1).save(folder / name.replace(".txt", ".png"))
    make(folder / name)
    refused_everywhere(command, folder, name, reason)


@pytest.mark.parametrize("case", CAPTIONS)
def test_a_bad_caption_in_a_folder_is_named_with_its_reason(command: Command, folder: Path, case: str) -> None:
    inside, reason = CAPTIONS[case]
    (folder / "good.txt").write_bytes(inside)
    refused_everywhere(command, folder, "good.txt", reason)


def test_one_caption_of_two_pictures_is_named_as_a_conflict(command: Command, folder: Path) -> None:
    noise_image().save(folder / "good.jpg")
    (folder / "good.txt").write_text("a dog")
    refused_everywhere(command, folder, "good.txt", "belongs to good.jpg and to good.png")


def test_a_check_of_a_folder_lists_every_bad_file(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (make, _) in PICTURES.items():
        make(folder / name)
    assert sdlora_check(folder) == 3
    output = capsys.readouterr().out
    for name, (_, reason) in PICTURES.items():
        assert name in output and reason in output, name


def sdlora_check(folder: Path) -> int:
    from sdlora.cli.main import main

    return main(["check", str(folder)])


def drop(app: AppState, *files: Path, paths: str = "") -> str:
    """Return the page's remarks about dropped files."""
    return drop_files(app, list(files), paths=paths)


def kept(app: AppState) -> list[str]:
    """Return the content of a project's folder."""
    folder = Project(app.data_dir, "mine").folder
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != "project.json")


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture_dropped_on_the_page_is_named_and_not_kept(app: AppState, tmp_path: Path, name: str) -> None:
    make, reason = PICTURES[name]
    make(tmp_path / name)
    text = drop(app, tmp_path / name)
    assert name in text and reason in text
    assert kept(app) == []


@pytest.mark.parametrize("case", CAPTIONS)
def test_a_bad_caption_dropped_on_the_page_is_named_and_its_picture_kept(
    app: AppState, tmp_path: Path, case: str
) -> None:
    inside, reason = CAPTIONS[case]
    noise_image().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(inside)
    text = drop(app, tmp_path / "a.png", tmp_path / "a.txt")
    assert "a.txt" in text and reason in text
    assert kept(app) == ["001.png"]


@pytest.mark.parametrize("name", ZIPS)
def test_a_bad_zip_dropped_on_the_page_is_refused_and_leaves_nothing(app: AppState, tmp_path: Path, name: str) -> None:
    make, reason = ZIPS[name]
    make(tmp_path / name)
    before = {path for path in tmp_path.rglob("*") if app.data_dir not in path.parents}
    assert reason in drop(app, tmp_path / name)
    assert kept(app) == []
    assert {path for path in tmp_path.rglob("*") if app.data_dir not in path.parents} - before <= {app.data_dir}


@pytest.mark.parametrize("paths", ["5", "null", "[" * 100_000, '{"a": 1}', '["a", "b"]', "9" * 5000, "[[]]"])
def test_whatever_a_program_says_of_the_folder_a_drop_is_read(app: AppState, tmp_path: Path, paths: str) -> None:
    noise_image().save(tmp_path / "a.png")
    assert drop(app, tmp_path / "a.png", paths=paths) == ""
    assert kept(app) == ["001.png"]


def test_a_pipe_handed_over_from_python_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.png", "a.txt", "a.zip"):
        hostile_files.pipe(tmp_path / name)
    project = Project(tmp_path, "mine")
    added = project.add([tmp_path / name for name in ("a.png", "a.txt", "a.zip")])
    assert added.images == 0
    assert sorted(remark.split()[0] for remark in added.remarks) == ["a.png", "a.txt", "a.zip"]


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_turned_picture_is_taken_everywhere(app: AppState, folder: Path, turned: int) -> None:
    """Turned image; the tests of opening images check that it comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = turned
    noise_image().save(folder / "good.png", exif=exif)
    assert drop(app, folder / "good.png") == ""
    assert len(sdlora.data.dataset.load_dataset(config(folder).data).examples) == 1


def config(folder: Path) -> TrainConfig:
    return TrainConfig.load("pocket-style", {"data.folder": folder})


ODD = {
    "grey 16.png": lambda path: Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(path),
    "cmyk.jpg": lambda path: Image.new("CMYK", (64, 64)).save(path),
    "palette.png": lambda path: noise_image().convert("P").save(path),
    "rgba.png": lambda path: Image.new("RGBA", (64, 64), (9, 9, 9, 99)).save(path),
    "exif.jpg": lambda path: noise_image().save(path, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage"),
    "moving.gif": lambda path: noise_image().save(path, save_all=True, append_images=[noise_image(seed=1)]),
    "moving.webp": lambda path: noise_image().save(path, save_all=True, append_images=[noise_image(seed=1)]),
    "moving.png": lambda path: noise_image().save(path, save_all=True, append_images=[noise_image(seed=1)]),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_is_taken_everywhere(app: AppState, folder: Path, tmp_path: Path, name: str) -> None:
    ODD[name](folder / name)
    run = prepare_run(config(folder), "odd", tmp_path / "other")
    assert run.config_file.is_file()
    found = sdlora.data.dataset.load_dataset(config(folder).data)
    assert ("the first is used" in " ".join(found.notices)) == name.startswith("moving")
    assert drop(app, folder / name) == ""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)
@given(inside=st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_a_caption_of_any_bytes_is_one_line_of_text_or_refused_by_name(inside: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.png").exists():
        noise_image().save(folder / "a.png")
    (folder / "a.txt").write_bytes(inside)
    try:
        (example,) = sdlora.data.dataset.load_dataset(config(folder).data).examples
    except DatasetError as error:
        assert "a.txt: is " in str(error)
    else:
        assert "\0" not in example.caption and len(example.caption.splitlines()) <= 1


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)
@given(places=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_zip_with_any_wrong_bytes_is_read_or_refused_in_a_sentence(
    places: list[tuple[int, int]], tmp_path: Path
) -> None:
    whole = tmp_path / "whole.zip"
    if not whole.exists():
        hostile_files.zip_of({"a.png": png(noise_image(32, 32)), "a.txt": b"a dog", "b/c.txt": b""})(whole)
    bent = bytearray(whole.read_bytes())
    for place, value in places:
        bent[-1 - place % len(bent)] = value
    (tmp_path / "bent.zip").write_bytes(bent)
    project = Project(tmp_path / "data", "bent")
    added = project.add([tmp_path / "bent.zip"])
    assert all("\n" not in remark for remark in added.remarks)
    assert not [path for path in project.folder.rglob("*") if path.name.startswith(".tmp")]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_no_link_leads_out_of_a_dropped_zip(app: AppState, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    hostile_files.zip_of({link: b"/etc/passwd"})(tmp_path / "a.zip")
    assert "is a link, not a file" in drop(app, tmp_path / "a.zip")
    assert kept(app) == []
