"""Nothing is lost when pages, trainings, tools and the inference process are killed at random."""

import pytest

from tests.support.kill_siege import Siege
from tests.support.siege_page import VARIANTS


@pytest.mark.parametrize(
    ("kills", "variants"), [(6, ("often",)), pytest.param(60, tuple(VARIANTS), marks=pytest.mark.slow)]
)
def test_runs_and_all_else_that_was_done_outlive_random_kills(fork_server, tmp_path, kills, variants):
    siege = Siege(tmp_path / "siege", 2, fork_server, variants)
    siege.until(kills)
    outcomes = siege.outcomes()
    assert [fault for outcome in outcomes for fault in outcome["faults"]] == []
    assert sum(sum(outcome["kills"].values()) for outcome in outcomes) == kills
    assert all(outcome["runs"] == 2 * len(variants) for outcome in outcomes)
