"""Projects of kohya's trainers become concepts: their folders, their class images, and their dataset files."""

from pathlib import Path
from typing import Any

import pytest

from sdlora.api.training import import_kohya
from sdlora.cli import options
from sdlora.cli.main import _parser
from sdlora.config import TrainConfig
from sdlora.data.concepts import load_concepts
from sdlora.data.dataset import survey_folder
from sdlora.data.doctor import training_notices
from sdlora.data.images import ImageSize
from sdlora.data.settings import Data
from sdlora.errors import ConfigError, DatasetError
from tests.support.images import noise_image


def fill(folder: Path, count: int, first: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        noise_image(64, 64, first + index).save(folder / f"{index}.png")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    fill(tmp_path / "img" / "10_ohwx cat", 2, 0)
    fill(tmp_path / "img" / "5_abcd dog", 3, 10)
    fill(tmp_path / "reg" / "1_cat", 4, 20)
    fill(tmp_path / "reg" / "1_house", 1, 30)
    (tmp_path / "log").mkdir()
    return tmp_path


@pytest.mark.parametrize("inner", ["", "img"])
def test_each_folder_is_a_concept_with_the_class_pictures_of_its_class(project: Path, inner: str) -> None:
    found = import_kohya(project / inner)
    cat, dog = found.concepts
    img, reg = project / "img", project / "reg"
    assert cat == {
        "folder": str(img / "10_ohwx cat"), "repeats": 10, "trigger": "ohwx", "class_name": "cat",
        "class_folder": str(reg / "1_cat"), "class_count": 4, "prior_weight": 1.0,
    }  # fmt: skip
    assert dog == {"folder": str(img / "5_abcd dog"), "repeats": 5, "trigger": "abcd", "class_name": "dog"}
    assert found.notices == [
        "10_ohwx cat: a concept of its own, called ohwx; 4 class pictures from 1_cat, in turn, at weight 1.",
        "5_abcd dog: a concept of its own, called abcd.",
        "Class pictures not used, as no concept is of their class: 1_house.",
    ]


def test_a_flag_trains_a_project_in_place_of_the_presets_pictures(project: Path, capsys) -> None:
    command = ["train", "pocket-subject", "--from-kohya", str(project)]
    config = TrainConfig.load("pocket-subject", options.overrides(_parser(command)[0].parse_args(command)))
    assert [one.trigger for one in config.all_concepts] == ["ohwx", "abcd"]
    assert [(e.concepts[0], e.repeats) for e in load_concepts(config.all_concepts).examples] == [
        (0, 10), (0, 10), (1, 5), (1, 5), (1, 5),
    ]  # fmt: skip
    assert config.sample.prompts[0] == "a ohwx cat on sand"
    assert "notice: 5_abcd dog: a concept of its own" in capsys.readouterr().err


def test_a_folder_of_several_names_is_read_as_before_and_the_other_way_is_told(project: Path) -> None:
    data = Data(folder=project / "img")
    found = survey_folder(data)
    assert {(example.caption, example.repeats) for example in found.examples} == {("ohwx cat", 10), ("abcd dog", 5)}
    notices = training_notices(data, 64, found.examples, [ImageSize(64, 64)] * 5)
    assert any(f"--from-kohya {project / 'img'}" in notice for notice in notices)


def test_a_dataset_file_is_read(project: Path) -> None:
    path = project / "dataset.toml"
    path.write_text("""
[general]
shuffle_caption = true
caption_extension = ".txt"
[[datasets]]
resolution = [64, 64]
batch_size = 2
[[datasets.subsets]]
image_dir = "img/10_ohwx cat"
class_tokens = "ohwx cat"
num_repeats = 3
flip_aug = true
[[datasets.subsets]]
image_dir = "img/5_abcd dog"
shuffle_caption = false
face_crop_aug_range = [1, 2]
[[datasets.subsets]]
is_reg = true
image_dir = "reg/1_cat"
class_tokens = "cat"
""")
    found = import_kohya(path)
    config = TrainConfig.load("pocket-subject", {**found.settings, "concepts": found.concepts})
    cat, dog = config.all_concepts
    assert (cat.trigger, cat.class_name, cat.repeats, cat.flip, cat.shuffle_captions) == ("ohwx", "cat", 3, True, True)
    assert (cat.class_folder, cat.class_count) == (project / "reg" / "1_cat", 4)
    assert (dog.trigger, dog.repeats, dog.shuffle_captions, dog.class_folder) == ("abcd", 1, False, None)
    assert (config.data.resolution, config.train.batch_size) == (64, 2)
    assert found.notices[-1] == "dataset.toml: not used: caption_extension, face_crop_aug_range."


SUBSET = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3", "lacks [[datasets]]"),
        ("datasets = []", "lacks [[datasets]]"),
        ("general = 3\n" + SUBSET, "lacks [[datasets]]"),
        ("[[datasets]]", "lacks [[datasets.subsets]]"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 3", "image_dir = None is no folder"),
        (SUBSET + "is_reg = true", "all its subsets are class images"),
        ("[[datasets", "is not TOML"),
    ],
)
def test_what_is_no_dataset_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        import_kohya(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_disagreeing_sizes_are_left_to_the_user(tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(f"{SUBSET}[[datasets]]\nresolution = [64, 128]\n" + SUBSET.split("\n", 1)[1].replace('"a"', '"b"'))
    found = import_kohya(path)
    assert found.settings == {}
    assert found.notices[-1] == "dataset.toml: not used: resolution = [64, 128]; set data.resolution yourself."


def test_a_folder_without_kohyas_folders_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "cats", 2, 0)
    (tmp_path / "10_empty one").mkdir()
    with pytest.raises(DatasetError, match="has no folder named like `10_ohwx cat` with pictures"):
        import_kohya(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        import_kohya(tmp_path / "nowhere")


def test_a_style_has_no_class_to_preserve(tmp_path: Path) -> None:
    fill(tmp_path / "3_ohwx style", 2, 0)
    found = import_kohya(tmp_path)
    assert found.concepts[0]["prior_weight"] == 0
    assert found.notices == [
        "3_ohwx style: a concept of its own, called ohwx style; no class pictures, as its name has no class."
    ]


def test_a_bad_value_in_a_dataset_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(SUBSET + 'num_repeats = "many"')
    found: Any = import_kohya(path)
    with pytest.raises(ConfigError, match="concept 1: repeats = 'many'"):
        TrainConfig.load("pocket-subject", {"concepts": found.concepts})
