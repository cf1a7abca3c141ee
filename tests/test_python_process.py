"""Python processes of our own find this package, wherever it lies."""

import os
import subprocess
import sys
from pathlib import Path

import sdlora
from sdlora import python_process


def test_a_package_that_is_not_installed_is_found_by_its_own_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = python_process.environment()
    root, *others = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(root), others) == (Path(sdlora.__file__).resolve().parents[1], ["/elsewhere"])
    program = "import sdlora; print(sdlora.__file__)"
    command = [sys.executable, "-S", "-c", program]  # Without site-packages, where an editable install is named.
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).resolve() == Path(sdlora.__file__).resolve()
