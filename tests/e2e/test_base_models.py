"""Getting a base model on the page, from a hub on this machine."""

import pytest

from sdlora.families.known_bases import KNOWN_BASES
from tests.support.browser import wait_until
from tests.support.hub_server import HubServer
from tests.support.page_server import PageServer

SD1 = KNOWN_BASES[0]


@pytest.fixture
def hub(tiny_base):
    """A hub that has a tiny model under the name of Stable Diffusion 1.5."""
    server = HubServer(SD1.id, tiny_base)
    yield server
    server.released.set()
    server.close()


@pytest.fixture
def page(hub, tmp_path):
    server = PageServer(tmp_path / "data", **hub.environment(tmp_path / "hub"))
    yield server
    server.stop()


def test_a_base_model_is_downloaded_with_a_click_cancelled_and_used(page, hub, visit, tmp_path):
    visitor = visit(page.address)
    visitor.tab("Train")
    visitor.page.locator("#get-base button").first.click()
    for base in KNOWN_BASES:
        visitor.see(base.id, "#get-base")
        visitor.see(f"{base.licence} licence", f"#base-{base.family}")
    visitor.see(str(page.data_dir / "models"), "#get-base")
    hub.released.clear()
    visitor.click("#download-sd1-button")
    visitor.page.locator("#download-sd1-status [role=progressbar]").wait_for()
    visitor.click("#download-sd1-cancel")
    visitor.see("what has arrived is kept", "#download-sd1-status")
    assert visitor.page.locator("#use-sd1").count() == 0
    hub.released.set()
    visitor.click("#download-sd1-button")
    visitor.see(f"{SD1.id} is downloaded", "#download-sd1-status")
    visitor.click("#use-sd1")
    wait_until(lambda: visitor.value("#train-base") == SD1.id)
    visitor.open()
    visitor.tab("Train")
    visitor.page.locator("#get-base button").first.click()
    visitor.see(f"{SD1.title} is downloaded", "#base-sd1")
    visitor.fill("#download-id", "nobody/nothing")
    visitor.click("#download-other-button")
    visitor.see("nobody/nothing: the hub has no such model", "#download-other-status")
