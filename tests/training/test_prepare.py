"""Preparation of a run before its first step."""

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdlora.adapters import attach
from sdlora.checkpoint import State
from sdlora.config import TrainConfig, presets
from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize
from sdlora.errors import ConfigError
from sdlora.training.prepare import TrainState, optimizer_groups, trained_parts
from sdlora.training.setting_notices import changed_settings, ignored_settings, learning_settings
from sdlora.training.train_job import TrainJob
from tests.support.adapters import adapter_parameters, tiny_networks
from tests.support.training import train_job


def job(tmp_path: Path, preset: str, overrides: dict[str, object]) -> TrainJob:
    return train_job(TrainConfig.load(preset, overrides), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"prior.folder": "classes"}, "prior.folder"),
        ({"prior.class_prompt": "a cat"}, "prior.class_prompt"),
        ({"prior.target": "base"}, "prior.target"),
        ({"prior.outside_masks": 1.0, "data.masks": False}, "prior.outside_masks"),
        ({"data.random_crop": True, "data.variants": 1}, "data.random_crop"),
        ({"data.crop_margin": 0.3}, "data.crop_margin"),
        ({"adapter.text_encoder": False}, "train.text_encoder_learning_rate"),
        ({"schedule.warmup_steps": 100}, "schedule.warmup_steps"),
    ],
)
def test_a_setting_that_another_makes_idle_is_named(overrides: dict[str, object], named: str, tmp_path: Path) -> None:
    [notice] = ignored_settings(job(tmp_path, "pocket-style", overrides), steps=100)
    assert notice.startswith(named)


def test_the_order_of_examples_is_told_as_version_0_1_0_told_it() -> None:
    """States of that version hold these digests: a resume compares them."""
    own = Example(Path("a.png"), "a red house", 96, 48, repeats=2, digest="0a", mask_digest="0b")
    class_image = Example(Path("c.png"), "a house", 64, 64, digest="0c")
    batches = SimpleNamespace(examples=[own], class_examples=[class_image])
    around = SimpleNamespace(batches=batches, sizes=[ImageSize(64, 32)], _tokens=lambda: [])
    family = SimpleNamespace(fingerprint="f" * 64, scheduler_config={})
    around.distributed, around.family = SimpleNamespace(count=1), family
    told = TrainState._order(around)
    assert {told.pop(name) is None for name in ("noise schedule", "tokens")} == {False}  # Later versions' own.
    assert told == {
        "processes": 1,
        "base model": "f" * 12,
        "pictures and captions": sha256(b"0a0ba red house2Size(width=64, height=32)").hexdigest()[:12],
        "class pictures": sha256(b"0ca house").hexdigest()[:12],
    }


@pytest.mark.parametrize("preset", [path.stem for path in presets()])
def test_no_preset_has_an_idle_setting(preset: str, tmp_path: Path) -> None:
    assert list(ignored_settings(job(tmp_path, preset, {"data.random_crop": True}), steps=100)) == []


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lora_plus_moves_up_by_its_ratio_faster_and_nothing_else(method: str, tmp_path: Path) -> None:
    models = tiny_networks()
    settings = {"train.learning_rate": 1e-4, "train.text_encoder_learning_rate": 5e-5, "adapter.method": method}
    config = job(tmp_path, "pocket-style", {**settings, "adapter.lora_plus_ratio": 16})
    trainable = config.adapter.attach(models, "a", 0)
    layers = attach.attached_layers(models, "a")
    groups = optimizer_groups(trained_parts(config, trainable))
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for path, layer in layers:
        usual = 5e-5 if path.startswith("text") else 1e-4
        for name, parameter in layer.tensors.items():
            assert rate_of[id(parameter)] == usual * (16 if name == "up" else 1)
    config = job(tmp_path, "pocket-style", settings)
    plain = optimizer_groups(trained_parts(config, config.adapter.attach(tiny_networks(), "a", 0)))
    assert [group["lr"] for group in plain] == [1e-4, 5e-5]


@pytest.mark.parametrize("method", ["loha", "lokr", "ia3"])
def test_a_method_without_down_and_up_refuses_lora_plus(method: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the method {method} has no setting adapter.lora_plus_ratio"):
        job(tmp_path, "pocket-style", {"adapter.method": method, "adapter.lora_plus_ratio": 4})


def test_layers_may_have_learning_rates_of_their_own(tmp_path: Path) -> None:
    models = tiny_networks()
    rates = "unet.up_blocks=5e-4, *.attn2.to_k=3e-4, unet.mid_block=0, text_encoder.text_model.encoder.layers.1=9e-5"
    settings = {"train.learning_rate": 1e-4, "train.text_encoder_learning_rate": 5e-5, "train.learning_rates": rates}
    config = job(tmp_path, "pocket-style", settings)
    trainable = config.adapter.attach(models, "a", 0)
    layers = attach.attached_layers(models, "a")
    groups = optimizer_groups(trained_parts(config, trainable))
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate_of) == len(adapter_parameters(models, "a"))

    def rate(end: str) -> float:
        [found] = {rate_of[id(p)] for path, layer in layers if path.endswith(end) for p in layer.tensors.values()}
        return found

    assert rate("mid_block.attentions.0.transformer_blocks.0.attn2.to_q") == 0
    assert rate("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q") == 5e-4
    assert rate("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k") == 3e-4
    assert rate("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q") == 1e-4
    assert rate("layers.0.self_attn.q_proj") == 5e-5
    assert rate("layers.1.self_attn.q_proj") == 9e-5
    with pytest.raises(ConfigError, match=r"train\.learning_rates: 'unet\.middle' matches no adapted layer"):
        trained_parts(job(tmp_path, "pocket-style", {"train.learning_rates": "unet.middle=1e-4"}), trainable)


@pytest.mark.parametrize("rates", ["unet", "unet=x", "unet=-1", "unet=11"])
def test_what_gives_no_learning_rates_is_refused(rates: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.learning_rates"):
        job(tmp_path, "pocket-style", {"train.learning_rates": rates})


def test_a_resume_names_the_settings_that_were_changed(tmp_path: Path) -> None:
    before, now = (job(tmp_path, "pocket-style", {"train.learning_rate": rate}) for rate in (0.01, 0.03))
    saved = State(1, {}, {"settings": learning_settings(before)})
    assert [*changed_settings(before, saved)] == []
    [notice] = changed_settings(now, saved)
    assert notice == "this run goes on with other settings than before: train.learning_rate = 0.03 for 0.01"
    assert [*changed_settings(now, State(1, {}, {}))] == []  # Version 0.1.0 saved none.
