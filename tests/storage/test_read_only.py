"""Folders without write permission are reported at once, in a sentence, before anything large is loaded."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from sdlora.errors import FileError
from sdlora.storage.run_folder import Run

SECONDS = 2.0
"""Longest time from the command to its end, imports aside."""


@pytest.fixture
def public(configure, tiny_base, pictures):
    """A folder that everyone may look into and nobody may change, and a new run in it. Its base cannot be loaded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, own = shutil.copytree(tiny_base, folder / "base"), shutil.copytree(pictures, folder / "pictures")
        (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
        config = configure(model__base=str(base), data__folder=str(own))
        config.save(folder / "mine.toml")
        run = Run.create(folder / "data" / "runs", "run", config)
        (folder / "log").touch()
        _everywhere(folder, 0o555, 0o444)
        (folder / "log").chmod(0o666)
        yield folder, run
        _everywhere(folder, 0o755, 0o644)


def _everywhere(root, for_folders, for_files):
    for path in (root, *root.rglob("*")):
        path.chmod(for_folders if path.is_dir() else for_files)


@pytest.mark.skipif(os.name == "nt", reason="Windows asks other things of a folder")
@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("sdlora.cli.main", ["train", "{mine}", "--data-dir", "{data}"], "{data}/runs/mine: cannot be written"),
        ("sdlora.cli.main", ["train", "{mine}", "--data-dir", "{data}/new"], "{data}/new/runs: cannot be written"),
        ("sdlora.cli.main", ["resume", "run", "--data-dir", "{data}"], "{data}/runs/run: cannot be written"),
        ("sdlora.jobs.training_worker", ["{data}/runs/run"], "{data}/runs/run/run.lock: cannot be written"),
        ("sdlora.cli.main", ["plan", "{mine}", "--data-dir", "{data}"], "{data}/cache: cannot be written"),
    ],
    ids=["train", "train in a new folder", "resume", "worker", "plan"],
)
def test_a_run_that_may_write_nothing_ends_before_the_base_is_loaded(fork_server, public, module, arguments, message):
    folder, run = public
    places = {"data": folder / "data", "mine": folder / "mine.toml"}
    before = sorted(folder.rglob("*"))
    begun = time.monotonic()
    process = fork_server.start(
        module, [word.format(**places) for word in arguments], folder / "log", unprivileged=True
    )
    code = process.wait()
    assert code == FileError.exit_code, (folder / "log").read_text()
    assert time.monotonic() - begun < SECONDS
    printed = (folder / "log").read_text()
    assert printed.startswith(f"error: {message.format(**places)} (Permission denied); ")
    assert len(printed.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before
    assert run.events() == []


@pytest.mark.skipif(os.name == "nt", reason="Windows asks other things of a folder")
@pytest.mark.parametrize("command", ["runs", "disk"])
def test_commands_that_only_read_work_in_such_a_folder(fork_server, public, command):
    folder, run = public
    lock = folder / "data" / "runs" / "run" / "run.lock"
    run.folder.chmod(0o755)
    lock.touch(0o600)  # Another user's, who has trained it.
    run.folder.chmod(0o555)
    before = sorted(folder.rglob("*"))
    process = fork_server.start(
        "sdlora.cli.main", [command, "--data-dir", str(folder / "data")], folder / "log", unprivileged=True
    )
    printed = (process.wait(), (folder / "log").read_text())
    assert printed[0] == 0, printed
    assert {"runs": "run  ", "disk": "projects  "}[command] in printed[1]
    assert sorted(folder.rglob("*")) == before
