"""Projects that are trained together: all are checked, and the settings of such a run choose them again."""

import pytest
from PIL import Image

from sdlora.data.projects import Project, ProjectInfo
from sdlora.ui import images_tab, train_tab
from sdlora.ui.build_config import configure
from tests.support.page_calls import build_page

STYLE, SUBJECT = ProjectInfo("style", "zwx"), ProjectInfo("subject", "abc", "cat")


@pytest.fixture
def glass(app, tmp_path):
    return filled_project(app, "glass", STYLE, tmp_path / "glass", 200)


@pytest.fixture
def cat(app, tmp_path):
    return filled_project(app, "cat", SUBJECT, tmp_path / "cat", 90)


def filled_project(app, name, info, folder, blue):
    """A project with four pictures, which are drawn in ``folder``."""
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 0, blue)).save(folder / f"{number}.png")
    project = Project(app.data_dir, name)
    project.set_info(info)
    project.add(sorted(folder.iterdir()))
    return project


@pytest.fixture
def reopen(app, monkeypatch):
    """Queue a run, lose pictures, press *Open its settings*; return what is opened, what is beside it, the message."""
    form = build_page(app).train.form
    monkeypatch.setattr(app, "start", lambda run: None)

    def press(opened, *projects, lost=()):
        run = app.train(configure(projects[0], STYLE, "pocket", "Quick", [], {}, projects[1:]), "mine")
        app.refresh()
        for image in lost:
            image.unlink()
        updates = train_tab._open_settings(app, form, run.name, opened)
        return updates.get(form.images.project), updates[form.together], updates[form.message]

    return press


def test_the_projects_that_were_trained_together_are_chosen_again(reopen, glass, cat):
    opened, beside, message = reopen("elsewhere", glass, cat)
    assert {opened, *beside["value"]} == {"glass", "cat"} and opened not in beside["choices"]
    assert beside["visible"] and "Train uses the pictures of " in message and "left out" not in message


def test_a_project_of_the_run_that_is_open_stays_open(reopen, glass, cat):
    opened, beside, _ = reopen("cat", glass, cat)
    assert (opened, beside["value"]) == ("cat", ["glass"])


def test_pictures_that_are_gone_are_told(reopen, glass, cat):
    opened, beside, message = reopen("elsewhere", glass, cat, lost=cat.images())
    assert (opened, beside["value"]) == ("glass", [])
    assert "Train uses the pictures of glass." in message and "What else it learnt is left out" in message


def test_a_run_of_one_project_leaves_the_open_one_and_trains_none_beside_it(reopen, glass):
    opened, beside, message = reopen("elsewhere", glass)
    assert (opened, beside) == (None, [])
    assert "Train uses the project that is open on the tab Pictures." in message


def check(app, *together):
    return images_tab._check(app, "glass", "pocket", {}, together, lambda *done, **words: None)


def test_the_page_checks_all_of_them_by_name_and_links_to_cards_of_the_open_one(app, glass, cat):
    glass.write_caption(glass.images()[0], "zwx, a dragon")
    cat.write_caption(cat.images()[1], "abc, a wombat")
    alone, _ = check(app)
    assert "dragon" in alone and "wombat" not in alone and "glass: " not in alone
    found, tags = check(app, "cat", "glass")
    assert "glass: " in found and "cat: " in found and "An epoch has 2 concepts" in found
    (dragon,), (wombat,) = ([line for line in found.split("<li>") if word in line] for word in ("dragon", "wombat"))
    assert "href='#card-001.png'" in dragon and "href" not in wombat
    assert "dragon" in tags and "wombat" not in tags


def test_a_file_in_two_projects_is_named_with_both(app, glass, cat):
    Image.open(glass.images()[0]).save(cat.folder / "009.png")
    assert "The same file is in glass as 001.png and cat as 009.png." in check(app, "cat")[0]
