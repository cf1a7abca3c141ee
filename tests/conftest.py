"""Fixtures of all tests: no network, a tiny base model, ten lines of settings for a short run."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from sdlora.config import TrainConfig
    from tests.support.fork_server import ForkServer

pytest.register_assert_rewrite("tests.support")

BROWSER = "tests/e2e"
"""Folder of the tests that share a browser."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Tiny models are faster, and two processes do not fight.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HUB_CACHE"] = os.devnull  # What the developer has downloaded is in no list.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests in the browser: nothing else takes one worker as long."""
    items.sort(key=lambda item: _group(item.nodeid) != BROWSER)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run each file in one worker, and all tests that share a browser in one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByFile(config, log)


def _group(nodeid: str) -> str:
    """Return the file of a test, or their folder for the tests that share a browser."""
    return BROWSER if nodeid.startswith(f"{BROWSER}/") else nodeid.partition("::")[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds that each file took, setup and teardown included, slowest first."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("seconds by file")
    for path, duration in seconds.most_common():
        if duration >= 1:
            terminalreporter.write_line(f"{duration:7.1f}  {path}")


@pytest.fixture
def fresh_accelerate() -> None:
    """Accelerate keeps one state a process; runs of other precision in the same process need a new one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a tiny random SD 1.x (``tests.support.tiny_models``). Read only."""
    from tests.support.tiny_models import write_tiny_sd1

    return write_tiny_sd1(tmp_path_factory.mktemp("tiny-sd1"))


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[ForkServer]":
    """Start real processes within milliseconds."""
    if os.name == "nt":
        pytest.skip("Windows has no fork, no kill -9 and no limits")
    from tests.support.file_faults import build_shim
    from tests.support.fork_server import ForkServer

    server = ForkServer(build_shim(tmp_path_factory.mktemp("shim")))
    yield server
    server.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two shapes with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        size = (64, 64) if index % 3 else (96, 48)
        picture = Image.new("RGB", size, (40 * index, 255 - 40 * index, 90))
        ImageDraw.Draw(picture).ellipse((8, 8, 40, 40), fill=(200, 30 * index, 0))
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a red house on grass {index}")
    return folder


@pytest.fixture
def configure(tiny_base: Path, pictures: Path) -> "Callable[..., TrainConfig]":
    """A config for a short run; dotted settings override."""
    from sdlora.config import TrainConfig
    from tests.support.training import STEPS

    def make(**overrides: Any) -> "TrainConfig":
        values = {
            "model.base": str(tiny_base),
            "data.folder": str(pictures),
            "data.trigger": "sks",
            "train.steps": STEPS,
            "train.batch_size": 2,
            "train.learning_rate": 1e-2,
            "train.device": "cpu",
            "checkpoint.every": 2,
            "sample.every": 0,
        }
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return TrainConfig.parse({"adapter": {"rank": 4}}, "test", values | dotted)

    return make
