"""Two servers of the page, one open and one with a password, with secrets in and beside their data folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlora.ui.app_state import AppState
from tests.support.page_server import CANARY, PASSWORD, InternalServer, PageServer, Response


@pytest.fixture
def app(tmp_path: Path) -> Iterator[AppState]:
    """The state of a page on an empty data folder."""
    app = AppState(tmp_path)
    yield app
    app.close()


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folders with files that must not be served, and secrets beside them."""
    house = tmp_path_factory.mktemp("house")
    for place in ("secret.txt", "secret.png", "secret.safetensors", "secret.toml"):
        (house / place).write_text(CANARY)
    for data_dir in (house / "open", house / "locked"):
        for place in ("runs/kept/state/config.toml", "runs/kept/journal.jsonl", "runs/kept/run.log", "locks/cpu",
                      "models/own/model.bin", "projects/theirs/001.txt", "trash/x/item.json",
                      "cache/latents/secret"):  # fmt: skip
            path = data_dir / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(CANARY)
    return house


@pytest.fixture(scope="session")
def listener() -> Iterator[InternalServer]:
    listener = InternalServer()
    yield listener
    listener.close()


@pytest.fixture(scope="session")
def page(house: Path) -> Iterator[PageServer]:
    """A server without a password, for this machine alone."""
    page = PageServer(house / "open", "--device", "cpu")
    yield page
    page.stop()


@pytest.fixture(scope="session")
def locked(house: Path) -> Iterator[PageServer]:
    """A server with ``--listen`` and a password, without a cookie."""
    locked = PageServer(house / "locked", "--device", "cpu", "--listen", "127.0.0.1", SDLORA_PASSWORD=PASSWORD)
    yield locked
    locked.stop()


@pytest.fixture(scope="session")
def entered(locked: PageServer) -> tuple[Response, str]:
    """Answer to the right password, and the cookies in it."""
    answer = locked.login("sdlora", PASSWORD)
    return answer, "; ".join(line.split(";")[0] for line in answer.headers["set-cookie"].split("\n"))
