"""What is settled before the first step."""

from pathlib import Path

import pytest

from sdlora.config import TrainConfig, presets
from sdlora.training.job import Job
from sdlora.training.output import RunPaths
from sdlora.training.prepare import ignored


def job(tmp_path: Path, preset: str, overrides: dict[str, object]) -> Job:
    config = TrainConfig.load(preset, overrides)
    paths = {"output": RunPaths(tmp_path / "run"), "cache": tmp_path / "cache"}
    return Job(**dict(config), **paths, on_event=lambda event: None, should_stop=lambda: False)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"prior.folder": "classes"}, "prior.folder"),
        ({"prior.class_prompt": "a cat"}, "prior.class_prompt"),
        ({"data.random_crop": True, "data.variants": 1}, "data.random_crop"),
        ({"adapter.text_encoder": False}, "train.text_encoder_learning_rate"),
        ({"schedule.warmup_steps": 100}, "schedule.warmup_steps"),
    ],
)
def test_a_setting_that_another_makes_idle_is_named(overrides: dict[str, object], named: str, tmp_path: Path) -> None:
    [told] = ignored(job(tmp_path, "pocket-style", overrides), steps=100)
    assert told.startswith(named)


@pytest.mark.parametrize("preset", [path.stem for path in presets()])
def test_no_preset_has_an_idle_setting(preset: str, tmp_path: Path) -> None:
    assert list(ignored(job(tmp_path, preset, {"data.random_crop": True}), steps=100)) == []
