"""Changed files for every reader: a fixed share of what ``python -m tests.support.fuzz_readers`` does at length."""

import os

import pytest

from tests.support.fuzz_readers import READERS, run_case

USUAL = 16
CASES = {
    "base-folder": 6, "base-file": 6, "base-loaded": 4, "clip": 4, "adapter": 50, "image": 50, "zip": 35, "run": 20,
}  # fmt: skip
"""Cases of a reader; of all others ``USUAL``."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(os.name == "nt", reason="what is written is watched through /proc")
@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_is_read_or_refused_in_one_sentence(reader: str) -> None:
    seeds = (1, 2)
    outcomes = [run_case(case, seed, name=reader) for seed in seeds for case in range(CASES.get(reader, USUAL) // 2)]
    assert [outcome for outcome in outcomes if outcome.defect] == []
