"""An evaluation of an adapter file through the API: what is known of the file, the estimate, the job, the result."""

import json
import os
import time

import pytest

from sdlora.api import file_evaluation as api
from sdlora.api.evaluation import EvaluationSettings
from sdlora.data.projects import Project
from sdlora.errors import ConfigError, DatasetError
from tests.support.tiny_models import write_tiny_adapter


@pytest.fixture
def adapter(tmp_path):
    """An imported adapter of a run of kohya's scripts."""
    folders = json.dumps({"10_sks red cat": {"n_repeats": 10, "img_count": 4}, "mystyle": {}})
    header = {"modelspec.trigger_phrase": "sks, other", "ss_dataset_dirs": folders, "ss_sd_model_name": "pocket"}
    return write_tiny_adapter(tmp_path / "adapters" / "cat.safetensors", **header)


def test_metadata_tell_the_trigger_the_class_and_the_folders(adapter, tmp_path):
    facts = api.file_facts(adapter, tmp_path)
    assert facts == ("pocket", "sks", "red cat", ("10_sks red cat", "mystyle"))


@pytest.mark.parametrize("folders", ["{", "[]", '"a"', "[" * 5000])
def test_metadata_that_cannot_be_read_tell_nothing(tmp_path, folders):
    path = write_tiny_adapter(tmp_path / "x.safetensors", ss_dataset_dirs=folders)
    assert api.file_facts(path, tmp_path) == ("", "", "", ())
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    assert api.file_facts(tmp_path / "broken.safetensors", tmp_path) == ("", "", "", ())


def test_an_estimate_counts_the_base_and_the_file_at_each_scale(adapter, tmp_path):
    files = api.describe_files([str(adapter)], api.FileSettings(), tmp_path)
    settings = EvaluationSettings(scales=(0.5, 1.0), seeds=2, prompts=("sks, a cup",), unrelated_prompts=("a tree",))
    found = api.file_estimate(files, settings)
    assert found.prompts.all == ("sks, a cup", "a cup", "a tree")
    assert (found.images, found.checkpoints, found.seconds) == (3 * 2 * (1 + 2), (1,), None)


def test_a_job_is_refused_before_it_starts(adapter, tmp_path):
    files = api.describe_files([str(adapter)], api.FileSettings(), tmp_path)
    with pytest.raises(ConfigError, match="are of a run"):
        api.file_evaluation_job(files, EvaluationSettings(checkpoints=(3,)), tmp_path)
    empty = Project(tmp_path, "empty").folder
    empty.mkdir(parents=True)
    about = api.FileSettings(images=empty)
    with pytest.raises(DatasetError):
        api.file_evaluation_job(api.describe_files([str(adapter)], about, tmp_path), EvaluationSettings(), tmp_path)


def test_a_result_is_found_by_the_file_and_is_outdated_by_another_one(adapter, tmp_path):
    folder = api.file_evaluation_folder(adapter, tmp_path)
    assert folder == api.describe_files([str(adapter)], api.FileSettings(), tmp_path).folder(tmp_path)
    assert api.result_stamp(folder) is None and api.outdated_file_evaluation(adapter, tmp_path) == []
    folder.mkdir(parents=True)
    result = folder / "evaluation.json"
    result.write_text("{}")
    os.utime(result, (later := time.time() + 60, later))
    assert api.result_stamp(folder) is not None and api.outdated_file_evaluation(adapter, tmp_path) == []
    os.utime(result, (1, 1))
    assert api.outdated_file_evaluation(adapter, tmp_path) == ["cat changed since"]
    (tmp_path / "secret.png").write_bytes(b"x")
    (folder / "sheet.png").symlink_to(tmp_path / "secret.png")
    assert api.result_sheet(folder) is None
