"""The main job in a real browser, on a tiny base: pictures in, training watched, pictures made, files downloaded."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from sdlora.config import TrainConfig
from sdlora.formats import read_adapter

ROOT = Path(__file__).parent.parent.parent
PICTURES = sorted((ROOT / "sample_data" / "stained-glass").iterdir())
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-gpu"]
PATIENCE = 90_000
"""Milliseconds, on a busy machine; most takes a tenth of it."""
STEPS = 8


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        reason = "the page is not tried in a browser: install Chromium (apt-get install chromium)"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where ``python app.py`` serves the page."""
    data_dir = tmp_path_factory.mktemp("page data")
    command = [sys.executable, "app.py", "--no-browser", "--port", "7960", "--data-dir", str(data_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    line = server.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line
    yield found.group()
    server.terminate()
    assert server.wait(30) == 0


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(address)
    page.get_by_label("Trigger word").wait_for()
    yield page
    context.close()
    assert page.wrong == []
    hosts = {urlsplit(url).hostname for url in page.asked if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}  # Fonts, scripts, pictures: nothing is asked of any other host.


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def fill(page, selector, text):
    field = page.locator(f"{selector} input, {selector} textarea").first
    field.fill(text)
    field.press("Enter")
    field.press("Tab")


def read(download):
    return read_adapter(Path(shutil.copy(download.path(), f"{download.path()}.safetensors")))


def test_another_name_for_this_machine_is_refused(address):
    request = Request(address, headers={"Host": "rebound.example"})
    with pytest.raises(HTTPError) as caught:
        urlopen(request)
    assert caught.value.code == 400


def test_from_ten_pictures_to_a_file(page, tiny_base):
    page.locator("input[type=file]").first.set_input_files(PICTURES)
    page.get_by_text("10 pictures ready.").wait_for()
    caption = page.get_by_label("Caption of 001.png")
    caption.fill("a house, said anew")
    tab(page, "Train")
    page.get_by_text(f"{TrainConfig.load('pocket-style').train.steps} steps").wait_for()

    fill(page, "#train-base", "nothing-here")
    page.locator("#train-button").click()
    page.get_by_text("there is no 'nothing-here'").first.wait_for()
    fill(page, "#train-base", str(tiny_base))
    page.get_by_role("button", name="Advanced").first.click()
    fill(page, "#set-train-steps", str(STEPS))
    page.get_by_text(f"{STEPS} steps").wait_for()
    page.locator("#train-button").click()
    page.locator("#run-status").get_by_text("mystyle").first.wait_for()
    page.reload()  # Nothing of it is lost: the page finds the run again, and the caption.
    page.get_by_label("Caption of 001.png").wait_for()
    assert page.get_by_label("Caption of 001.png").input_value() == "a house, said anew"
    tab(page, "Train")
    page.get_by_text(f"Finished: {STEPS} steps").wait_for()
    page.locator("#run-previews img").nth(3).wait_for()

    for which, name in (("kohya", "mystyle.safetensors"), ("diffusers", "mystyle-diffusers.safetensors")):
        with page.expect_download() as download:
            page.locator(f"#download-{which}").click()
        assert download.value.suggested_filename == name
        assert read(download.value).modules

    tab(page, "Create")  # Without a reload, the new adapter is there, with the base it was trained on.
    assert page.locator("#adapter-1 input").first.input_value() == "mystyle"
    page.get_by_label("Prompt", exact=True).fill("ohwx style, a red car on sand")
    page.locator("#create-button").click()
    page.get_by_text("1 picture drawn.").wait_for()
    page.locator("#creations img").first.click()
    page.wait_for_function("document.querySelector('#parameters textarea')?.value.includes('<lora:mystyle:1>')")
