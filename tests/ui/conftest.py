"""Two pages that really run, one open and one with a password, with secrets in and beside their folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.page_server import CANARY, PASSWORD, InternalServer, PageServer, Response


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file outside of the data folder, and data folders with files that are not served as they lie."""
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
    """As one starts it for oneself: no password, this machine only."""
    page = PageServer(house / "open", 7971)
    yield page
    page.stop()


@pytest.fixture(scope="session")
def locked(house: Path) -> Iterator[PageServer]:
    """With ``--listen`` and a password; no cookie is kept from here."""
    locked = PageServer(house / "locked", 7981, "--listen", "127.0.0.1", SDLORA_PASSWORD=PASSWORD)
    yield locked
    locked.stop()


@pytest.fixture(scope="session")
def entered(locked: PageServer) -> tuple[Response, str]:
    """The answer to the right password, and the cookies that it gave."""
    answer = locked.login("sdlora", PASSWORD)
    return answer, "; ".join(line.split(";")[0] for line in answer.headers["set-cookie"].split("\n"))
