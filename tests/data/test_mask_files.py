"""Painted masks: what is stored, refused and undone."""

import base64
import hashlib
import io
import json

import pytest
from PIL import Image

from sdlora.data.dataset import load_dataset
from sdlora.data.images import open_mask
from sdlora.data.mask_files import DATA_URL, MAX_PAINTED_CHARACTERS, MAX_PAINTED_SIDE, read_painted
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.undo_log import UndoLog
from sdlora.errors import ConfigError, DatasetError


@pytest.fixture
def project(tmp_path):
    """Three pictures of 96 x 64 px."""
    paths = []
    for number, color in enumerate(("red", "green", "blue")):
        paths.append(tmp_path / f"{color}.png")
        Image.new("RGB", (96, 64), (number, 200, 0)).save(paths[-1])
    project = Project(tmp_path, "own")
    project.set_info(ProjectInfo("style", "ohwx"))
    project.add(paths)
    return project


def half(size=(48, 32)):
    """A mask in which the left half counts."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def as_url(image, format="PNG"):
    content = io.BytesIO()
    image.save(content, format)
    return DATA_URL + base64.b64encode(content.getvalue()).decode()


def test_a_painted_mask_has_its_pictures_size_and_trains(project):
    image = project.images()[0]
    assert "001.png is saved: 50% of the picture counts" in project.masks.write(image, read_painted(as_url(half())))
    stored = open_mask(project.masks.find(image))
    assert stored.size == (96, 64)
    assert (stored.getpixel((10, 32)), stored.getpixel((85, 32))) == (255, 0)
    assert [path.name for path in project.images()] == ["001.png", "002.png", "003.png"]
    assert [bool(example.mask) for example in load_dataset(project.data()).examples] == [True, False, False]


def test_each_change_of_a_mask_is_undone_in_one_step(project):
    image = project.images()[0]
    project.masks.write(image, half())
    first = project.masks.find(image).read_bytes()
    project.masks.write(image, half().transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert project.masks.find(image).read_bytes() != first
    project.masks.remove(image)
    assert project.masks.find(image) is None
    assert project.undo() == "removed the mask of 001.png"
    assert open_mask(project.masks.find(image)).getpixel((85, 32)) == 255
    assert project.undo() == "mask of 001.png"
    assert project.masks.find(image).read_bytes() == first
    assert project.undo() == "mask of 001.png"
    assert project.masks.find(image) is None
    assert project.undo() == ""


def test_a_removed_picture_comes_back_with_its_painted_mask(project):
    image = project.images()[0]
    project.masks.write(image, half())
    before = project.masks.find(image).read_bytes()
    project.remove(image)
    project.undo()
    assert project.masks.find(image).read_bytes() == before


def test_a_white_mask_removes_and_a_black_one_is_refused(project):
    image = project.images()[0]
    project.masks.write(image, half())
    with pytest.raises(DatasetError, match=r"001\.png: the mask is black throughout, .* paint what counts"):
        project.masks.write(image, Image.new("L", (48, 32), 0))
    assert project.masks.find(image)
    assert "all of it counts" in project.masks.write(image, Image.new("L", (48, 32), 255))
    assert project.masks.find(image) is None


def test_a_mask_of_another_shape_or_of_a_gone_picture_is_refused(project):
    image = project.images()[0]
    with pytest.raises(DatasetError, match="another shape than the picture"):
        project.masks.write(image, half((48, 48)))
    project.remove(image)
    with pytest.raises(ConfigError, match="not in this project any more"):
        project.masks.write(image, half())
    with pytest.raises(ConfigError, match="is not in the project own any more"):
        project.image("001.png")


def test_a_mask_that_somebody_changed_since_stays(project):
    image = project.images()[0]
    project.masks.write(image, half())
    half((96, 64)).rotate(180).save(project.masks.find(image))
    changed = project.masks.find(image).read_bytes()
    assert project.undo() == ""
    assert project.masks.find(image).read_bytes() == changed


def test_a_strangers_step_takes_nothing_but_the_mask_that_it_put_there(project):
    image = project.images()[0]
    outside = project.folder.parent / "outside.mask.png"
    outside.write_bytes(b"kept")
    step = project.folder / ".history" / "000001"
    step.mkdir(parents=True)
    masks = [["001.png", hashlib.sha256(image.read_bytes()).hexdigest()]]
    masks.append(["../outside.mask.png", hashlib.sha256(b"kept").hexdigest()])
    (step / "step.json").write_text(json.dumps({"what": "x", "files": [], "captions": [], "masks": masks}))
    assert UndoLog(project.folder).newest() is None
    assert project.undo() == ""
    assert image.exists() and outside.exists()


def test_a_step_of_an_earlier_version_is_still_undone(project):
    image = project.images()[0]
    project.remove(image)
    (description,) = project.folder.glob(".history/*/step.json")
    values = json.loads(description.read_text())
    del values["masks"]
    description.write_text(json.dumps(values))
    assert project.undo() == "removed 1 picture (001.png)"
    assert image.exists()


@pytest.mark.parametrize(
    "sent",
    [
        None, 7, "", "data:text/html;base64,PGI+", DATA_URL, DATA_URL + "%%%", DATA_URL + "aGVsbG8=",
        DATA_URL + "A" * MAX_PAINTED_CHARACTERS, as_url(Image.new("L", (MAX_PAINTED_SIDE + 1, 8))),
        as_url(half())[:-40],
    ],
    ids=["none", "number", "empty", "html", "no content", "no base64", "no image", "long", "large", "cut short"],
)  # fmt: skip
def test_what_is_no_painted_mask_is_refused_in_a_sentence(sent):
    with pytest.raises(DatasetError, match="sent as a mask"):
        read_painted(sent)
