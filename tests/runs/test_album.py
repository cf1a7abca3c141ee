import os

import pytest
from PIL import Image

from sdlora.errors import FileError
from sdlora.runs import album


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        path = tmp_path / "creations" / f"2026-{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(path)
        os.utime(path, (number, number))
    (tmp_path / "creations" / "process.log").write_text("")
    return tmp_path / "creations"


def names(folder):
    return [path.name for path in album.newest(folder)]


def test_the_newest_picture_comes_first(folder):
    assert names(folder) == ["2026-2.png", "2026-1.png", "2026-0.png"]
    assert [path.name for path in album.newest(folder, 1)] == ["2026-2.png"]
    assert album.newest(folder / "missing") == []


def test_a_deleted_picture_comes_back_as_it_was_and_where_it_was(folder):
    before = (folder / "2026-1.png").read_bytes()
    gone = album.discard(folder, "2026-1.png")
    assert names(folder) == ["2026-2.png", "2026-0.png"]
    assert album.restore(folder, gone) == "2026-1.png"
    assert (folder / "2026-1.png").read_bytes() == before
    assert names(folder) == ["2026-2.png", "2026-1.png", "2026-0.png"]


def test_nothing_is_overwritten_in_the_trash_or_outside_it(folder):
    first = album.discard(folder, "2026-1.png")
    Image.new("RGB", (8, 8), "white").save(folder / "2026-1.png")
    second = album.discard(folder, "2026-1.png")
    assert (first, second) == ("2026-1.png", "2026-1-2.png")
    album.restore(folder, first)
    assert album.restore(folder, second) == "2026-1-2.png"


@pytest.mark.parametrize("name", ["../outside.png", "missing.png", "process.log", "", "trash/2026-0.png"])
def test_only_pictures_of_the_folder_are_moved(folder, name):
    (folder.parent / "outside.png").write_bytes(b"")
    album.discard(folder, "2026-0.png")
    with pytest.raises(FileError):
        album.discard(folder, name)
    assert (folder.parent / "outside.png").exists()
