"""WD14 taggers: which of their tags get into a caption. A tiny model, whose tags are levels, is truly run."""

import builtins

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.captioning.settings import CaptionSettings
from sdlora.captioning.sources import load_captioner
from sdlora.captioning.wd14 import FACES, prepare, read_tags, tag_words
from sdlora.errors import ConfigError, ModelError
from tests.support.tiny_tagger import SIDE, TAGS, write_tiny_tagger

CPU = torch.device("cpu")


def tagger(folder, **settings):
    pytest.importorskip("onnxruntime")
    return load_captioner(CaptionSettings(model=str(folder), **settings), CPU)


def plain(red, green, blue, size=(SIDE, SIDE)):
    return Image.new("RGB", size, (red, green, blue))


def test_tags_above_their_thresholds_are_said_characters_first(tmp_path):
    """Levels over 255: red 1.0 (the dress, the character), green 0.4 (the face), blue 0.2 (hair)."""
    folder = write_tiny_tagger(tmp_path)
    image = plain(255, 102, 51)
    assert tagger(folder).captions([image]) == ["some one (series), red dress, x_x"]
    assert tagger(folder, threshold=0.1).captions([image]) == ["some one (series), red dress, x_x, blue hair"]
    assert tagger(folder, threshold=0.1).captions([plain(200, 0, 255)]) == ["blue hair, red dress"]


def test_ratings_and_other_categories_are_left_out(tmp_path):
    (caption,) = tagger(write_tiny_tagger(tmp_path), threshold=0).captions([plain(255, 255, 255)])
    assert "general" not in caption and "old" not in caption


def test_the_blacklist_names_tags_and_the_limit_counts_words(tmp_path):
    folder, image = write_tiny_tagger(tmp_path), plain(255, 255, 255)
    assert tagger(folder, blacklist=("red_dress", "x_x")).captions([image]) == ["some one (series), blue hair"]
    assert tagger(folder, max_words=5).captions([image]) == ["some one (series), red dress"]


def test_nothing_likely_is_no_caption(tmp_path):
    assert tagger(write_tiny_tagger(tmp_path)).captions([plain(0, 0, 0)]) == [""]


@pytest.mark.parametrize("batch", ["N", 1])
def test_models_of_one_image_at_a_time_take_several(tmp_path, batch):
    images = [plain(255, 0, 0), plain(0, 0, 255), plain(0, 255, 0)]
    found = tagger(write_tiny_tagger(tmp_path, batch=batch)).captions(images)
    assert found == ["some one (series), red dress", "blue hair", "x_x"]


def test_images_are_made_square_with_white_and_in_the_order_blue_green_red():
    pixels = prepare(plain(10, 20, 30, size=(SIDE, SIDE // 2)), SIDE)
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.float32
    assert pixels[SIDE // 2, 0].tolist() == [30, 20, 10]
    assert pixels[0, 0].tolist() == pixels[-1, -1].tolist() == [255, 255, 255]
    assert prepare(plain(10, 20, 30, size=(100, 100)), SIDE).mean((0, 1)).tolist() == [30, 20, 10]


def test_underscores_are_blanks_but_in_faces():
    assert tag_words("long_sleeves") == "long sleeves"
    assert tag_words("one,two_(three)") == "onetwo (three)"
    assert {tag_words(face) for face in FACES} == FACES


def test_a_tagger_without_its_package_names_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *arguments, **named)

    folder = write_tiny_tagger(tmp_path)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match="a WD14 tagger needs onnxruntime; run pip install onnxruntime, or take"):
        load_captioner(CaptionSettings(model=str(folder)), CPU)


def test_what_is_no_tagger_is_refused_with_its_reason(tmp_path):
    folder = write_tiny_tagger(tmp_path / "short", tags=TAGS[1:])
    with pytest.raises(ModelError, match=r"gives 6 probabilities, and its selected_tags\.csv has 5 tags"):
        tagger(folder)
    (folder / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"short: its model\.onnx cannot be read"):
        tagger(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"a WD14 tagger has model\.onnx and selected_tags\.csv"):
        load_captioner(CaptionSettings(model=str(folder)), CPU)


@pytest.mark.parametrize("table", ["", "tag_id,name\n1,x", "tag_id,name,category\n1,x", "\0,\0"])
def test_a_table_without_tags_is_refused(tmp_path, table):
    (tmp_path / "selected_tags.csv").write_text(table)
    with pytest.raises(ModelError, match=r"selected_tags\.csv: (is no table|has no tags)"):
        read_tags(tmp_path / "selected_tags.csv")


def test_a_model_reads_nothing_from_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(72))
    folder = write_tiny_tagger(tmp_path / "tagger", outside="../secret")
    with pytest.raises(ModelError, match="cannot be read"):
        tagger(folder)
    write_tiny_tagger(folder, outside=str(tmp_path / "secret"))
    with pytest.raises(ModelError, match="cannot be read"):
        tagger(folder)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="is a link out of"):
        load_captioner(CaptionSettings(model=str(folder)), CPU)
