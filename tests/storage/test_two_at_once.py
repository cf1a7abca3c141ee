"""Nothing is lost, doubled or given to another when many processes change one data folder at the same moment."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from sdlora.errors import FileError
from sdlora.formats import read_adapter, storage
from tests.support.folder_siege import THREADS, find_tokens
from tests.support.owner_siege import Thing, find_losses
from tests.support.tiny_models import write_tiny_adapter


def besiege(data_dir, processes, rounds, module="folder_siege"):
    """Run a siege; return the records of all its threads."""
    visitors = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.support.{module}", str(data_dir), str(seed), str(rounds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(processes)
    ]  # fmt: skip
    for visitor in visitors:
        assert visitor.stdout.readline() == "ready\n", visitor.communicate()
    for visitor in visitors:
        visitor.stdin.write("go\n")
        visitor.stdin.flush()
    printed = [visitor.communicate() for visitor in visitors]
    for visitor, (_, errors) in zip(visitors, printed, strict=True):
        assert visitor.returncode == 0, errors[-3000:]
    return [record for records, _ in printed for record in json.loads(records)]


@pytest.mark.parametrize(("processes", "rounds"), [(3, 12), pytest.param(8, 200, marks=pytest.mark.slow)])
def test_what_was_kept_is_there_once_with_its_own_caption(tmp_path, processes, rounds):
    kept = Counter(besiege(tmp_path / "data", processes, rounds))
    found, wrong = find_tokens(tmp_path / "data")
    assert wrong == []
    assert {token: (kept[token], found[token]) for token in kept | found if kept[token] != found[token]} == {}
    assert max(kept.values()) == 1 and len(kept) > processes * rounds


@pytest.mark.parametrize(("processes", "rounds"), [(2, 12), pytest.param(8, 200, marks=pytest.mark.slow)])
def test_what_is_deleted_restored_and_freed_is_what_its_owner_was_told(tmp_path, processes, rounds):
    records = besiege(tmp_path / "data", processes, rounds, "owner_siege")
    things = [Thing(**record) for record in records]
    assert find_losses(tmp_path / "data", things) == []
    assert len(things) == processes * rounds * THREADS
    assert {thing.alive for thing in things} == {True, False}


def test_an_output_that_appears_while_it_is_made_is_not_replaced(tmp_path, monkeypatch):
    adapter = read_adapter(write_tiny_adapter(tmp_path / "one.safetensors"))
    output, check = tmp_path / "out.safetensors", storage.check_round_trip

    def meanwhile(*arguments):
        output.write_bytes(b"another's")
        return check(*arguments)

    monkeypatch.setattr(storage, "check_round_trip", meanwhile)
    with pytest.raises(FileError, match=r"out\.safetensors: cannot be written \(File exists\)"):
        storage.export_adapter(adapter, output)
    assert output.read_bytes() == b"another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "out.safetensors"]
