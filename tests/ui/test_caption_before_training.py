"""Train, pressed on pictures of which none has a caption: they are captioned first, if the base can do that."""

import pytest

from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import BusyError
from sdlora.ui import caption_panel, page
from tests.support.page_calls import build_page
from tests.support.page_server import ROOT

PICTURES = sorted((ROOT / "sample_data" / "stained-glass").glob("*.png"))[:4]


@pytest.fixture
def pressed(app, monkeypatch):
    """Press *Train on these pictures*; return the updates, the queued configs, and the shares of progress."""
    laid_out, queued, shares = build_page(app), [], []
    project = Project(app.data_dir, "mine")
    project.set_info(ProjectInfo("style", "ohwx style"))
    project.add(PICTURES)

    def queue(config, name):
        queued.append(config)
        return type("Queued", (), {"name": name})

    monkeypatch.setattr(app, "train", queue)

    def press(**changed):
        tab, form = laid_out.images, laid_out.train.form
        values = {component: component.value for component in form.inputs} | {
            tab.project: "mine", tab.kind: "style", tab.trigger: "ohwx style", tab.class_name: "",
            tab.images_version: 3, tab.captions_version: 5, tab.caption_first: True,
        }  # fmt: skip
        for name, value in changed.items():
            values[form.settings.get(name) or getattr(form, name, None) or getattr(tab, name)] = value
        updates = page._train_these(app, laid_out, values, lambda *done, **words: shares.append(words["desc"]))
        return updates, laid_out

    press.project, press.queued, press.shares = project, queued, shares
    return press


def captions(project):
    return [project.caption(image) for image in project.images()]


def test_pictures_without_captions_are_captioned_first_and_that_is_told_and_undone(pressed):
    updates, laid_out = pressed()
    told = updates[laid_out.train.form.message]
    assert "No picture had a caption. Captioned" in told and "where Undo takes them back" in told
    assert any(captions(pressed.project)) and len(pressed.queued) == 1
    assert (updates[laid_out.images.images_version], updates[laid_out.images.captions_version]) == (4, 6)
    assert set(pressed.shares) == {"Writing captions first"}
    updates, _ = pressed()
    assert updates[laid_out.train.form.message] == "" and laid_out.images.images_version not in updates
    pressed.project.undo()
    assert not any(captions(pressed.project))


def test_each_project_of_a_run_is_captioned_unless_it_has_a_caption(app, pressed):
    fresh, written = Project(app.data_dir, "fresh"), Project(app.data_dir, "written")
    for project, trigger in ((fresh, "sks"), (written, "zwx")):
        project.set_info(ProjectInfo("subject", trigger, "house"))
        project.add(PICTURES)
    for project in (pressed.project, written):
        project.write_caption(project.images()[0], "mine")
    updates, laid_out = pressed(together=["fresh", "written"])
    told = updates[laid_out.train.form.message]
    assert "fresh: No picture had a caption." in told and told.count("No picture had a caption") == 1
    assert len(pressed.queued) == 1
    assert all("a house" in text for text in captions(fresh))  # A subject's caption says its class.
    assert captions(written) == ["mine", "", "", ""]


def test_one_caption_of_a_person_is_enough_to_leave_the_others_alone(pressed):
    pressed.project.write_caption(pressed.project.images()[0], "mine")
    updates, laid_out = pressed()
    assert captions(pressed.project) == ["mine", "", "", ""]
    assert updates[laid_out.train.form.message] == "" and len(pressed.queued) == 1


def test_who_wants_no_captions_gets_none(pressed):
    pressed(caption_first=False)
    assert not any(captions(pressed.project)) and len(pressed.queued) == 1


def test_another_base_and_one_prompt_for_all_pictures_need_no_captions(pressed, tiny_base):
    pressed(base=str(tiny_base))
    pressed(**{"data.prompt": "ohwx style"})
    assert not any(captions(pressed.project)) and len(pressed.queued) == 2 and pressed.shares == []


def test_what_is_missing_is_said_before_anything_is_captioned(pressed):
    updates, laid_out = pressed(trigger="")
    assert "Give a trigger word" in updates[laid_out.images.train_message]
    assert not any(captions(pressed.project)) and pressed.queued == []


def test_training_goes_on_where_captions_fail(pressed, monkeypatch):
    job = caption_panel.project_job

    def failing(*arguments, **settings):
        made = job(*arguments, **settings)
        made.request["settings"]["device"] = "no such device"
        return made

    monkeypatch.setattr(caption_panel, "project_job", failing)
    updates, laid_out = pressed()
    assert "No captions were written: device" in updates[laid_out.train.form.message]
    assert len(pressed.queued) == 1


def test_a_run_that_is_refused_after_the_captions_says_both(app, pressed, monkeypatch):
    def refuse(config, name):
        raise BusyError("queued already")

    monkeypatch.setattr(app, "train", refuse)
    updates, laid_out = pressed()
    said = updates[laid_out.images.train_message]
    assert "Captioned" in said and "queued already" in said
    assert updates[laid_out.images.captions_version] == 6 and laid_out.train.form.message not in updates
