"""A run of which some file is damaged goes on to the right bits, or is refused with one sentence and stays as it is."""

import pytest

from tests.support.corrupted_runs import CORRUPTIONS, Campaign, Case

LATENTS, TEXT = "data/cache/latents/#/#.safetensors", "data/cache/text/#/#.safetensors"
SHARE = [
    ("base/scheduler/scheduler_config.json", "another's content"), ("base/tokenizer/tokenizer.json", "missing"),
    (LATENTS, "another's content"), (TEXT, "another's content"), ("data/runs/mine/journal.jsonl", "unreadable"),
]  # fmt: skip
"""Cases in every run of the tests: those that once gave other bits or a traceback."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corrupted")


@pytest.fixture(scope="module")
def campaign(folder, fork_server):
    return Campaign(folder, fork_server, states=["interrupted"])


@pytest.mark.parametrize(("kind", "corruption"), SHARE)
def test_a_resume_gives_the_right_bits_or_one_sentence(campaign, kind, corruption):
    [case] = [case for case in campaign.cases() if (case.kind, case.corruption) == (kind, corruption)]
    assert campaign.outcome(case)["problems"] == []


@pytest.mark.slow
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_no_corruption_of_any_file_gives_other_bits(folder, fork_server, corruption):
    campaign = Campaign(folder / corruption.replace(" ", "-"), fork_server)
    cases: list[Case] = [case for case in campaign.cases() if case.corruption == corruption]
    assert [outcome for outcome in map(campaign.outcome, cases) if outcome["problems"]] == []
