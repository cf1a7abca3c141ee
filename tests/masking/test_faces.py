"""Faces: where their ellipses lie. OpenCV's cascades are run where it is installed."""

import builtins
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sdlora.data.images import open_image
from sdlora.errors import ConfigError
from sdlora.masking.faces import Face, draw_faces
from sdlora.masking.settings import MaskSettings
from sdlora.masking.sources import load_segmenter, require_segmenter
from tests.support.images import PHOTO_FOLDER

CPU = torch.device("cpu")


def load(**settings):
    return load_segmenter(MaskSettings(model="faces", **settings), CPU)


@pytest.fixture
def opencv():
    found = pytest.importorskip("cv2")
    if not hasattr(found, "CascadeClassifier"):
        pytest.skip("this OpenCV has no cascades")


def test_an_ellipse_goes_over_each_face_with_its_margin():
    mask = draw_faces((200, 100), [Face(20, 30, 40), Face(120, 30, 20)], margin=0.25)
    assert mask.crop((0, 0, 100, 100)).getbbox() == (10, 20, 71, 81)
    assert mask.crop((100, 0, 200, 100)).getbbox() == (15, 25, 46, 56)
    assert mask.getpixel((40, 50)) == 255 and mask.getpixel((11, 21)) == 0


def test_without_faces_nothing_counts():
    assert draw_faces((20, 10), [], margin=1).getextrema() == (0, 0)


class SquareDetector:
    """Stands for a cascade: finds the dark square in a bright image, unless it lies in the right half."""

    def __init__(self, path):
        self.path = path

    def empty(self):
        return False

    def detectMultiScale(self, grey, scale, neighbours, minSize):
        box = Image.fromarray(grey).point(lambda level: 255 * (level < 128)).getbbox()
        found = box is not None and box[2] <= grey.shape[1] / 2 and min(box[2] - box[0], box[3] - box[1]) >= minSize[0]
        return [(box[0], box[1], box[2] - box[0], box[3] - box[1])] if found else []


@pytest.fixture
def detector(monkeypatch):
    """A package in place of OpenCV whose cascades are ``SquareDetector``."""
    package = SimpleNamespace(
        CascadeClassifier=SquareDetector, equalizeHist=lambda grey: grey, data=SimpleNamespace(haarcascades="folder")
    )
    monkeypatch.setitem(sys.modules, "cv2", package)


def face(left, side, size=(320, 160)):
    image = Image.new("RGB", size, "white")
    image.paste("black", (left, 20, left + side, 20 + side))
    return image


def test_faces_are_found_at_the_size_of_the_image_and_in_mirrored_profile(detector):
    segmenter = load()
    assert segmenter.faces(face(20, 60)) == [(20, 20, 60)]
    assert segmenter.faces(face(220, 60)) == [(220, 20, 60)]  # The cascade for profiles knows one side alone.
    (found,) = segmenter.faces(face(20, 60).resize((3200, 1600)))
    assert found == pytest.approx((200, 200, 600), abs=6)
    assert segmenter.faces(face(20, 5)) == []  # Less than the least share of the shorter side.
    assert segmenter.faces(Image.new("RGB", (64, 64), "white")) == []


def test_the_class_cat_has_a_cascade_of_its_own(detector):
    assert [*load(class_name=" Cat")._cascades] == ["haarcascade_frontalcatface_extended.xml"]
    assert len(load(class_name="dog")._cascades) == 2


def test_a_cascade_that_cannot_be_read_is_named(detector, monkeypatch):
    monkeypatch.setattr(SquareDetector, "empty", lambda self: True)
    with pytest.raises(ConfigError, match=r"haarcascade_.*xml: cannot be read; install 'opencv-"):
        load()


def test_without_opencv_or_with_one_that_has_no_cascades_the_package_is_named(monkeypatch):
    require_segmenter(MaskSettings(model="faces"))  # It is named where it is needed.
    needed = "faces needs 'opencv-python-headless<5'; run pip install 'opencv-python-headless<5', or take a CLIPSeg"
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace())
    with pytest.raises(ConfigError, match=needed):
        load()
    monkeypatch.delitem(sys.modules, "cv2")
    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=needed):
        load()


def test_opencvs_own_cascades_open_and_find_nothing_in_a_plain_image(opencv):
    for name in ("", "cat"):
        (found,) = load(class_name=name).probabilities([Image.new("RGB", (300, 200), "grey")])
        assert found.size == (300, 200) and found.getextrema() == (0, 0)


@pytest.mark.skipif(not (PHOTO_FOLDER / "cat").is_dir(), reason="the photographs are not here")
def test_the_cat_is_found_on_a_photograph(opencv):
    """Its face lies left of the middle, in the upper half: seen by eye."""
    photo = open_image(PHOTO_FOLDER / "cat" / "02.jpg").rgb
    (found,) = load(class_name="cat").faces(photo)
    middle = (found.left + found.side / 2) / photo.width, (found.top + found.side / 2) / photo.height
    assert middle == pytest.approx((0.22, 0.28), abs=0.06)
