"""Captions as the model reads them, how often words occur, and the class pictures of a run, in a browser."""

import pytest

from tests.support.browser import PICTURES
from tests.support.page_server import PageServer


@pytest.fixture(scope="module")
def visitor(tmp_path_factory, visits):
    """A page with the ten sample pictures, whose fourth has a caption of two lines with a choice."""
    server = PageServer(tmp_path_factory.mktemp("what-is-read"))
    visitor = visits(server.address)
    visitor.give("#drop-files", PICTURES)
    visitor.see("10 pictures ready", "#pictures-status")
    visitor.page.get_by_label("Caption of 004.png").fill("ohwx style, a dog in a {red|blue} hat\nohwx style, a house")
    visitor.page.get_by_label("Caption of 005.png").click()
    yield visitor
    visitor.page.close()
    server.stop()


def test_a_chosen_caption_shows_what_is_read_of_it_and_stays_in_sight(visitor):
    field = visitor.page.get_by_label("Caption of 003.png")
    field.click()
    visitor.see("What the model reads of 003.png", "#caption-reading")
    visitor.see("8 tokens of 75", "#caption-reading")
    field.fill("ohwx style, a red boat")
    visitor.page.get_by_label("Caption of 009.png").click()
    visitor.see("What the model reads of 009.png", "#caption-reading")
    panel = visitor.page.locator("#caption-reading").bounding_box()
    chosen = visitor.page.get_by_label("Caption of 009.png").bounding_box()
    assert panel["y"] + panel["height"] <= 900 and chosen["y"] + chosen["height"] <= panel["y"]


def test_the_checks_and_the_reading_follow_the_settings_of_the_tab_train(visitor):
    visitor.see("choices such as {red|blue}: 1 picture (004.png)", "#pictures-findings")
    visitor.see("dog (nearest: cat), hat (nearest: umbrella)", "#pictures-findings")
    visitor.tab("Train")
    visitor.page.locator("#advanced button").first.click()
    visitor.page.locator("#set-data-wildcards input").first.click()
    visitor.page.get_by_role("option", name="yes").click()
    visitor.tab("Pictures")
    visitor.page.get_by_text("choices such as").wait_for(state="hidden")
    visitor.page.get_by_label("Caption of 004.png").click()
    visitor.see("One of 3 is drawn at each step", "#caption-reading")
    visitor.see("ohwx style, a dog in a blue hat", "#caption-reading")


def test_words_are_counted(visitor):
    visitor.page.get_by_text("How often each word or tag occurs").click()
    row = visitor.page.locator("#caption-tags tr", has_text="umbrella")
    row.get_by_text("1", exact=True).wait_for()


@pytest.mark.slow
def test_class_pictures_are_made_before_a_run_and_shown(visitor):
    visitor.tab("Train")
    visitor.page.locator("#class-pictures > button").click()
    visitor.click("#show-class-pictures-button")
    visitor.see("prior.weight is 0", "#show-class-pictures-status")
    for name, value in {"weight": "1", "count": "2", "steps": "2", "class_prompt": "a house"}.items():
        visitor.fill(f"#set-prior-{name}", value)
    visitor.page.locator("#set-prior-count").press("Tab")
    visitor.click("#make-class-pictures-button")
    visitor.see("2 of 2 class pictures made", "#make-class-pictures-status")
    visitor.see("class-images", "#make-class-pictures-status")
    visitor.page.locator("#class-picture-gallery img").nth(1).wait_for()
