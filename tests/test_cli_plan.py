"""`sdlora plan`: what it says of a run, that it says it again at once, and that it writes nothing but caches."""

import json

import pytest

from sdlora.cli.main import _parser, main
from sdlora.config import TrainConfig
from sdlora.errors import ConfigError, DatasetError
from sdlora.jobs import preflight
from sdlora.jobs.measurement import Measurement
from sdlora.jobs.preflight import plan_from_measurement, plan_table
from sdlora.storage.run_folder import Run

FOUND = Measurement(
    device="cpu", width=64, height=64, load=5, encode=1, step=2, sampling=0.5, picture=1, memory=3 << 30, resolution=64,
    native_size=64, latent_factor=8, numbers=1000, state=8000, caption=600, counted=2 << 30,
    rungs=[{"changes": {"train.gradient_checkpointing": True}, "needs": 1 << 30, "costs": "more time"}],
)  # fmt: skip


def test_a_plan_adds_up_what_was_measured_and_what_will_be_written(configure):
    config = configure(
        data__flip=True, train__gradient_accumulation=3, train__steps=10, checkpoint__every=4, checkpoint__keep=2,
        sample__every=5, sample__prompts=["a house"], sample__steps=4, prior__weight=1.0, prior__count=7,
        prior__class_prompt="a house", prior__steps=6, checkpoint__precision="fp16",
    )  # fmt: skip
    found = plan_from_measurement(config, FOUND)
    assert (found.steps, found.pictures, found.step_seconds) == (10, 6, 6)
    assert sum(found.sizes.values()) == 6 and found.sizes["64 x 64"] == 4  # test pictures: two are 96 x 48
    assert found.seconds == {
        "loading the base model": 5, "class pictures": 7 * (1 + 6 * 0.5), "encoding pictures": 6 * 2 + 7,
        "previews": 3 * (1 + 4 * 0.5), "steps": 10 * 3 * 2,
    }  # fmt: skip
    wide = next(size for size in found.sizes if size != "64 x 64")
    width, height = map(int, wide.split(" x "))
    places = (4 * 64 * 64 + 2 * width * height) * 2 + 7 * 64 * 64
    assert found.disk == {
        "cache of latents": places // 64 * 4 * 4 * 2, "cache of captions": 6 * 600, "class pictures": 7 * 64 * 64 * 3,
        "previews": 3 * 64 * 64 * 3, "checkpoints": 3 * 2000, "states to resume from": 2 * 12000, "adapter": 2000,
    }  # fmt: skip


def test_the_table_says_what_is_measured_and_what_is_counted(configure):
    early = plan_table(plan_from_measurement(configure(train__stop="plateau"), FOUND))
    assert early[0].endswith(": at most 6 steps of batch 2") and any("at most" in line for line in early[1:5])
    text = "\n".join(plan_table(plan_from_measurement(configure(), FOUND)))
    assert "3.00 GiB at the peak, measured, by how much a process grows" in text
    assert "2.00 GiB of steps and encoding, counted" in text
    assert "1.00 GiB  train.gradient_checkpointing = true (more time)" in text


@pytest.mark.slow
def test_a_plan_is_measured_once_and_leaves_nothing_but_caches(configure, tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    configure(adapter__text_encoder=False).save(tmp_path / "mine.toml")
    hand = ["--train.gradient_checkpointing", "--optimizer.name", "lion", "--model.quantize", "int8"]
    command = ["plan", str(tmp_path / "mine.toml"), "--data-dir", str(data), "--memory", "4GB", *hand, "--json"]
    assert main(command) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["steps"], found["pictures"], found["batch_size"]) == (6, 6, 2)
    assert found["memory"] > 0 and found["counted"] > 0 and found["step_seconds"] > 0
    assert found["told"][0].startswith("4GB: nothing was changed to fit; it takes about")
    assert "loading the base model" in output.err
    assert [path.name for path in data.iterdir() if path.name not in ("cache", "locks")] == []
    monkeypatch.setattr(preflight, "Profiler", None)  # Nothing is measured again.
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert Run.all(data) == []


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--data.folder", "nowhere"], DatasetError.exit_code),
        (["--model.base", "nothing-of-that-name"], ConfigError.exit_code),
        (["--memory", "lots"], ConfigError.exit_code),
        (["--train.stepz", "3"], ConfigError.exit_code),
    ],
)
def test_what_a_run_would_refuse_the_plan_refuses_and_nothing_is_written(tmp_path, flags, code, capsys):
    assert main(["plan", "pocket-style", "--data-dir", str(tmp_path / "data"), *flags]) == code
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "data").exists()


def test_a_setting_by_the_short_flag_is_the_same(pictures):
    from sdlora.cli.options import overrides

    words = ["plan", "pocket-style", "--memory", "8GB"]
    parsed = _parser(words)[0].parse_args(words)
    assert overrides(parsed) == {"train.memory": "8GB"}
    assert TrainConfig.load("pocket-style", {**overrides(parsed), "data.folder": str(pictures)}).train.memory == "8GB"
