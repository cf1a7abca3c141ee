"""Held-out images: chosen by content, never trained on, named."""

import shutil
from pathlib import Path

import pytest

from sdlora.data.concepts import image_sets, load_concepts, run_concepts
from sdlora.data.doctor import check_dataset
from sdlora.data.held_out import held_out_count, load_training_set
from sdlora.data.settings import Concept, Data
from sdlora.errors import ConfigError, DatasetError
from sdlora.generation.settings import Prior
from tests.support.images import noise_image


def fill(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        noise_image(64, 64, first + index).save(folder / f"{index}.png")
    return folder


def names(examples):
    return [example.path.name for example in examples]


def test_a_share_is_at_least_one_and_never_all():
    assert [held_out_count(images, 0.2) for images in (0, 1, 2, 3, 10, 12)] == [0, 0, 1, 1, 2, 2]
    assert held_out_count(10, 0.0) == 0 and held_out_count(3, 0.99) == 2


def test_without_a_setting_nothing_is_held_out(tmp_path):
    found = load_training_set(Data(folder=fill(tmp_path / "data", 4)))
    assert (len(found.examples), found.held_out, found.notices) == (4, (), ())


def test_a_share_is_chosen_by_content_with_all_copies_and_named(tmp_path):
    folder = fill(tmp_path / "data", 8)
    data = Data(folder=folder, validation_share=0.25)
    found = load_training_set(data)
    assert len(found.held_out) == 2 and len(found.examples) == 6
    assert not {*names(found.examples)} & {*names(found.held_out)}
    assert all(name in found.notices[-1] for name in names(found.held_out))
    chosen = names(found.held_out)[0]
    (folder / chosen).rename(folder / "renamed.png")
    shutil.copy(folder / "renamed.png", folder / "copy.png")
    again = load_training_set(data)
    assert {"renamed.png", "copy.png"} <= {*names(again.held_out)}


def test_a_folder_of_ones_own_has_the_runs_words_and_no_copies(tmp_path):
    folder, other = fill(tmp_path / "data", 3), fill(tmp_path / "other", 2, 50)
    shutil.copy(folder / "0.png", other / "copy.png")
    (other / "0.txt").write_text("in snow")
    found = load_training_set(Data(folder=folder, validation_folder=other, trigger="sks"))
    assert len(found.examples) == 3
    assert [(one.path.name, one.caption) for one in found.held_out] == [("0.png", "sks, in snow"), ("1.png", "sks")]
    assert any("copy.png" in notice and "trained on too" in notice for notice in found.notices)


def test_a_folder_without_other_pictures_is_refused(tmp_path):
    folder = fill(tmp_path / "data", 3)
    with pytest.raises(DatasetError, match="trained on too"):
        load_training_set(Data(folder=folder, validation_folder=folder))
    with pytest.raises(DatasetError, match=r"data\.validation_folder"):
        load_training_set(Data(folder=folder, validation_folder=tmp_path / "none"))


def test_one_of_both_settings_can_be_set():
    with pytest.raises(ConfigError, match="not both"):
        Data.checked(folder="x", validation_share=0.1, validation_folder="y")


def test_steps_are_counted_by_what_is_trained_and_the_doctor_names_the_rest(tmp_path):
    folder = fill(tmp_path / "data", 10)
    [concept] = run_concepts(Data(folder=folder, validation_share=0.2), Prior())
    assert image_sets([concept], load_concepts([concept]).examples)[0].images == 8
    findings = check_dataset(concept, 64)
    assert any(finding.text.startswith("Held out of training: 2 pictures") for finding in findings)
    few = check_dataset(Data(folder=fill(tmp_path / "few", 3), validation_share=0.5), 64)
    assert any(finding.text.startswith("Only 1 picture") for finding in few)


def test_each_concept_holds_out_its_own(tmp_path):
    concepts = run_concepts(
        Data(folder=".", validation_share=0.3), Prior(),
        (Concept(folder=fill(tmp_path / "cat", 4), trigger="sks"),
         Concept(folder=fill(tmp_path / "dog", 4, 9), trigger="ohwx", validation_share=0.0)),
    )  # fmt: skip
    found = load_concepts(concepts)
    assert [example.concepts for example in found.held_out] == [(0,)]
    assert len(found.examples) == 7
