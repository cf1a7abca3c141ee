"""Painting a mask on the tab Pictures."""

import pytest

from sdlora.data.images import open_mask
from tests.support.browser import PICTURES, wait_until
from tests.support.page_server import PageServer
from tests.support.tiny_segmenters import write_tiny_clipseg

SMALL = {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    server = PageServer(tmp_path_factory.mktemp("masks"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def painted(page):
    """The mask of the first picture."""
    return page.data_dir / "projects" / "mystyle" / "001.mask.png"


def stroke(visitor, begin: float, end: float) -> None:
    """Draw over the canvas, across its middle; positions are shares of its width."""
    canvas = visitor.page.locator("#mask-painter canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    mouse, y = visitor.page.mouse, box["y"] + box["height"] / 2
    mouse.move(box["x"] + begin * box["width"], y)
    mouse.down()
    mouse.move(box["x"] + end * box["width"], y, steps=5)
    mouse.up()


def is_ready(visitor) -> bool:
    """Whether the picture is on the canvas."""
    return visitor.page.evaluate(
        "() => document.querySelector('#mask-painter canvas')?.getContext('2d').getImageData(5, 5, 1, 1).data[3] > 0"
    )


def test_a_stroke_is_saved_shown_undone_and_refused_when_black(page, painted, visit):
    visitor = visit(page.address)
    visitor.give("#drop-files", PICTURES[:6])
    visitor.see("3 pictures ready", "#pictures-status")
    third, first = (visitor.page.locator(f"[id^='card-{number}']").first for number in ("003", "001"))
    third.get_by_role("button", name="Mask").click()
    wait_until(lambda: is_ready(visitor))
    stroke(visitor, 0.1, 0.9)
    first.get_by_role("button", name="Mask").click()  # What was painted on the third is given up.
    visitor.see("Mask of 001.png", "#mask-panel")
    visitor.page.locator("#mask-painter [data-part=undo]:disabled").wait_for()
    visitor.page.locator("#mask-painter [data-part=save]").click()
    visitor.see("the mask is black throughout", "#mask-message")
    stroke(visitor, 0.1, 0.5)
    stroke(visitor, 0.7, 0.9)
    visitor.page.locator("#mask-painter [data-part=undo]").click()  # The second stroke.
    visitor.page.locator("#mask-painter [data-part=save]").focus()
    visitor.page.keyboard.press("Enter")
    visitor.see("The mask of 001.png is saved", "#pictures-remarks")
    mask = open_mask(painted)
    middle = mask.height // 2
    assert [mask.getpixel((round(mask.width * share), middle)) for share in (0.3, 0.8)] == [255, 0]
    assert mask.getpixel((mask.width // 3, 2)) == 0
    wait_until(lambda: first.get_by_role("button", name="Edit mask").count())
    visitor.click("#undo-pictures")
    visitor.see("Undone: mask of 001.png", "#pictures-remarks")
    assert not painted.exists()


def test_on_a_phone_a_mask_is_opened_again_inverted_and_removed(page, painted, visit):
    visitor = visit(page.address, viewport=SMALL, has_touch=True, color_scheme="dark")
    visitor.see("3 pictures ready", "#pictures-status")
    first = visitor.page.locator("[id^='card-001']").first
    first.get_by_role("button", name="Mask").click()
    wait_until(lambda: is_ready(visitor))
    assert visitor.page.evaluate("() => document.documentElement.scrollWidth") <= SMALL["width"]
    stroke(visitor, 0.1, 0.5)
    visitor.page.locator("#mask-painter [data-part=save]").click()
    first.get_by_role("button", name="Edit mask").click()
    wait_until(lambda: is_ready(visitor))
    visitor.page.locator("#mask-painter [data-part=invert]").click()
    visitor.page.locator("#mask-painter [data-part=save]").click()
    wait_until(lambda: open_mask(painted).getpixel((2, 2)) == 255)
    mask = open_mask(painted)
    assert mask.getpixel((round(mask.width * 0.3), mask.height // 2)) == 0
    first.get_by_role("button", name="Edit mask").click()
    wait_until(lambda: is_ready(visitor))
    visitor.page.locator("#mask-painter [data-part=remove]").click()
    visitor.see("001.png has no mask", "#pictures-remarks")
    assert not painted.exists()


def test_a_model_masks_all_pictures_and_undo_takes_it_back(page, painted, visit, tmp_path):
    model = write_tiny_clipseg(tmp_path / "clipseg")
    visitor = visit(page.address)
    visitor.see("3 pictures ready", "#pictures-status")
    visitor.click("#auto-mask-settings > button")
    visitor.choose("#auto-mask-model", str(model))
    visitor.click("#auto-mask-button")
    visitor.see("say what a CLIPSeg is to look for", "#auto-mask-status")
    visitor.fill("#auto-mask-words", "a house")
    visitor.page.locator("#auto-mask-threshold input[type=number]").fill("0")  # A random model is sure of nothing.
    visitor.page.get_by_label("Weight by the model's certainty").check()
    visitor.click("#auto-mask-button")
    visitor.see("Masked 3 pictures of 3.", "#auto-mask-status")
    wait_until(lambda: visitor.page.get_by_role("button", name="Edit mask").count() == 3)
    assert painted.exists()
    visitor.click("#undo-pictures")
    visitor.see("Undone: masks of 3 pictures", "#pictures-remarks")
    assert not painted.exists()
