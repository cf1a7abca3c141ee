"""``train.memory``: what is chosen before a run begins, what is told of it, and what a resume repeats."""

import pytest
import torch

from sdlora.api.training import extend_run
from sdlora.cli.main import main
from sdlora.config import TrainConfig, _with_explicit, explicit_settings
from sdlora.errors import OutOfMemoryError
from sdlora.events import Notice, RunFailed
from sdlora.formatting import GIB
from sdlora.jobs import fit_to_memory as settling
from sdlora.jobs.fit_to_memory import MemoryCounter, fit_to_memory, memory_budget
from sdlora.jobs.training_worker import translate_error
from sdlora.storage.run_folder import Run
from sdlora.training.memory_estimate import MemoryEstimate

CPU = torch.device("cpu")
CHECKPOINTING = "train.gradient_checkpointing"


@pytest.fixture
def simple(monkeypatch):
    """Runs that need a GB a picture, a quarter of it with checkpointing; and no weights to speak of."""

    def footprint(self, config):
        kept = config.train.batch_size * (0.25 if config.train.gradient_checkpointing else 1)
        return MemoryEstimate(weights=0, step=int(kept * GIB / 1.1), encoding=0, generation=0)

    monkeypatch.setattr(MemoryCounter, "footprint", footprint)


def test_what_is_chosen_is_told_and_the_wish_is_gone(configure, simple):
    config, notices = fit_to_memory(as_preset(configure(train__memory="1GB", train__batch_size=4)), CPU)
    assert (config.train.batch_size, config.train.gradient_accumulation, config.train.memory) == (1, 4, None)
    assert notices == ["1GB: batch 1 x 4; about 1.00 GiB, counted, instead of 4.00 GiB"]


def as_preset(config):
    """The same, as if a preset had said it, and a person the memory alone."""
    return _with_explicit(config, {"train.memory"})


def test_what_was_set_by_hand_is_named_where_it_leaves_too_little(configure, simple):
    config = configure(train__memory="0.2GB", train__batch_size=4, train__gradient_checkpointing=False)
    with pytest.raises(OutOfMemoryError) as caught:
        fit_to_memory(config, CPU)
    assert "set by hand, and left alone: train.batch_size, train.gradient_checkpointing" in str(caught.value)
    assert "train.memory = 0.2GB: this run takes about 4.00 GiB" in str(caught.value)


def test_auto_is_what_is_free_and_changes_nothing_on_a_cpu(configure, monkeypatch):
    config, notices = fit_to_memory(configure(train__memory="auto"), CPU)
    assert (config, notices) == (configure(), [])
    monkeypatch.setattr("sdlora.generation.memory.free_bytes", lambda device: 123)
    assert memory_budget("auto", CPU) == 123


def test_a_card_of_a_size_has_less_for_a_run():
    assert memory_budget("8GB", CPU) == 8 * GIB
    assert memory_budget("8GB", torch.device("cuda")) == 8 * GIB - settling.CONTEXT


@pytest.mark.parametrize(("text", "kept"), [("auto", "auto"), ("AUTO", "auto"), ("8GB", "8GB"), ("6.5 gb", "6.5GB")])
def test_a_size_is_read_however_it_is_written(configure, text, kept):
    assert configure(train__memory=text).train.memory == kept


@pytest.mark.parametrize("text", ["much", "8", "-8GB", "0GB", "8TB", "1e9GB"])
def test_what_is_no_size_is_refused(configure, text):
    with pytest.raises(Exception, match="give auto, or a size such as 8GB"):
        configure(train__memory=text)


def test_what_a_person_set_is_known_from_a_presets_own_values(tmp_path, pictures):
    config = TrainConfig.load("pocket-style", {"data.folder": str(pictures), "train.memory": "8GB"})
    assert explicit_settings(config) == {"data.folder", "train.memory"}
    config.save(tmp_path / "config.toml")
    again = TrainConfig.load(tmp_path / "config.toml")
    assert again == config and explicit_settings(again) == explicit_settings(config)
    assert "train.batch_size" in explicit_settings(
        TrainConfig.parse({"train": {"batch_size": 2}, "data": {"folder": "."}}, "mine")
    )


@pytest.mark.slow
def test_a_run_writes_what_it_chose_and_a_resume_repeats_it(configure, tmp_path, capsys):
    config = configure(train__steps=4, train__batch_size=2, checkpoint__every=2)
    less = (MemoryCounter(config, CPU).needs(config) - 1000) / GIB
    wish = configure(train__steps=4, train__batch_size=2, checkpoint__every=2, train__memory=f"{less:.6f}GB")
    as_preset(wish).save(tmp_path / "mine.toml")
    code = main(["train", str(tmp_path / "mine.toml"), "--name", "mine", "--data-dir", str(tmp_path)])
    run = Run(tmp_path / "runs" / "mine")
    assert code == 0, capsys.readouterr().err
    assert (run.config.train.batch_size, run.config.train.gradient_accumulation) == (1, 2)
    assert run.config.train.memory is None
    notices = [event.message for event in run.events() if isinstance(event, Notice)]
    assert any("batch 1 x 2" in message for message in notices)
    before = run.config.model_dump()
    before["train"]["steps"] = 6
    extend_run(run, 6).wait()
    assert run.state == "finished"
    assert TrainConfig.load(run.config_file).model_dump() == before


def test_a_saved_config_leaves_to_the_savings_what_its_preset_does(tmp_path):
    preset = TrainConfig.load("sd15-subject")
    preset.save(tmp_path / "saved.toml")
    loaded = TrainConfig.load(tmp_path / "saved.toml", {"train.memory": "6GB"})
    assert explicit_settings(loaded) == explicit_settings(preset) | {"train.memory"}


@pytest.mark.slow
def test_a_run_that_cannot_fit_ends_before_it_begins(configure, tmp_path, capsys):
    hand = {"train__gradient_checkpointing": False, "optimizer__name": "lion", "model__quantize": "int8"}
    configure(train__memory="0.001GB", **hand).save(tmp_path / "mine.toml")
    code = main(["train", str(tmp_path / "mine.toml"), "--name", "mine", "--data-dir", str(tmp_path)])
    run = Run(tmp_path / "runs" / "mine")
    assert code == OutOfMemoryError.exit_code, capsys.readouterr().err
    assert isinstance(run.events()[-1], RunFailed) and not list(run.checkpoints.iterdir())


@pytest.mark.parametrize(
    ("settings", "saving"),
    [
        ({"train__batch_size": 4}, "train.batch_size = 2 and train.gradient_accumulation = 2"),
        ({"train__batch_size": 1}, "train.gradient_checkpointing = true"),
        ({"train__batch_size": 1, "train__gradient_checkpointing": True, "optimizer__name": "lion"}, "model.quantize"),
    ],
)
def test_out_of_memory_names_the_next_saving(configure, settings, saving):
    found = translate_error(MemoryError(), configure(**settings))
    assert isinstance(found, OutOfMemoryError)
    assert str(found).startswith(f"the device ran out of memory; start again with {saving}")


def test_out_of_memory_with_all_savings_names_what_is_left(configure):
    last = configure(
        train__batch_size=1, train__gradient_checkpointing=True, optimizer__name="lion", model__quantize="nf4"
    )
    assert str(translate_error(MemoryError(), last)).endswith(
        "start again with a lower data.resolution or adapter.rank"
    )
