"""A browser, servers of the page, and one short training of the bundled model that every file starts from.

The browser ends with this folder's tests: its driver keeps an event loop running, and other tests begin their own.
"""

import shutil
import warnings
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from tests.support.browser import FLAGS, PATIENCE, PICTURES, PROGRAMS, STEPS, Visitor, wait_until
from tests.support.page_server import PageServer


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
    """Open pages that stay open; ``requested`` and ``errors`` list the requests and errors of all pages."""
    contexts, requested, errors = [], [], []

    def visit(address: str, **options) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        return Visitor(page, address)

    visit.requested, visit.errors, visit.contexts = requested, errors, contexts
    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def visit(visits):
    """Open pages of one test; no page may have an error, or send a request to another host."""
    before, opened, errors = len(visits.requested), len(visits.contexts), len(visits.errors)
    yield visits
    for context in visits.contexts[opened:]:  # An open page goes on sending requests.
        context.close()
    del visits.contexts[opened:]
    hosts = {urlsplit(url).hostname for url in visits.requested[before:] if url.startswith(("http", "ws"))}
    assert hosts <= {"127.0.0.1"}  # Neither fonts nor scripts nor images come from another host.
    assert visits.errors[errors:] == []


@pytest.fixture(scope="package")
def trained(tmp_path_factory, visits):
    """Drop ten pictures, edit a caption, train, generate an image: what one page showed without a reload."""
    server = PageServer(tmp_path_factory.mktemp("trained"))
    visitor = visits(server.address)
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
    visitor.fill("#set-sample-steps", "4")
    visitor.see(f"{STEPS} steps", "#train-summary")
    visitor.tab("Pictures")
    visitor.click("#train-these")
    visitor.page.locator("#run-status [aria-valuenow]").wait_for()  # The tab Train opens by itself and shows progress.
    shown = {"stop": visitor.page.locator("#stop-now").is_visible()}
    visitor.see(f"Finished: {STEPS} steps", "#run-status")
    shown["previews"] = wait_until(lambda: visitor.page.locator("#run-previews img").count() >= 10 and "all")
    shown["plot"] = wait_until(
        lambda: visitor.page.locator("#run-status ~ * canvas, .vega-embed svg, .vega-embed canvas").count()
    )
    visitor.click("#draw-with-it")
    visitor.see("1 picture drawn.", "#create-status")
    shown["adapter"] = visitor.value("#adapter-1")
    shown["prompt"] = visitor.value("#prompt")
    visitor.page.close()
    server.stop()
    return SimpleNamespace(data_dir=server.data_dir, run=server.data_dir / "runs" / "mystyle", shown=shown)


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """A server of the page on a copy of the data folder in which ``mystyle`` was trained."""
    server = PageServer(shutil.copytree(trained.data_dir, tmp_path_factory.mktemp("copy") / "page data"))
    yield server
    server.stop()
