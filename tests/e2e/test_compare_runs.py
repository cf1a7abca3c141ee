"""Runs side by side in the Library, in a browser."""

import shutil

import pytest

SIZES = [(1280, "light"), pytest.param(390, "dark", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("width", "theme"), SIZES)
def test_runs_are_compared_and_the_report_opens_without_the_page(server, visit, tmp_path, width, theme):
    twin = server.data_dir / "runs" / "twin"
    if not twin.exists():
        shutil.copytree(server.data_dir / "runs" / "mystyle", twin)
        config = twin / "config.toml"
        config.write_text(config.read_text().replace("rank = 16", "rank = 8").replace("seed = 0", "seed = 7"))
    visitor = visit(server.address, viewport={"width": width, "height": 900})
    page = visitor.page
    visitor.open(f"/?__theme={theme}")
    visitor.tab("Library")
    page.locator("#library-tabs").get_by_role("tab", name="Runs").first.click()
    page.locator("#compare-runs button").first.click()
    field = page.locator("#compare-runs-names input").first
    for name in ("mystyle", "twin"):
        field.fill(name)
        page.locator("#compare-runs-names [role=option]", has_text=name).first.click()
    field.press("Tab")
    visitor.click("#compare-runs-button")
    page.locator("#compare-runs-report svg[role=img]").first.wait_for()
    assert page.locator("#compare-runs-report th", has_text="train.seed").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    report = visitor.download("#compare-runs-file", tmp_path)
    page.goto(report.as_uri())
    page.locator(".run-report svg[role=img]").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.locator("img").count() >= 2


def test_lists_that_are_open_take_up_what_is_copied_into_the_folder(server, visit):
    visitor = visit(server.address)
    page, run = visitor.page, server.data_dir / "runs" / "mystyle"
    visitor.tab("Library")
    tabs = page.locator("#library-tabs")
    tabs.get_by_role("tab", name="Tools").click()
    page.locator("#combine button").first.click()
    tabs.get_by_role("tab", name="Runs").click()
    page.locator("#compare-runs button").first.click()
    page.locator("#compare-runs-names input").first.wait_for()
    shutil.copytree(run, run.with_name("latecomer"))
    page.locator("#library-runs").get_by_text("latecomer").first.wait_for()
    page.locator("#compare-runs-names input").first.fill("latecomer")
    page.locator("#compare-runs-names [role=option]", has_text="latecomer").first.wait_for()
    tabs.get_by_role("tab", name="Tools").click()
    page.locator("#combine-1 input").first.fill("latecomer")
    page.locator("#combine-1 [role=option]", has_text="latecomer").first.wait_for()
