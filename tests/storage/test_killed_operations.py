"""An operation that is killed at any moment is done or is not, and is done as ever when it is done again."""

import json
import shutil

import pytest

from tests.support.killed_at import CAN_BE_HALF, OPERATIONS, snapshot

KILLED = -9


@pytest.fixture(scope="module")
def template(fork_server, tmp_path_factory):
    """A data folder with one of everything. Read only."""
    folder = tmp_path_factory.mktemp("template") / "data"
    assert do(fork_server, folder, "", "prepare") == 0, (folder.parent / "log").read_text()
    return folder


def do(fork_server, data_dir, operation, number):
    """Do ``operation`` in a process that is killed before its call ``number``; return its exit code."""
    arguments = [str(data_dir), operation, str(number)]
    return fork_server.start("tests.support.killed_at", arguments, data_dir.parent / "log").wait()


def copy_folder(template, tmp_path):
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    return shutil.copytree(template, tmp_path / "data", symlinks=True)


@pytest.mark.parametrize("share", [2, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_killed_at_any_call_is_done_or_not(fork_server, template, tmp_path, operation, share):
    data_dir = copy_folder(template, tmp_path)
    before = snapshot(data_dir)
    calls = do(fork_server, data_dir, operation, 0)
    done = snapshot(data_dir)
    assert calls > 3 and done != before, (tmp_path / "log").read_text()
    data_dir.with_suffix(".done").write_text(json.dumps(done))
    for number in range(calls, 0, -max(1, calls // share)):
        data_dir = copy_folder(template, tmp_path)
        assert do(fork_server, data_dir, operation, number) == KILLED, (tmp_path / "log").read_text()
        assert do(fork_server, data_dir, operation, "settle") == 0, (tmp_path / "log").read_text()
        settled, repeated = json.loads(data_dir.with_suffix(".found").read_text())
        assert settled in (before, done) or operation in CAN_BE_HALF, f"killed before call {number}"
        assert repeated == done, f"killed before call {number}, and done again"
