"""Spaces and dots at the ends of names, as Windows and zips have them: one rule for all that has a name."""

from pathlib import Path

import pytest

from sdlora.api.adapters import find_adapter
from sdlora.api.editing import new_path
from sdlora.api.models import resolve_base
from sdlora.api.training import find_run
from sdlora.config import TrainConfig
from sdlora.data.dataset import load_dataset
from sdlora.data.projects import Project, ProjectInfo
from sdlora.families.base_models import BUNDLED, locate_base
from sdlora.families.settings import Model
from sdlora.filesystem.paths import as_path, existing_path, safe_name, trimmed_name
from sdlora.generation.images import save_images
from sdlora.inference.generation_request import GenerationRequest
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from tests.support.images import noise_image
from tests.support.tiny_models import write_tiny_adapter

ENDS = ["", " ", ".", ". ", " . .", "..."]


@pytest.mark.parametrize("end", ENDS)
def test_whatever_has_a_name_is_found_by_it_with_or_without_them(tmp_path, configure, end):
    Project(tmp_path, "mine").set_info(ProjectInfo())
    Run.create(tmp_path / "runs", "style", configure())
    write_tiny_adapter(tmp_path / "adapters" / "a.safetensors")
    (tmp_path / "models" / "own").mkdir(parents=True)
    (tmp_path / "models" / "own" / "model_index.json").write_text("{}")
    library = Library(tmp_path)
    assert Project(tmp_path, f"mine{end}").info is not None
    assert find_run(f"style{end}", tmp_path).name == "style"
    assert library.run(f"style{end}").name == "style"
    assert library.find(f"a{end}").name == "a"
    assert find_adapter(f"a{end}", tmp_path).name == "a.safetensors"
    assert Path(resolve_base(f"own{end}", tmp_path)).name == "own"
    assert library.choose_name(f"new{end}", "") == "new"
    assert safe_name(f"new{end}") == "new"


@pytest.mark.parametrize("end", ENDS)
def test_a_base_is_the_same_one(end):
    assert Model(base=f"pocket{end}").base == GenerationRequest(base=f"pocket{end}").base == "pocket"
    assert locate_base(f"pocket{end}").location == str(BUNDLED["pocket"])


@pytest.mark.parametrize("end", ENDS)
def test_what_is_written_can_be_opened_on_windows(tmp_path, end):
    assert new_path(tmp_path / f"folder{end}" / f"baked.safetensors{end}", ".safetensors") == (
        tmp_path / "folder" / "baked.safetensors"
    )
    (saved,) = save_images([noise_image()], tmp_path / f"out{end}" / "a.png")
    assert saved == tmp_path / "out" / "a.png"


def test_folders_given_by_people_are_found_and_those_that_have_such_names_stay(tmp_path, pictures):
    (tmp_path / "pics").symlink_to(pictures)
    (tmp_path / "odd ").mkdir()
    config = TrainConfig.parse({"data": {"folder": str(tmp_path / "pics. ")}}, "here")
    assert len(load_dataset(config.data).examples) == 6
    assert existing_path(tmp_path / "odd ") == tmp_path / "odd "
    assert as_path(tmp_path / "odd " / "new.") == tmp_path / "odd " / "new"
    assert Model(base=str(tmp_path / "odd ")).base == str(tmp_path / "odd ")


@pytest.mark.parametrize("name", ["..", ".", "...", "a", "a.b", " a", "../x", "x/.. /y", "~"])
def test_names_that_mean_something_else_stay(name, tmp_path):
    assert trimmed_name(name) in (name, "x/.. /y")
    assert as_path(tmp_path / ".." / "x").parts[-2:] == ("..", "x")
