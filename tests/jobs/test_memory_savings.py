"""Memory savings as a table of cases: which are applied, in which order, and what is left alone."""

import pytest

from sdlora.config import TrainConfig
from sdlora.jobs import memory_savings
from sdlora.jobs.memory_savings import apply_until_fits, next_saving

GB = 2**30
WEIGHTS = {None: 4.0, "int8": 2.0, "nf4": 1.0}
BATCH, CHECKPOINTING = ("train.batch_size", "train.gradient_accumulation"), "train.gradient_checkpointing"


def config(**values):
    return TrainConfig.parse({"data": {"folder": "."}}, "test", {n.replace("__", "."): v for n, v in values.items()})


def needs(config):
    """A run's bytes by a formula of the test's own, in which every saving has its part."""
    weights = WEIGHTS[config.model.quantize] + (0 if config.train.offload else 1)
    kept = config.train.batch_size * (0.25 if config.train.gradient_checkpointing else 1)
    return int((weights + kept + (0.1 if config.optimizer.name == "adamw8bit" else 0.4)) * GB)


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setattr(memory_savings, "find_spec", lambda name: True)


@pytest.mark.parametrize(
    ("budget", "on_card", "changes"),
    [
        (10, True, {}),
        (9.4, True, {}),
        (9, True, {"train.offload": True}),
        (7, True, {"train.offload": True, "train.batch_size": 2, "train.gradient_accumulation": 2}),
        (6, True, {"train.offload": True, "train.batch_size": 1, "train.gradient_accumulation": 4}),
        (6.5, False, {"train.batch_size": 1, "train.gradient_accumulation": 4}),
        (5.7, False, {"train.batch_size": 1, "train.gradient_accumulation": 4, CHECKPOINTING: True}),
        (
            5.4,
            False,
            {
                "train.batch_size": 1,
                "train.gradient_accumulation": 4,
                CHECKPOINTING: True,
                "optimizer.name": "adamw8bit",
            },
        ),
    ],
)
def test_the_first_savings_that_suffice_are_applied_and_no_more(budget, on_card, changes):
    found = apply_until_fits(config(train__batch_size=4), needs, int(budget * GB), on_card)
    assert found.changes == changes
    assert found.fits and found.needs == needs(found.config)
    assert found.config.train.batch_size * found.config.train.gradient_accumulation == 4


@pytest.mark.parametrize(("budget", "kind"), [(3.5, "int8"), (2.4, "nf4")])
def test_the_base_is_rounded_last(budget, kind):
    found = apply_until_fits(config(), needs, int(budget * GB), False)
    assert found.config.model.quantize == kind
    assert found.config.train.gradient_checkpointing and found.config.optimizer.name == "adamw8bit"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({CHECKPOINTING: False}, [CHECKPOINTING]),
        ({"optimizer.name": "adamw", "train.batch_size": 4}, ["optimizer.name", "train.batch_size"]),
        ({"train.gradient_accumulation": 1}, ["train.gradient_accumulation"]),
    ],
)
def test_what_a_person_has_set_is_left_alone_and_told_where_it_stands_in_the_way(given, kept):
    before = config(**{"train__batch_size": 4, **{name.replace(".", "__"): value for name, value in given.items()}})
    found = apply_until_fits(before, needs, GB // 2, True, given)
    assert not found.fits and list(found.kept) == kept
    assert not set(given) & set(found.changes)
    assert all(name in memory_savings.refusal(found, "0.5GB") for name in kept)


def test_a_saving_of_nearly_nothing_is_passed_over():
    def flat(config):
        return needs(config) - (0 if config.optimizer.name == "adamw" else int(0.1 * GB)) + int(100 * GB)

    found = apply_until_fits(config(), flat, int(100.5 * GB), True)
    assert "optimizer.name" not in found.changes and "model.quantize" in found.changes


def test_without_bitsandbytes_the_savings_that_need_it_are_left_out(monkeypatch):
    monkeypatch.setattr(memory_savings, "find_spec", lambda name: None)
    found = apply_until_fits(config(), needs, 0, True)
    assert found.changes["model.quantize"] == "int8" and "optimizer.name" not in found.changes


@pytest.mark.parametrize(("batch", "halves"), [(8, [(4, 2), (2, 4), (1, 8)]), (6, [(3, 2), (1, 6)]), (3, [(1, 3)])])
def test_a_batch_is_halved_as_often_as_it_can_be_and_each_step_sees_as_many_pictures(batch, halves):
    found = apply_until_fits(config(train__batch_size=batch), needs, 0, True)
    steps = [tuple(step.changes.values()) for step in found.applied if "train.batch_size" in step.changes]
    assert steps == halves


@pytest.mark.parametrize(
    ("settings", "on_card", "saving"),
    [
        ({}, True, "train.offload = true"),
        ({"train__offload": True, "train__batch_size": 4}, True, "train.batch_size = 2 and train.gradient_acc"),
        ({"train__batch_size": 2}, False, "train.batch_size = 1 and train.gradient_accumulation = 2"),
        ({}, False, "train.gradient_checkpointing = true"),
        ({"train__gradient_checkpointing": True}, False, "optimizer.name = adamw8bit"),
        ({"train__gradient_checkpointing": True, "optimizer__name": "lion"}, False, "model.quantize = int8"),
        (
            {"train__gradient_checkpointing": True, "optimizer__name": "lion", "model__quantize": "int8"},
            False,
            "model.quantize = nf4",
        ),
        ({"train__gradient_checkpointing": True, "optimizer__name": "lion", "model__quantize": "nf4"}, False, ""),
    ],
)
def test_the_next_saving_is_the_first_that_is_not_applied(settings, on_card, saving):
    assert memory_savings.as_flags(next_saving(config(**settings), on_card)).startswith(saving)


def test_what_was_chosen_is_told_in_a_sentence():
    found = apply_until_fits(config(train__batch_size=4), needs, int(5.7 * GB), True)
    assert memory_savings.describe_fit(found, "8GB") == (
        "8GB: parts that do not train wait in main memory; batch 1 x 4; about 5.40 GiB, counted, instead of 9.40 GiB"
    )
