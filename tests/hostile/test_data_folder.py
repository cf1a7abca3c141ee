"""A data folder that came from somebody else: whatever its small files say, the page's lists stand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.api.adapters import list_adapters
from sdlora.api.grids import grid_folder
from sdlora.data.projects import Project, ProjectInfo, list_projects
from sdlora.errors import FileError
from sdlora.generation import xyz_grid
from sdlora.ui import images_tab, library_tab, project_panel
from sdlora.ui.app_state import AppState
from tests.support import hostile_files
from tests.support.images import noise_image
from tests.support.page_calls import build_images_tab
from tests.support.tiny_models import write_tiny_adapter

JSON: dict[str, hostile_files.Maker] = {
    "nothing": hostile_files.content(),
    "nested deeply": hostile_files.deep_json,
    "a list": hostile_files.content(b"[1, 2]"),
    "a number": hostile_files.content(b"9" * 5000),
    "other types": hostile_files.content(
        json.dumps(dict.fromkeys(["kind", "trigger", "what", "files", "captions", "axes", "cells", "base", "name"], 5)
                   | {"deleted": 1e300, "origins": 5, "class_name": {}}).encode()
    ),
    "a time that no calendar has": hostile_files.content(
        b'{"name": "x", "what": "x", "origins": [], "deleted": Infinity, "trigger": "x", "class_name": "x", "kind": []}'
    ),
    "Latin-1": hostile_files.content(b'{"kind": "\xfc"}'),
    "megabytes": hostile_files.content(b"[" * 70_000_000),
    "a pipe": hostile_files.pipe,
    "no end": hostile_files.device,
    "a folder": hostile_files.folder,
}  # fmt: skip


def project(app: AppState) -> Project:
    """A project of one picture, of which something can be undone."""
    made = Project(app.data_dir, "mine")
    made.folder.mkdir(parents=True)
    for number in (1, 2):
        noise_image(seed=number).save(made.folder / f"{number:03d}.png")
    made.set_info(ProjectInfo(trigger="ohwx"))
    made.remove(made.images()[1])
    return made


def trashed(app: AppState) -> Path:
    write_tiny_adapter(app.library.folder / "gone.safetensors")
    return app.library.delete_adapter("gone").folder


FILES: dict[str, Callable[[AppState], Path]] = {
    "a project's words": lambda app: project(app).info_file,
    "a step to undo": lambda app: next(project(app).history.steps_folder.glob("*/step.json")),
    "a thing in the trash": lambda app: trashed(app) / "item.json",
    "an adapter's report": lambda app: app.library.folder / "a.check.json",
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("case", JSON)
def test_a_small_file_of_any_kind_breaks_no_list(app: AppState, file: str, case: str) -> None:
    write_tiny_adapter(app.library.folder / "a.safetensors")
    place = FILES[file](app)
    place.unlink(missing_ok=True)
    JSON[case](place)
    assert library_tab._lists(app, "")[0].count("class='tile'") == 1
    assert [adapter.name for adapter in list_adapters(app.data_dir)] == ["a"]
    for found in list_projects(app.data_dir):
        assert found.status()
        project_panel.project_values(app, build_images_tab(app), found.name)
        images_tab._status(app, found.name)
        found.undo()
    assert app.library.trash.forget_old() == 0


@pytest.mark.parametrize("case", JSON)
def test_a_hostile_grid_is_one_sentence(app: AppState, case: str) -> None:
    folder = app.images_folder / "grids" / "x"
    folder.mkdir(parents=True)
    JSON[case](folder / xyz_grid.DECLARATION)
    with pytest.raises(FileError, match="holds no grid that can be read"):
        xyz_grid.read_grid(grid_folder(app.data_dir, "x"))
