import os

import pytest
from PIL import Image

from sdlora.errors import FileError
from sdlora.storage import gallery


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
    return [path.name for path in gallery.newest_images(folder)]


def test_the_newest_picture_comes_first(folder):
    assert names(folder) == ["2026-2.png", "2026-1.png", "2026-0.png"]
    assert [path.name for path in gallery.newest_images(folder, 1)] == ["2026-2.png"]
    assert gallery.newest_images(folder / "missing") == []


def test_a_deleted_picture_comes_back_as_it_was_and_where_it_was(folder, tmp_path):
    before = (folder / "2026-1.png").read_bytes()
    gone = gallery.trash_image(tmp_path, "2026-1.png")
    assert names(folder) == ["2026-2.png", "2026-0.png"]
    gallery.restore_image(tmp_path, gone)
    assert (folder / "2026-1.png").read_bytes() == before
    assert names(folder) == ["2026-2.png", "2026-1.png", "2026-0.png"]
    with pytest.raises(FileError, match="not in the trash"):
        gallery.restore_image(tmp_path, gone)


@pytest.mark.parametrize(
    "name", ["../outside.png", "missing.png", "process.log", "", "../creations/2026-1.png", "../2.png"]
)
def test_only_pictures_of_the_folder_are_moved(folder, tmp_path, name):
    for outside in ("outside.png", "2.png"):
        (tmp_path / outside).write_bytes(b"")
    with pytest.raises(FileError, match="not there any more"):
        gallery.trash_image(tmp_path, name)
    assert (tmp_path / "2.png").exists() and len(names(folder)) == 3
