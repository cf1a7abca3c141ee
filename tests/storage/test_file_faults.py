"""A disk that is full, read-only or broken at some call of an operation: one sentence, nothing lost, and it goes on."""

import random

import pytest

from tests.support.fault_campaign import TRAININGS, Campaign
from tests.support.fault_operations import OPERATIONS

SHARE = 1
"""Cases of an operation in every run of the tests: places at which each of the calls is made."""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, fork_server, tiny_base):
    if not fork_server.has_file_faults:
        pytest.skip("faults of the file system need Linux and a C compiler")
    return Campaign(tmp_path_factory.mktemp("faults"), fork_server, tiny_base)


def failures(campaign, cases):
    outcomes = [campaign.outcome(case) for case in cases]
    assert all(outcome["call"] for outcome in outcomes), "a fault did not strike"
    return [outcome for outcome in outcomes if outcome["problems"]]


@pytest.mark.parametrize("operation", [*OPERATIONS, *TRAININGS])
def test_a_fault_is_one_sentence_and_loses_nothing(campaign, operation):
    cases = [*campaign.cases(operation, every=False)]
    assert failures(campaign, random.Random(operation).sample(cases, SHARE)) == []


@pytest.mark.slow
@pytest.mark.parametrize("operation", [*OPERATIONS, *TRAININGS])
def test_no_fault_at_any_place_loses_anything(campaign, operation):
    assert failures(campaign, campaign.cases(operation, every=False)) == []
