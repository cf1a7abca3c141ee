"""Standard streams as scripts and services leave them: closed, or on a disk that is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdlora.storage.run_folder import Run

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full, and a shell")


def shell(command, *arguments):
    """Run ``sdlora`` with the redirections of a shell; returns the exit code and standard error."""
    words = [sys.executable, "-m", "sdlora.cli.main", *map(str, arguments)]
    ended = subprocess.run(
        ["sh", "-c", f'"$@" {command}', "sh", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, encoding="utf-8", check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&- <&-", "2> /dev/full"])
def test_a_training_does_not_need_them(configure, tmp_path, redirection):
    configure().save(tmp_path / "mine.toml")
    code, _ = shell(redirection, "train", tmp_path / "mine.toml", "--data-dir", tmp_path / "data")
    run = Run(tmp_path / "data" / "runs" / "mine")
    assert (code, run.state, run.adapter.is_file()) == (0, "finished", True), run.log.read_text()


@pytest.mark.parametrize("command", ["presets", "runs"])
def test_output_that_cannot_be_written_is_one_sentence(tmp_path, configure, command):
    Run.create(tmp_path / "runs", "mine", configure())
    code, errors = shell("> /dev/full", command, "--data-dir", tmp_path)
    assert (code, errors) == (5, "error: standard output: cannot be written (No space left on device)\n")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(tmp_path):
    code, errors = shell("| true", "presets", "--data-dir", tmp_path)
    assert (code, errors) == (0, "")


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-"])
def test_an_error_that_cannot_be_printed_keeps_its_code(tmp_path, redirection):
    assert shell(redirection, "train", "no-such-preset", "--data-dir", tmp_path)[0] == 2
