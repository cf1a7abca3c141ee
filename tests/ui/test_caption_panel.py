"""The button that captions a project's pictures: what it starts, what it says, and that a stop loses nothing."""

import gradio as gr
import pytest

from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import ConfigError, DatasetError
from sdlora.events import Progress
from sdlora.ui import caption_panel, images_tab, job_widget
from tests.support.page_server import ROOT

PICTURES = sorted((ROOT / "sample_data" / "stained-glass").glob("*.png"))


@pytest.fixture
def laid_out(app):
    """The panel, the tab, and the values of a project of a subject without captions."""
    with gr.Blocks() as demo:
        tab, panel = images_tab.build(app, demo), caption_panel.build()
    project = Project(app.data_dir, "mine")
    project.set_info(ProjectInfo("style", "ohwx style"))
    project.add(PICTURES)
    values = {component: component.value for component in panel.inputs} | {
        tab.project: "mine", tab.kind: "style", tab.trigger: "ohwx style", tab.class_name: "", tab.base: "pocket",
    }  # fmt: skip
    return panel, tab, project, values


def start(app, laid_out, **changed):
    """Start a job with some fields changed, by their names in the panel or the tab."""
    panel, tab, _, values = laid_out
    fields = {name: getattr(panel, name, None) or getattr(tab, name) for name in changed}
    return caption_panel._start(app, tab, panel, values | {fields[name]: value for name, value in changed.items()})


def test_the_fields_say_what_the_job_does(app, laid_out):
    request = start(app, laid_out).request
    assert request["folder"] == Project(app.data_dir, "mine").folder
    assert request["settings"] == {
        "model": "pocket", "mode": "empty", "threshold": 0.35, "trigger": "", "blacklist": [], "class_name": "",
        "device": "auto",
    }  # fmt: skip
    changed = start(
        app, laid_out, mode="append", trigger_first=True, blacklist=" sky, , a red wall", kind="subject",
        class_name="cat",
    ).request["settings"]  # fmt: skip
    assert (changed["mode"], changed["trigger"], changed["class_name"]) == ("append", "ohwx style", "cat")
    assert changed["blacklist"] == ["sky", "a red wall"]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [({"project": "empty"}, DatasetError, "No pictures yet"),
     ({"project": "!"}, ConfigError, "Give the project a name"),
     ({"base": "some/base"}, ConfigError, "take Salesforce/blip"), ({"threshold": 2}, ConfigError, "threshold = 2")],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_starts(app, laid_out, changed, error, message):
    with pytest.raises(error, match=message):
        start(app, laid_out, **changed)


def test_the_pictures_are_captioned_and_undo_takes_it_back(app, laid_out):
    panel, _, project, _ = laid_out
    job = start(app, laid_out, threshold=0)
    assert any("Captioning: 10 of 10" in update for update in [*job_widget.follow(app, "me", job)])
    said = caption_panel._finish(panel, job)[panel.widget.status]
    assert "Captioned 10 pictures of 10." in said and "Undo takes them back" in said
    assert all(map(project.caption, project.images()))
    assert project.training_caption(project.images()[0]).startswith("ohwx style, a")
    assert project.history.newest().what == "words of a model in 10 captions"
    project.undo()
    assert not any(map(project.caption, project.images()))


def test_a_cancelled_job_keeps_what_it_wrote_for_undo(app, laid_out, monkeypatch):
    *_, project, _ = laid_out
    job = start(app, laid_out, threshold=0)
    job.request["settings"]["batch_size"] = 1
    stopped = False
    with pytest.raises(Exception, match="written so far are kept"):
        for event in job:
            if not stopped and isinstance(event, Progress) and event.phase == "captioning" and event.done:
                job.stop()
                stopped = True
    written = [image for image in project.images() if project.caption(image)]
    assert written and project.history.newest() is not None
    project.undo()
    assert not any(map(project.caption, project.images()))
