"""Checks of a run before its folder exists."""

import pytest

from sdlora.api.training import plan_run, prepare_run, resume_run, start_run
from sdlora.errors import ConfigError
from sdlora.jobs import preflight


@pytest.fixture
def bare(monkeypatch):
    """An environment without anything optional."""
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__quantize": "nf4"}, "model.quantize: nf4 needs bitsandbytes; .*or take int8"),
        ({"optimizer__name": "adamw8bit"}, "optimizer.name: adamw8bit needs bitsandbytes; .*or take adamw"),
        ({"train__learning_rate": 0.0}, "train.learning_rate: 0, and no other rate is set"),
        ({"train__tensorboard": True}, "train.tensorboard: true needs tensorboard; .*or take false"),
        ({"train__wandb": True}, "train.wandb: true needs wandb; run pip install wandb, or take false"),
    ],
)
def test_a_package_that_is_missing_is_told_before_anything_is_written(configure, tmp_path, bare, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare_run(configure(**changes), "mine", tmp_path)
    with pytest.raises(ConfigError, match=message):
        plan_run(configure(**changes), tmp_path)
    assert not (tmp_path / "runs").exists()


def test_what_torch_has_needs_nothing_more(configure, tmp_path, bare):
    assert prepare_run(configure(model__quantize="int8"), "mine", tmp_path).folder.is_dir()


def test_several_processes_cannot_choose_what_fits_and_are_told_so_at_once(configure, tmp_path):
    config = configure(train__memory="8GB")
    with pytest.raises(ConfigError, match="several processes cannot choose together"):
        start_run(config, "mine", tmp_path, processes=2)
    assert not (tmp_path / "runs").exists()
    run = prepare_run(config, "mine", tmp_path)
    with pytest.raises(ConfigError, match="several processes cannot choose together"):
        resume_run(run, processes=2)
