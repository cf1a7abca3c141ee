"""Captions by themselves in a browser: one press, cards that fill, and Undo."""

import pytest

from sdlora.data.projects import Project
from tests.support.browser import PICTURES, wait_until
from tests.support.page_server import PageServer

BARE = [path for path in PICTURES if path.suffix == ".png"][:4]
"""Pictures without their captions."""


@pytest.fixture
def page(tmp_path):
    server = PageServer(tmp_path / "data", "--device", "cpu")
    yield server
    server.stop()


def captions(visitor):
    return [visitor.page.get_by_label(f"Caption of 00{number}.png").input_value() for number in (1, 2, 3, 4)]


def test_a_press_captions_the_pictures_and_undo_takes_it_back(page, visit):
    visitor = visit(page.address)
    visitor.give("#drop-files", BARE)
    visitor.see("4 pictures ready", "#pictures-status")
    visitor.page.get_by_label("Caption of 004.png").wait_for()
    assert captions(visitor) == [""] * 4
    visitor.page.get_by_label("Caption of 001.png").fill("mine")
    visitor.page.get_by_label("Caption of 002.png").click()
    visitor.page.locator("#caption-settings button").first.click()
    visitor.page.locator("#caption-threshold input[type=number]").fill("0")
    visitor.page.locator("#caption-threshold input[type=number]").press("Tab")
    visitor.click("#caption-button")
    visitor.see("Captioned 3 pictures of 4.", "#caption-status")
    wait_until(lambda: all(captions(visitor)))
    assert captions(visitor)[0] == "mine"
    project = Project(page.data_dir, "mystyle")
    assert captions(visitor) == [project.caption(image) for image in project.images()]
    visitor.page.get_by_label("Caption of 002.png").fill("edited")
    visitor.page.get_by_label("Caption of 003.png").click()
    visitor.page.get_by_role("button", name="Undo: words of a model in 3 captions").click()
    wait_until(lambda: captions(visitor) == ["mine", "edited", "", ""])
    assert not visitor.page.locator("#caption-cancel").is_visible()


@pytest.mark.slow
def test_training_on_pictures_without_captions_writes_them_first(page, visit):
    visitor = visit(page.address)
    visitor.give("#drop-files", BARE)
    visitor.see("4 pictures ready", "#pictures-status")
    visitor.tab("Train")
    visitor.page.locator("#advanced button").first.click()
    visitor.fill("#set-train-steps", "4")
    visitor.tab("Pictures")
    visitor.page.locator("#caption-settings button").first.click()
    visitor.page.locator("#caption-before input").check()
    visitor.click("#train-these")
    visitor.see("No picture had a caption. Captioned", "#train-message")
    project = Project(page.data_dir, "mystyle")
    written = [project.caption(image) for image in project.images()]
    assert any(written)
    visitor.tab("Pictures")
    wait_until(lambda: captions(visitor) == written)
    visitor.tab("Train")
    visitor.see("Finished: 4 steps", "#run-status")
