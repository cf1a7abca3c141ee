"""Choosing a scale of an adapter file in its details: what is filled in, the plan, the job and its result."""

import json
import shutil
import time

import gradio as gr
import pytest

from sdlora.data.projects import Project, ProjectInfo
from sdlora.formats import write_adapter
from sdlora.storage.run_folder import Run
from sdlora.ui import evaluation_panel, file_evaluation_panel
from tests.support.adapters import random_lora
from tests.support.images import noise_image
from tests.support.tiny_models import write_tiny_adapter, write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP. Read only."""
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def project(app):
    """A project of a subject with two captioned images."""
    project = Project(app.data_dir, "mycat")
    project.folder.mkdir(parents=True)
    project.set_info(ProjectInfo("subject", "sks", "cat"))
    for number in (1, 2):
        noise_image(seed=number).save(project.folder / f"{number:03d}.png")
        (project.folder / f"{number:03d}.txt").write_text("sks cat on a sofa")
    return project


@pytest.fixture
def adapter(app):
    """An imported adapter that was trained on a folder of the project's name."""
    header = {"modelspec.trigger_phrase": "sks", "ss_dataset_dirs": json.dumps({"mycat": {}})}
    path = app.library.folder / "cat.safetensors"
    path.parent.mkdir(parents=True)
    write_adapter(random_lora(**header), path, format="kohya", dtype="fp32")
    app.refresh()
    return path


@pytest.fixture
def panel(app):
    with gr.Blocks():
        return file_evaluation_panel.build(app, gr.State(""))


@pytest.fixture
def values(panel):
    fields = {component: component.value for component in (*panel.fields.values(), *panel.about.values())}
    return {**fields, panel.name: "cat", panel.filled: {}, panel.is_open: False}


def planned(app, panel, values, about=None, **changed):
    """Return what the page holds after the plan was shown with some fields changed."""
    values = values | {panel.fields[name]: value for name, value in changed.items()}
    values |= {panel.about[name]: value for name, value in (about or {}).items()}
    updates = evaluation_panel._plan(app, panel, True, values)
    return values | {key: value for key, value in updates.items() if not isinstance(value, dict) or key is panel.filled}


def test_what_the_file_and_its_project_tell_is_filled_in(app, project, adapter, panel):
    shown = file_evaluation_panel.show(app, panel, "cat")
    about = panel.about
    assert shown[panel.fold]["visible"] and (shown[about["trigger"]], shown[about["class_name"]]) == ("sks", "cat")
    assert shown[about["project"]]["choices"] == [("none", ""), ("mycat", "mycat")]
    assert shown[about["project"]]["value"] == "mycat" and shown[about["base"]]["value"] is None
    assert shown[panel.result] == "" and not shown[panel.use]["visible"]


def test_the_adapter_of_a_run_and_one_that_is_broken_or_gone_offer_none(app, configure, panel):
    run = Run.create(app.data_dir / "runs", "house", configure())
    write_tiny_adapter(run.adapter)
    app.library.folder.mkdir(parents=True)
    (app.library.folder / "broken.safetensors").write_bytes(b"x")
    for name in ("house", "broken", "gone", ""):
        shown = file_evaluation_panel.show(app, panel, name)
        assert shown[panel.fold]["visible"] is False and shown[panel.result] == ""
    updates = evaluation_panel._start(app, panel, {panel.name: "gone", **dict.fromkeys(panel.about.values(), "")})
    assert "This adapter is gone" in updates[panel.status]


def test_the_plan_follows_what_is_said_about_the_file(app, project, adapter, panel, values):
    shown = planned(app, panel, values)
    assert "Choose the base model that this adapter was trained on." in shown[panel.plan]
    shown = planned(app, panel, shown, {"base": "pocket", "trigger": "sks", "class_name": "cat"})
    assert "1 adapter at 3 scales, beside the base" in shown[panel.plan]
    prompts = shown[panel.fields["prompts"]].splitlines()
    assert prompts and all("sks cat" in text for text in prompts)
    shown = planned(app, panel, shown, {"trigger": "zwx"})
    assert "zwx cat" in shown[panel.fields["prompts"]] and "sks" not in shown[panel.fields["prompts"]]
    shown = planned(app, panel, shown, prompts="zwx cat, a boat")
    shown = planned(app, panel, shown, {"trigger": "sks", "project": "mycat"})
    assert shown[panel.fields["prompts"]] == "zwx cat, a boat"  # Edited ones stay.


@pytest.mark.parametrize("project", ["../mycat", "gone", "/etc"])
def test_only_a_project_is_taken_for_the_training_pictures(app, adapter, panel, values, project):
    (app.data_dir / "mycat").mkdir()
    shown = planned(app, panel, values, {"base": "pocket", "project": project})
    assert f"There is no project {project} any more" in shown[panel.plan]
    assert "There is no project" in evaluation_panel._start(app, panel, shown)[panel.status]


def test_a_file_is_evaluated_and_its_result_is_found_again(app, project, adapter, panel, values, clip, tiny_base):
    about = {"base": str(tiny_base), "trigger": "sks", "class_name": "cat", "project": "mycat"}
    shown = planned(app, panel, values, about)
    small = {"scales": "0.8", "seeds": 1, "steps": 1, "encoder": clip, "clip": clip}
    shown = planned(app, panel, shown, prompts="sks cat, a boat", unrelated_prompts="a tree", **small)
    assert evaluation_panel._start(app, panel, shown)[panel.cancel]["visible"], shown[panel.plan]
    assert "being evaluated already" in evaluation_panel._start(app, panel, shown)[panel.status]
    found = app.evaluations.of(file_evaluation_panel.find_file(app, "cat", {}))
    for _ in range(1200):
        if found.state != "running":
            break
        time.sleep(0.1)
    assert (found.state, found.message) == ("finished", "")
    again = file_evaluation_panel.show(app, panel, "cat")
    assert "sks cat, a boat" in again[panel.result] and "contact-sheet" in again[panel.result]
    assert not again[panel.use]["visible"] and not again[panel.candidate]["visible"]
    copy = adapter.with_suffix(".other")
    shutil.copy2(adapter, copy)
    copy.replace(adapter)  # Another file of this name and age.
    app.refresh()
    shown = evaluation_panel._poll(app, panel, "cat")
    assert "older than the adapter: cat changed since" in shown[panel.result] and shown[panel.status] == ""
    assert app.evaluations.of(file_evaluation_panel.find_file(app, "cat", {})) is None
