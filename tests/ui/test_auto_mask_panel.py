"""The button that masks a project's pictures: what it starts, what it says, and that Undo takes it back."""

import gradio as gr
import pytest

from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import ConfigError, DatasetError
from sdlora.ui import auto_mask_panel, images_tab, job_widget
from sdlora.ui.mask_endpoints import MaskEndpoints
from tests.support.page_server import ROOT
from tests.support.tiny_segmenters import write_tiny_clipseg

PICTURES = sorted((ROOT / "sample_data" / "stained-glass").glob("*.png"))[:3]


@pytest.fixture
def laid_out(app):
    """The panel, the tab, and the values of a project of a subject without masks."""
    with gr.Blocks() as demo:
        tab, panel = images_tab.build(app, demo), auto_mask_panel.build()
    project = Project(app.data_dir, "mine")
    project.set_info(ProjectInfo("subject", "ohwx", "dog"))
    project.add(PICTURES)
    values = {component: component.value for component in panel.inputs} | {
        tab.project: "mine", tab.kind: "subject", tab.trigger: "ohwx", tab.class_name: "dog",
    }  # fmt: skip
    return panel, tab, project, values


def start(app, laid_out, **changed):
    """Start a job with some fields changed, by their names in the panel or the tab."""
    panel, tab, _, values = laid_out
    fields = {name: getattr(panel, name, None) or getattr(tab, name) for name in changed}
    return auto_mask_panel._start(app, tab, panel, values | {fields[name]: value for name, value in changed.items()})


def test_the_fields_say_what_the_job_does(app, laid_out):
    request = start(app, laid_out).request
    assert request["folder"] == Project(app.data_dir, "mine").folder
    assert request["settings"] == {
        "model": "CIDAS/clipseg-rd64-refined", "words": "", "mode": "empty", "threshold": 0.3, "grow": 0.02,
        "soft": False, "class_name": "dog", "device": "auto",
    }  # fmt: skip
    changed = start(app, laid_out, mode="replace", model=" faces ", words="a cat", kind="style").request["settings"]
    assert (changed["mode"], changed["model"], changed["words"], changed["class_name"]) == (
        "replace", "faces", "a cat", "",
    )  # fmt: skip


def test_the_projects_class_fills_in_what_is_looked_for():
    assert auto_mask_panel._words_of_class("old toy") == "an old toy"
    assert auto_mask_panel._words_of_class("") == auto_mask_panel._words_of_class(None) == ""


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [({"project": "empty"}, DatasetError, "No pictures yet"),
     ({"project": "!"}, ConfigError, "Give the project a name"), ({"kind": "style"}, ConfigError, "words is empty"),
     ({"model": "no such"}, ConfigError, "is no segmenter"), ({"threshold": 2}, ConfigError, "threshold = 2")],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_starts(app, laid_out, changed, error, message):
    with pytest.raises(error, match=message):
        start(app, laid_out, **changed)


def test_the_pictures_are_masked_and_undo_takes_it_back(app, laid_out, tmp_path):
    panel, _, project, _ = laid_out
    model = str(write_tiny_clipseg(tmp_path / "clipseg"))
    job = start(app, laid_out, model=model, threshold=0.0, soft=True)
    assert any("Masking: 3 of 3" in update for update in [*job_widget.follow(app, "me", job)])
    said = auto_mask_panel._finish(panel, job)[panel.widget.status]
    assert "Masked 3 pictures of 3." in said and "Undo takes them back" in said and "data.crop" in said
    assert all(map(project.masks.find, project.images()))
    assert project.history.newest().what == "masks of 3 pictures"
    project.undo()
    assert not any(map(project.masks.find, project.images()))


def test_the_endpoint_masks_a_project_for_its_class(app, laid_out, tmp_path):
    model = str(write_tiny_clipseg(tmp_path / "clipseg"))
    found = MaskEndpoints(app).mask("mine", model=model, threshold=0.0, soft=True)
    assert found == {
        "masked": ["001.png", "002.png", "003.png"], "written": 3, "kept": 0, "nothing": [], "notes": [],
    }  # fmt: skip
    assert MaskEndpoints(app).mask("mine", model=model)["kept"] == 3
    with pytest.raises(ConfigError, match="has no pictures"):
        MaskEndpoints(app).mask("empty")
