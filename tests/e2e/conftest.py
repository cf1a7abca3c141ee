"""A real browser on a real server: one short training of the bundled model, which all tests share."""

import shutil
import warnings
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from tests.support.browser import FLAGS, PATIENCE, PICTURES, PROGRAMS, STEPS, Server, Visitor, wait_until


@pytest.fixture(scope="package")
def browser():
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = "the page is not tried in a browser: install Chromium (apt-get install chromium)"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def visits(browser):
    """Opens pages; at the end none has had an error, and none has asked another host for anything."""
    contexts, asked, wrong = [], [], []

    def visit(address: str, **options) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        return Visitor(page, address)

    visit.asked, visit.wrong, visit.contexts = asked, wrong, contexts
    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def visit(visits):
    """Opens pages of one test."""
    before, opened = len(visits.asked), len(visits.contexts)
    yield visits
    for context in visits.contexts[opened:]:  # A page that is open keeps asking.
        context.close()
    del visits.contexts[opened:]
    hosts = {urlsplit(url).hostname for url in visits.asked[before:] if url.startswith(("http", "ws"))}
    assert hosts <= {"127.0.0.1"}  # Fonts, scripts, pictures: nothing is asked of any other host.
    assert visits.wrong == []


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("page data"))
    yield server
    server.stop()


@pytest.fixture(scope="package")
def made(server, visits):
    """Ten pictures, one caption said anew, a training, a picture made with it: seen from one page, never reloaded."""
    visitor = visits(server.address)
    saw = {}
    visitor.give("#drop-files", PICTURES[:10])
    visitor.see("5 pictures ready", "#pictures-status")
    visitor.drop("#drop-files", PICTURES[10:])  # The zone stays.
    visitor.see("10 pictures ready", "#pictures-status")
    visitor.page.get_by_label("Caption of 010.png").wait_for()
    visitor.page.get_by_label("Caption of 001.png").fill("ohwx style, a house, said anew")
    visitor.page.get_by_label("Caption of 002.png").click()
    visitor.tab("Train")
    visitor.page.locator("#advanced button").first.click()
    visitor.fill("#set-train-steps", str(STEPS))
    visitor.see(f"{STEPS} steps", "#train-summary")
    visitor.tab("Pictures")
    visitor.click("#train-these")
    visitor.page.locator("#run-status [aria-valuenow]").wait_for()  # The tab Train shows itself, and progress.
    saw["stop"] = visitor.page.locator("#stop-now").is_visible()
    visitor.see(f"Finished: {STEPS} steps", "#run-status")
    saw["previews"] = wait_until(lambda: visitor.page.locator("#run-previews img").count() >= 10 and "all")
    saw["plot"] = wait_until(
        lambda: visitor.page.locator("#run-status ~ * canvas, .vega-embed svg, .vega-embed canvas").count()
    )
    visitor.click("#draw-with-it")
    visitor.see("1 picture drawn.", "#create-status")
    saw["adapter"] = visitor.value("#adapter-1")
    saw["prompt"] = visitor.value("#prompt")
    return SimpleNamespace(visitor=visitor, saw=saw, run=server.data_dir / "runs" / "mystyle")
