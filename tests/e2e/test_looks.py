"""The page on small screens, in the dark, by keyboard, and for screen readers."""

import pytest

from tests.support.browser import wait_until

TABS = ("Pictures", "Train", "Create", "Library")
UNNAMED = """() => [...document.querySelectorAll('button, input, textarea, select, [role=button], [role=slider]')]
  .filter((field) => field.offsetParent && field.type !== 'file' && field.type !== 'hidden')
  .filter((field) => !(field.getAttribute('aria-label') || field.getAttribute('aria-labelledby') || field.title
    || field.innerText?.trim() || field.labels?.length || field.placeholder || field.querySelector('img[alt]')))
  .map((field) => field.outerHTML.slice(0, 160))"""


@pytest.mark.parametrize("query", ["/?__theme=light", "/?__theme=dark"])
def test_a_small_screen_shows_all_of_it(server, visit, query):
    visitor = visit(server.address, viewport={"width": 390, "height": 844})
    visitor.open(query)
    for name in TABS:
        if not visitor.page.get_by_role("tab", name=name).first.is_visible():
            visitor.page.locator(".overflow-menu button").first.click()
            visitor.page.locator(".overflow-dropdown button", has_text=name).first.click()
        else:
            visitor.tab(name)
        wait_until(lambda: visitor.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_the_dark_is_dark(server, visit):
    visitor = visit(server.address)
    shades = {}
    for theme in ("light", "dark"):
        visitor.open(f"/?__theme={theme}")
        colour = visitor.page.evaluate("getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
        shades[theme] = sum(int(part) for part in colour.strip("rgba()").split(",")[:3])
    assert shades["dark"] < 200
    assert shades["light"] > 600


def test_everything_that_is_pressed_or_filled_in_has_a_name(server, visit):
    visitor = visit(server.address)
    for name in TABS:
        visitor.tab(name)
        visitor.page.wait_for_timeout(500)
        assert visitor.page.evaluate(UNNAMED) == [], name


def test_the_keyboard_is_enough_to_draw(server, visit):
    visitor = visit(server.address)
    keys = visitor.page.keyboard
    visitor.page.get_by_role("tab", name="Pictures").first.focus()
    keys.press("ArrowRight")
    focused = "document.activeElement?.innerText || ''"
    if "Train" not in visitor.page.evaluate(focused):  # Tabs that are plain buttons are walked with Tab.
        keys.press("Tab")
    for _ in range(3):
        if "Create" in visitor.page.evaluate(focused):
            break
        keys.press("Tab")
    keys.press("Enter")
    prompt = visitor.page.locator("#prompt textarea")
    prompt.wait_for()
    for _ in range(12):
        if visitor.page.evaluate("document.activeElement?.closest('#prompt') !== null"):
            break
        keys.press("Tab")
    keys.type("a red house on grass")
    assert prompt.input_value() == "a red house on grass"
    keys.press("Control+Enter")
    visitor.see("1 picture drawn.", "#create-status")
