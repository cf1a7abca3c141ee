"""A browser, the page in it, and the actions of a person."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PICTURES = sorted((ROOT / "sample_data" / "stained-glass").iterdir())
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-gpu"]
PORT = 7960
PATIENCE = 180_000
"""Milliseconds, on a busy machine; most takes a tenth of it."""
STEPS = 24
DROP = """([zone, files]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files)
    data.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name, {type}));
  zone.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


class Server:
    """``python app.py`` on a data folder and a port of its own; it can be killed and started again."""

    def __init__(self, data_dir: Path, *flags: str):
        self.data_dir = data_dir
        self.flags = flags
        self.start()

    def start(self) -> None:
        command = [sys.executable, "app.py", "--no-browser", "--port", str(PORT), "--data-dir", str(self.data_dir)]
        self.process = subprocess.Popen([*command, *self.flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        self.address = found.group()

    def kill(self) -> None:
        """As a crash would end it."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0


class Visitor:
    """A page in the browser, and what a person does with it."""

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

    def create(self, prompt: str, pictures: str = "1 picture drawn.") -> None:
        """Ask for pictures and wait for them."""
        self.fill("#prompt", prompt)
        self.click("#create-button")
        self.page.locator("#cancel-button").wait_for()
        self.see(pictures, "#create-status")

    def download(self, selector: str, folder: Path) -> Path:
        with self.page.expect_download() as told:
            self.click(selector)
        path = folder / told.value.suggested_filename
        shutil.copy(told.value.path(), path)
        return path


def wait_until(condition, seconds: float = PATIENCE / 1000):
    """What ``condition()`` gives, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)
    return found
