"""Projects on disk: what is dropped is kept, judged and captioned, and nothing leaves its folder."""

import errno
import json
import os
from contextlib import suppress
from pathlib import PurePosixPath

import pytest
from PIL import Image

from sdlora.data.dataset import load_dataset
from sdlora.data.projects import AddedImages, Project, ProjectInfo, list_projects, stray_captions
from sdlora.data.uploads import UploadedFile
from sdlora.errors import ConfigError, DatasetError, FileError
from tests.support.images import noise_image


@pytest.fixture
def dropped(tmp_path):
    """Three pictures, one with a caption, in a folder as Gradio hands uploads over."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    paths = []
    for number, colour in enumerate(("red", "green", "blue")):
        paths.append(folder / f"{colour} é.PNG")
        Image.new("RGB", (64 + number, 64), colour).save(paths[-1])
    (folder / "red é.txt").write_text("a red wall")
    return [*paths, folder / "red é.txt"]


@pytest.fixture
def project(tmp_path, dropped):
    project = Project(tmp_path, "my style")
    project.set_info(ProjectInfo("style", " ohwx  style ", ""))
    assert project.add(dropped) == AddedImages(3)
    return project


def test_dropped_pictures_are_numbered_and_keep_their_captions(project):
    assert [path.name for path in project.images()] == ["001.png", "002.png", "003.png"]
    assert [project.caption(path) for path in project.images()] == ["a red wall", "", ""]
    assert project.status() == "3 pictures ready."


def test_the_lines_of_an_uploaded_caption_are_kept(project, tmp_path):
    """Each is a caption of its own where wildcards are on."""
    noise_image(64, 64, 5).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one\n\ntwo {red|blue}\n")
    assert project.add([tmp_path / "a.png", tmp_path / "a.txt"]) == AddedImages(1)
    assert project.images()[-1].with_suffix(".txt").read_text() == "one\ntwo {red|blue}"


def test_masks_and_listed_captions_come_with_their_pictures_whatever_tool_made_them(project, tmp_path):
    folder = tmp_path / "more"
    (folder / "masks").mkdir(parents=True)
    names = [
        "one.png",
        "two.jpg",
        "three.png",
        "masks/one.png",
        "two-masklabel.png",
        "three.mask.webp",
        "lone.mask.png",
    ]
    for number, name in enumerate(names):
        Image.new("L" if "mask" in name else "RGB", (70, 70), 50 + 10 * number).save(folder / name)
    (folder / "metadata.jsonl").write_text('{"file_name": "two.jpg", "text": "a wall"}')
    files = [UploadedFile(folder / name, PurePosixPath("set", name)) for name in (*names, "metadata.jsonl")]
    added = project.add(files)
    assert added.images == 3
    assert added.remarks == ("lone.mask.png is a mask, and belongs to none of the pictures dropped with it.",)
    examples = load_dataset(project.data()).examples[3:]
    assert [example.mask.name for example in examples] == ["004.mask.png", "005.mask.png", "006.mask.png"]
    assert [Image.open(example.mask).getpixel((9, 9)) for example in examples] == [80, 90, pytest.approx(100, abs=3)]
    assert [project.caption(example.path) for example in examples] == ["", "a wall", ""]
    project.remove(examples[0].path)
    assert not examples[0].mask.exists()
    project.undo()
    assert examples[0].mask.exists()


def test_a_mask_that_cannot_be_used_is_told_and_its_picture_is_kept(project, tmp_path):
    Image.new("RGB", (70, 70), "white").save(tmp_path / "new.png")
    (tmp_path / "new.mask.png").write_bytes(b"<html>")
    added = project.add([tmp_path / "new.png", tmp_path / "new.mask.png"])
    assert added.images == 1 and "new.mask.png is an HTML page" in added.remarks[0]


def test_a_mask_that_would_block_training_is_told_at_once(project, tmp_path):
    Image.new("RGB", (70, 70), "white").save(tmp_path / "new.png")
    Image.new("L", (70, 40), 255).save(tmp_path / "new_mask.png")
    added = project.add([tmp_path / "new.png", tmp_path / "new_mask.png"])
    assert added.images == 1
    assert added.remarks == ("new_mask.png is 70 x 40, its picture 70 x 70; make it of the same shape.",)
    assert load_dataset(project.data()).examples[3].mask is None


def test_masks_of_pictures_whose_upload_was_killed_are_found(project):
    stray = project.folder / "009.mask.png"
    stray.write_bytes(b"x")
    assert stray_captions(project.folder) == [stray]


def test_training_hears_the_trigger_in_every_caption(project):
    assert [project.training_caption(path) for path in project.images()] == [
        "ohwx style, a red wall",
        "ohwx style",
        "ohwx style",
    ]


def test_a_project_is_found_again_as_it_was_left(project, tmp_path):
    [found] = list_projects(tmp_path)
    assert (found.name, found.info) == ("my-style", ProjectInfo("style", "ohwx style", ""))


def test_what_cannot_be_used_is_said_file_by_file_and_the_rest_is_taken(project, tmp_path, dropped):
    fake, page, drawing, lonely = (tmp_path / name for name in ("fake.png", "page.html", "logo.svg", "lonely.txt"))
    for path in (fake, page, drawing, lonely):
        path.write_text("<html>")
    new = tmp_path / "new.jpg"
    Image.new("RGB", (80, 80), "white").save(new)
    remarks = project.add([fake, page, drawing, lonely, dropped[0], new]).remarks
    assert [remark.split()[0] for remark in remarks] == ["fake.png", "page.html", "logo.svg", "red", "lonely.txt"]
    assert "HTML" in remarks[0] and "already here as 001.png" in remarks[3]
    assert [path.name for path in project.images()][-1] == "004.jpg"


def test_a_caption_is_kept_with_its_lines_and_an_emptied_one_is_gone(project):
    picture = project.images()[1]
    project.write_caption(picture, " two\r\n\n  more   lines ")
    assert project.caption(picture) == "two\nmore lines"
    assert project.training_caption(picture) == "ohwx style, two more lines"
    assert project.add_trigger() == 3
    assert project.caption(picture) == "ohwx style, two\nohwx style, more lines"
    project.undo()
    assert project.caption(picture) == "two\nmore lines"
    project.write_caption(picture, " ")
    assert not picture.with_suffix(".txt").exists()


def test_a_removed_picture_takes_its_caption_along_and_its_number_is_not_used_again_below_others(project, dropped):
    first = project.images()[0]
    project.remove(first)
    assert [path.name for path in project.folder.iterdir() if path.stem == "001"] == []
    project.add(dropped[:1])
    assert [path.name for path in project.images()] == ["002.png", "003.png", "004.png"]


@pytest.mark.parametrize("name", ["../../outside", "/etc", "CON", "a" * 300, "x\n‮y", "<b>bold</b>"])
def test_a_name_never_leaves_the_projects_folder(tmp_path, name):
    project = Project(tmp_path, name)
    assert project.folder.parent == tmp_path.resolve() / "projects"
    assert len(project.name) <= 64


@pytest.mark.parametrize("name", ["", "   ", "///"])
def test_a_name_of_nothing_is_refused_with_an_example(tmp_path, name):
    with pytest.raises(ConfigError, match="mystyle"):
        Project(tmp_path, name)


def test_too_few_pictures_are_said_to_be_too_few(tmp_path, dropped):
    project = Project(tmp_path, "few")
    assert "No pictures yet" in project.status()
    project.set_info(ProjectInfo())
    project.add(dropped[:1])
    assert "Add at least 3" in project.status()


def test_a_removed_picture_comes_back_with_its_caption(project):
    first, second, third = project.images()
    project.remove(first)
    project.remove(second, third)
    assert project.images() == []
    assert project.history.newest().what == "removed 2 pictures (002.png, 003.png)"
    assert project.undo() and project.images() == [second, third]
    assert project.undo() and project.caption(first) == "a red wall"
    assert project.undo() == ""


def test_no_new_picture_takes_the_number_of_one_that_may_come_back(project, tmp_path):
    last = project.images()[-1]
    project.remove(last)
    new = tmp_path / "new.png"
    Image.new("RGB", (70, 70), "white").save(new)
    project.add([new])
    assert project.undo()
    assert [path.name for path in project.images()] == ["001.png", "002.png", "003.png", "004.png"]


def test_the_trigger_is_put_into_every_caption_and_out_again(project):
    assert project.add_trigger() == 3
    assert [project.caption(path) for path in project.images()] == [
        "ohwx style, a red wall",
        "ohwx style",
        "ohwx style",
    ]
    assert project.add_trigger() == 0
    project.undo()
    assert [project.caption(path) for path in project.images()] == ["a red wall", "", ""]


def test_words_are_replaced_in_all_captions_whatever_their_case_and_characters(project):
    first, second, _ = project.images()
    project.write_caption(second, "A RED (wall)")
    assert project.replace("red", r"blue\1") == 2
    assert [project.caption(first), project.caption(second)] == [r"a blue\1 wall", r"A blue\1 (wall)"]
    assert project.replace("(wall)", "") == 1
    project.write_caption(first, "edited since")
    project.undo()
    project.undo()  # The caption that was edited since is left as it is.
    assert [project.caption(first), project.caption(second)] == ["edited since", "A RED (wall)"]
    with pytest.raises(ConfigError, match="look for"):
        project.replace(" ", "x")


def test_a_step_that_was_torn_is_passed_over(project):
    first = project.images()[0]
    project.remove(first)
    broken = project.folder / ".history" / "000002"
    broken.mkdir()
    (broken / "step.json").write_text('{"what": ')
    assert project.undo() == "removed 1 picture (001.png)" and first.exists()


def test_a_caption_that_cannot_be_read_is_never_written_over(project):
    caption = project.images()[1].with_suffix(".txt")
    caption.write_text("a green wall", encoding="utf-16")
    before = caption.read_bytes()
    for change in (project.add_trigger, lambda: project.replace("red", "blue")):
        with pytest.raises(DatasetError, match=r"002\.txt: is UTF-16"):
            change()
    assert caption.read_bytes() == before and project.caption(project.images()[0]) == "a red wall"


@pytest.mark.parametrize("name", ["~", "..", ".", "", "step.json", "~/keepsake.txt", "../../../home", "{home}", "a\0b"])
def test_a_step_of_a_stranger_moves_nothing_but_what_it_holds(project, tmp_path, monkeypatch, name):
    home = tmp_path / "home"
    home.mkdir()
    (home / "keepsake.txt").write_text("mine")
    monkeypatch.setenv("HOME", str(home))
    project.remove(project.images()[0])
    [step] = project.folder.glob("**/step.json")
    values = json.loads(step.read_text())
    values["files"].append(name.format(home=home))
    step.write_text(json.dumps(values))
    outside = {path for path in tmp_path.rglob("*") if project.folder not in (path, *path.parents)}
    with suppress(FileError):
        project.undo()
    assert {path for path in tmp_path.rglob("*") if project.folder not in (path, *path.parents)} == outside
    assert (home / "keepsake.txt").read_text() == "mine"
    assert {path.name for path in project.folder.iterdir()} <= {
        "001.png", "002.png", "003.png", "001.txt", "project.json", ".history",
    }  # fmt: skip


def test_captions_that_cannot_be_put_back_can_be_when_undone_again(project, monkeypatch):
    first = project.images()[0]
    project.replace("red", "blue")
    with monkeypatch.context() as patch, pytest.raises(FileError):
        patch.setattr(os, "replace", lambda *arguments: os.stat("/nowhere"))
        project.undo()
    assert project.caption(first) == "a blue wall"
    assert project.undo() and project.caption(first) == "a red wall"


def test_a_caption_whose_image_is_gone_is_no_other_images(project, dropped):
    (project.folder / "004.txt").write_text("of another picture")
    Image.new("RGB", (80, 80), "white").save(dropped[0])
    assert project.add(dropped[:1]).images == 1
    assert [path.name for path in project.images()][-1] == "005.png"


def test_a_step_never_writes_outside_the_project(project, tmp_path):
    project.remove(project.images()[0])
    step = project.folder / ".history" / "000001" / "step.json"
    step.write_text('{"what": "x", "files": ["../../../001.png"], "captions": []}')
    with pytest.raises(FileError, match="outside"):
        project.undo()


@pytest.mark.parametrize("is_new", [True, False])
def test_a_disk_that_takes_no_more_files_is_one_sentence(tmp_path, monkeypatch, pictures, is_new):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    project = Project(tmp_path, "mine")
    if not is_new:
        project.folder.mkdir(parents=True)
    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(FileError, match=r"cannot be written \(No space left on device\)"):
        project.add([*pictures.iterdir()])
