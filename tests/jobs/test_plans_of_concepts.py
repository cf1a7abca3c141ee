"""Plans, estimates, names and bundles of a run of two concepts."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sdlora.api.training import prepare_run
from sdlora.config import TrainConfig
from sdlora.data.images import ImageSize
from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import BusyError, DatasetError
from sdlora.jobs.measurement import Measurement, counted_examples, measurement_file
from sdlora.jobs.preflight import plan_from_measurement, plan_table, require_startable
from sdlora.jobs.run_estimate import estimate_run
from sdlora.storage.library import Library
from sdlora.training.memory_estimate import estimate_memory
from sdlora.training.profiling import count_class_images
from tests.support.tiny_models import write_tiny_adapter
from tests.support.training import train_job

FOUND = Measurement(
    device="cpu", width=64, height=64, load=5, encode=1, step=2, sampling=0.5, picture=1, memory=3 << 30, resolution=64,
    native_size=64, latent_factor=8, numbers=1000, state=8000, caption=600, counted=2 << 30, rungs=[],
)  # fmt: skip


def fill(folder: Path, count: int, red: int = 0) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (64, 64), (red, 9 * index, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a thing {index}")
    return folder


@pytest.fixture
def two(configure: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., TrainConfig]:
    """A config of a cat in two pictures and a dog in five."""
    cat, dog = fill(tmp_path / "own" / "pictures", 2), fill(tmp_path / "other" / "pictures", 5, 200)

    def make(**overrides: Any) -> TrainConfig:
        concepts = [
            {"folder": str(cat), "trigger": "sks", "class_name": "cat"},
            {"folder": str(dog), "trigger": "ohwx", "class_name": "dog", "flip": True},
        ]
        values = configure(**overrides).model_dump(mode="json", exclude_none=True)
        return TrainConfig.parse(values, "test", {"concepts": concepts})

    return make


def test_a_plan_counts_the_views_and_class_pictures_of_each_concept(two):
    plan = plan_from_measurement(two(prior__weight=1.0, prior__count=3, prior__steps=4), FOUND)
    assert plan.seconds["encoding pictures"] == 2 + 2 * 5 + 2 * 3  # The dog is mirrored; two classes.
    assert plan.seconds["class pictures"] == 6 * (1 + 4 * 0.5)
    assert [(one["label"], one["images"], one["seen"]) for one in plan.concepts] == [("sks", 2, 6), ("ohwx", 5, 5)]
    text = "\n".join(plan_table(plan))
    assert "2 pictures of sks, 55% of an epoch" in text and "5 pictures of ohwx, 45% of an epoch" in text


def test_epochs_are_counted_with_the_repeats_that_balance(two):
    config = two(train__steps=None, train__epochs=2, train__batch_size=1)
    assert plan_from_measurement(config, FOUND).steps == 22  # 6 + 5 an epoch
    assert estimate_run(config, Path("nowhere")).steps == 22


def test_without_a_length_a_run_of_two_takes_the_steps_of_both(two):
    assert plan_from_measurement(two(train__steps=None, train__batch_size=1), FOUND).steps == 400 + 500


def test_a_measurement_belongs_to_the_pictures_of_all_concepts(two, tmp_path):
    config = two()
    before = measurement_file(config, tmp_path)
    assert len(counted_examples(config)) == 7
    Image.new("RGB", (200, 64)).save(config.concepts[1].folder / "wide.png")
    assert measurement_file(config, tmp_path) != before


def test_class_pictures_of_ones_own_are_not_made(two):
    config = two(prior__weight=1.0, prior__count=3)
    cat, dog = config.all_concepts
    assert count_class_images((cat, replace_folder(dog))) == 3
    assert count_class_images((cat, replace_folder(dog)), own=True) == 6


def replace_folder(concept):
    return concept.model_copy(update={"class_folder": Path("dogs")})


@pytest.mark.slow
def test_memory_is_counted_with_the_class_pictures_of_any_concept(two, tmp_path):
    def counted(**overrides: Any) -> int:
        return estimate_memory(train_job(two(**overrides), tmp_path), ImageSize(64, 64), torch.float32).step

    assert counted(prior__weight=1.0) > counted()


def test_pictures_of_any_concept_that_are_gone_are_told_before_a_run_begins(two, tmp_path):
    config = two()
    for path in config.concepts[1].folder.iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"concept 2 \(ohwx\): .* no .png or .jpg among 0 files; point folder at"):
        require_startable(config)


def test_a_run_without_a_name_has_the_triggers_and_a_bundle_all_captions(two, tmp_path):
    run = prepare_run(two(), None, tmp_path / "data")
    assert run.name == "sks-ohwx"
    write_tiny_adapter(run.adapter)
    with zipfile.ZipFile(Library(tmp_path / "data").bundle(run.name, tmp_path / "run.zip")) as pack:
        names = {name for name in pack.namelist() if name.endswith(".txt")}
        pack.extractall(tmp_path / "out")
    assert names == {
        f"sks-ohwx/pictures-{number}/{index}.txt" for number, count in ((1, 2), (2, 5)) for index in range(count)
    }
    again = TrainConfig.load(tmp_path / "out" / "sks-ohwx" / "config.toml")
    assert [one.folder for one in again.concepts] == [tmp_path / "out" / "sks-ohwx" / f"pictures-{n}" for n in (1, 2)]
    assert str(tmp_path / "own") not in (tmp_path / "out" / "sks-ohwx" / "config.toml").read_text()


def test_a_project_beside_the_first_is_not_deleted_while_a_run_waits_for_it(two, tmp_path):
    data_dir = tmp_path / "data"
    project = Project(data_dir, "dogs")
    fill(project.folder, 3)
    project.set_info(ProjectInfo("style", "zwx"))
    config = two()
    concepts = [{"folder": str(config.concepts[0].folder)}, {"folder": str(project.folder), "trigger": "zwx"}]
    values = config.model_dump(mode="json", exclude_none=True)
    run = prepare_run(TrainConfig.parse(values, "test", {"concepts": concepts}), "both", data_dir)
    run.queued_file.touch()
    with pytest.raises(BusyError, match="both trains on it"):
        Library(data_dir).delete_project("dogs")
