"""Words of strangers wherever the page shows any, in a real browser: they are text, and no script of theirs runs."""

import json
from shutil import copyfile

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.api.training import prepare_run
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.events import Notice, RunFailed, RunStarted, SampleReady
from sdlora.storage.journal import Journal
from tests.support.browser import PICTURES
from tests.support.page_server import PageServer
from tests.support.tiny_models import write_tiny_adapter

NAME = "<img src=x onerror=window.hit=1>"
"""Can be a file's name, too."""
EVIL = f"\"'>{NAME}<script>window.hit=1</script><svg onload=window.hit=1>&lt;b&gt;"
META = {"modelspec.trigger_phrase": EVIL, "ss_sd_model_name": EVIL, "ss_output_name": EVIL, "modelspec.title": EVIL,
        "ss_tag_frequency": json.dumps({EVIL: {EVIL: 3}}), "modelspec.architecture": EVIL}  # fmt: skip


def fill(data_dir):
    """A data folder in which every word that a person or a file can bring is hostile."""
    project = Project(data_dir, "evil")
    project.add(PICTURES[:6])
    project.set_info(ProjectInfo("subject", EVIL, EVIL))
    for picture in project.images():
        project.write_caption(picture, EVIL)
    copyfile(PICTURES[0], project.folder / f"{NAME}.png")
    settings = {"data.folder": project.folder, "data.trigger": EVIL, "sample.prompts": [EVIL]}
    run = prepare_run(TrainConfig.load("pocket-style", settings), "evil", data_dir)
    (project.folder / f"{NAME}2.png").write_bytes(b"no picture")
    samples = run.folder / "samples"
    samples.mkdir(exist_ok=True)
    copyfile(PICTURES[0], samples / "0-0.png")
    tell = Journal(run.journal)
    overrides = {"device": EVIL, "precision": EVIL, "base": EVIL}
    tell(RunStarted(step=0, steps=9, images=6, modules=1, parameters=1, share=0.1, **overrides))
    tell(SampleReady(step=0, index=0, prompt=EVIL, path="samples/0-0.png"))
    tell(Notice(message=EVIL))
    tell(RunFailed(message=EVIL, exit_code=1))
    run.log.write_text(EVIL)
    write_tiny_adapter(data_dir / "adapters" / f"{NAME}.safetensors", **META)
    (data_dir / "adapters" / f"{NAME}broken.safetensors").write_bytes(b"junk")
    info = PngInfo()
    info.add_text(
        "parameters", f"{EVIL}\nNegative prompt: {EVIL}\nSteps: 1, Sampler: {EVIL}, Model: {EVIL}, Odd: {EVIL}"
    )
    (data_dir / "creations").mkdir()
    Image.new("RGB", (64, 64)).save(data_dir / "creations" / "1-evil.png", pnginfo=info)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("hostile data")
    fill(data_dir)
    server = PageServer(data_dir)
    yield server
    server.stop()


def test_no_script_of_a_stranger_runs_on_any_tab(hostile, visit):
    visitor = visit(hostile.address)
    page = visitor.page
    missed = []
    page.on("response", lambda answer: missed.append(answer.url) if answer.status in (401, 404) else None)
    page.get_by_label("Caption of 001.png").wait_for()
    visitor.see(NAME, "#pictures-findings")
    visitor.fill("#project", NAME)  # Becomes a name that a folder can have.
    visitor.choose("#project", "evil")
    visitor.give("#drop-files", [{"name": f"{NAME}.png", "mimeType": "image/png", "buffer": b"junk"}])
    visitor.see("onerror", "#pictures-remarks")

    visitor.tab("Train")
    visitor.see(NAME, "#run-status")
    visitor.see(NAME, "#run-previews")
    page.locator("#advanced button").first.click()
    visitor.fill("#set-train-steps", NAME)
    visitor.see(NAME, "#train-summary")

    visitor.tab("Create")
    visitor.fill("#prompt", f"<lora:{EVIL.replace('<', '').replace('>', '')}:1> {EVIL}")
    visitor.click("#create-button")
    visitor.see("There is no adapter", "#create-status")
    page.locator("#reading button").first.click()
    page.wait_for_timeout(500)  # What a person sees there is made when it is opened.
    visitor.fill("#read-text", f"{EVIL}\nSteps: 1, Sampler: {EVIL}, Model: {EVIL}, Odd: 1")
    visitor.click("#read-button")
    visitor.see(NAME, "#read-message")
    visitor.give("#read-picture", hostile.data_dir / "creations" / "1-evil.png")
    page.locator("#creations img").first.click()
    page.locator("#parameters textarea").wait_for()
    page.locator("#compare button").first.click()
    visitor.fill("#values-X", EVIL)
    visitor.click("#compare-button")
    page.locator("#compare-status .note").wait_for()

    visitor.tab("Library")
    page.locator("#library-adapters [data-do]").filter(has_text="broken").click()
    visitor.see("cannot be used", "#library-details")
    page.locator("#library-adapters [data-do]").filter(has_not_text="broken").filter(has_text=NAME).click()
    visitor.see("Trigger words", "#library-details")
    page.locator("#library-inspection pre").wait_for()
    (hostile.data_dir / "adapters" / f"{NAME}.safetensors").unlink()
    visitor.click("#library-download")  # What Gradio says of errors by itself is markup to it.
    page.locator(".toast-body").first.wait_for()
    assert page.locator(".toast-body img").count() == 0
    visitor.fill("#library-search", EVIL)
    visitor.see("No adapter is called", "#library-adapters")
    page.get_by_role("tab", name="Import").click()
    visitor.give("#import-files", [{"name": f"{NAME}.safetensors", "mimeType": "a/b", "buffer": b"junk"}])
    visitor.see("is not kept", "#import-report")

    page.wait_for_timeout(1000)
    assert page.evaluate("window.hit") is None
    assert missed == []  # The guard lets all through that the page asks for.
    assert page.locator("img[src=x], svg[onload]").count() == 0


def test_the_login_page_lets_in_and_says_what_is_wrong_and_how_long_to_wait(browser, tmp_path):
    server = PageServer(tmp_path, "--listen", "127.0.0.1", "--password", "right")
    page = browser.new_page()

    def log_in(password):
        page.get_by_label("Password").fill(password)
        with page.expect_response("**/login"):
            page.get_by_role("button", name="Log in").press("Enter")

    try:
        page.goto(server.address)
        page.get_by_label("Name").fill("sdlora")
        log_in("wrong")
        page.get_by_text("Wrong name or password.").wait_for()
        log_in("right")
        page.get_by_label("Trigger word").wait_for()
        page.context.clear_cookies()
        page.goto(server.address)
        page.get_by_label("Name").fill("sdlora")
        for _ in range(6):
            log_in("wrong")
        page.get_by_text("Too many wrong passwords; try again in").wait_for()
    finally:
        page.close()
        server.stop()
