"""An adapter file that has no run: opened in the Library, compared at one scale, and found again on a phone."""

import json
import shutil

import pytest

from sdlora.data.projects import Project, ProjectInfo
from sdlora.formats import write_adapter
from tests.support.adapters import random_lora
from tests.support.browser import PICTURES, wait_until
from tests.support.page_server import PageServer

SMALL = {"width": 390, "height": 800}


@pytest.fixture
def imported(tmp_path, tiny_base):
    """A server of the page with a tiny base model, a project, and an adapter that was imported."""
    shutil.copytree(tiny_base, tmp_path / "models" / "tiny")
    project = Project(tmp_path, "glass")
    project.folder.mkdir(parents=True)
    project.set_info(ProjectInfo("style", "ohwx style"))
    for picture in PICTURES[:8]:
        shutil.copyfile(picture, project.folder / picture.name)
    header = {"modelspec.trigger_phrase": "ohwx style", "ss_sd_model_name": "tiny"}
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    folders = json.dumps({"glass": {"n_repeats": 1, "img_count": 4}})
    write_adapter(random_lora(**header, ss_dataset_dirs=folders), adapters / "given.safetensors", "kohya", "fp32")
    server = PageServer(tmp_path, "--device", "cpu")
    yield server
    server.stop()


@pytest.mark.slow
def test_the_details_of_an_imported_adapter_offer_an_evaluation(imported, visit):
    visitor = visit(imported.address)
    visitor.tab("Library")
    visitor.page.locator("#library-adapters").get_by_text("given").first.click()
    visitor.click("#file-evaluation > button")
    visitor.see("1 adapter at 3 scales, beside the base", "#file-evaluation-plan")
    assert visitor.value("#file-evaluation-project") == "glass"
    assert visitor.value("#file-evaluation-trigger") == "ohwx style"
    assert visitor.value("#file-evaluation-base") == "tiny"
    visitor.click("#file-evaluation-settings > button")
    wait_until(lambda: "ohwx style" in visitor.value("#file-evaluation-prompts"))
    visitor.click("#file-evaluation-encoders > button")
    for field, text in {"scales": "0.9", "seeds": "1", "steps": "1", "encoder": "pocket", "clip": "pocket"}.items():
        visitor.fill(f"#file-evaluation-{field}", text)
    visitor.see("1 adapter at 1 scale", "#file-evaluation-plan")
    visitor.see("Judged by the bundled CLIP", "#file-evaluation-plan")
    visitor.click("#file-evaluation-button")
    visitor.page.locator("#file-evaluation-cancel").wait_for()
    visitor.page.locator("#file-evaluation-result h3").wait_for()
    visitor.page.locator("#file-evaluation-result .contact-sheet img").wait_for()
    assert not visitor.page.locator("#file-evaluation-use").is_visible()
    phone = visit(imported.address, viewport=SMALL, has_touch=True, color_scheme="dark")
    phone.tab("Library")
    phone.page.locator("#library-adapters").get_by_text("given").first.click()
    phone.page.locator("#file-evaluation-result h3").wait_for()
    phone.click("#file-evaluation > button")
    phone.see("beside the base", "#file-evaluation-plan")
    assert phone.page.evaluate("() => document.documentElement.scrollWidth") <= SMALL["width"]
