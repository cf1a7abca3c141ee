"""Nothing is lost, doubled or given to another when many processes change one data folder at the same moment."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.folder_siege import find_tokens


def besiege(data_dir, processes, rounds):
    """Run the siege; return the tokens of all that was kept, and what its processes printed of things gone."""
    visitors = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.folder_siege", str(data_dir), str(seed), str(rounds)],
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
    return [token for kept, _ in printed for token in json.loads(kept)]


@pytest.mark.parametrize(("processes", "rounds"), [(3, 12), pytest.param(8, 200, marks=pytest.mark.slow)])
def test_what_was_kept_is_there_once_with_its_own_caption(tmp_path, processes, rounds):
    kept = Counter(besiege(tmp_path / "data", processes, rounds))
    found, wrong = find_tokens(tmp_path / "data")
    assert wrong == []
    assert {token: (kept[token], found[token]) for token in kept | found if kept[token] != found[token]} == {}
    assert max(kept.values()) == 1 and len(kept) > processes * rounds
