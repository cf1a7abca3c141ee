"""The doors through which strangers' files come: the command line, and the page. The third is Python itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdlora.cli.main import main
from sdlora.ui.app_state import AppState
from tests.support.hostile_files import Refused, contents


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Refused]:
    """Runs a command that must fail: with one sentence, no traceback, and nothing written anywhere."""
    monkeypatch.setenv("SDLORA_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: object) -> Refused:
        before = contents(tmp_path)
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
        assert "Traceback" not in output.out + output.err
        assert contents(tmp_path) == before
        return Refused(code, output.err[output.err.index("error: ") :].removeprefix("error: "))

    return run


@pytest.fixture
def app(tmp_path: Path) -> Iterator[AppState]:
    app = AppState(tmp_path / "data")
    yield app
    app.close()
