"""A browser, the page in it, and the actions of a person."""

import shutil
import time
from base64 import b64encode
from pathlib import Path

from tests.support.page_server import ROOT

PICTURES = sorted((ROOT / "sample_data" / "stained-glass").iterdir())
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-gpu"]
PATIENCE = 300_000
"""Milliseconds that any wait may take on a busy machine; most take a tenth of it."""
STEPS = 24
DROP = """([zone, files]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files)
    data.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name, {type}));
  zone.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


class Visitor:
    """A page in the browser, and the actions of a person."""

    def __init__(self, page, address: str):
        self.page = page
        self.address = address
        self.open()

    def open(self, query: str = "") -> None:
        self.page.goto(self.address + query)
        self.page.get_by_label("Trigger word").wait_for()
        # A project that is chosen before the page has said which one it opens with is overwritten by that.
        self.page.wait_for_function("() => document.querySelector('#project input')?.value")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).first.click()

    def see(self, text: str, within: str = "body") -> None:
        self.page.locator(within).get_by_text(text).first.wait_for()

    def click(self, selector: str) -> None:
        self.page.locator(selector).click()

    def fill(self, selector: str, text: str) -> None:
        field = self.page.locator(f"{selector} input, {selector} textarea").first
        field.fill(text)
        field.press("Tab")

    def choose(self, selector: str, text: str) -> None:
        """Type into a dropdown and take it."""
        field = self.page.locator(f"{selector} input").first
        field.fill(text)
        field.press("Enter")
        field.press("Tab")

    def value(self, selector: str) -> str:
        return self.page.locator(f"{selector} input, {selector} textarea").first.input_value()

    def give(self, selector: str, files) -> None:
        self.page.locator(f"{selector} input[type=file]").first.set_input_files(files)

    def drop(self, selector: str, files) -> None:
        """Drag files onto a drop zone."""
        types = {".png": "image/png", ".txt": "text/plain", ".zip": "application/zip"}
        content = [[file.name, types[file.suffix], b64encode(file.read_bytes()).decode()] for file in files]
        zone = self.page.locator(f"{selector} button").first.element_handle()
        self.page.evaluate(DROP, [zone, content])

    def project(self, name: str) -> None:
        self.tab("Pictures")
        self.choose("#project", name)
        self.see("No pictures yet", "#pictures-status")

    def draw_quickly(self) -> None:
        """Let the tab Create, which is open, generate images in few steps."""
        self.page.locator("#create-advanced button").first.click()
        field = self.page.locator("#create-advanced").get_by_label("Steps").first
        field.fill("4")
        field.press("Tab")

    def create(self, prompt: str, pictures: str = "1 picture drawn.") -> None:
        """Generate images and wait for them."""
        self.fill("#prompt", prompt)
        self.click("#create-button")
        self.page.locator("#cancel-button").wait_for()
        self.see(pictures, "#create-status")

    def download(self, selector: str, folder: Path) -> Path:
        with self.page.expect_download() as download:
            self.click(selector)
        path = folder / download.value.suggested_filename
        shutil.copy(download.value.path(), path)
        return path


def wait_until(condition, seconds: float = PATIENCE / 1000):
    """Wait until ``condition()`` is true; return its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not true after {seconds:.0f} s"
        time.sleep(0.2)
    return found
