"""Time to quality: both sides judged by the same files, and nothing measured twice."""

import pytest
import torch

from benchmarks import time_to_quality as bench
from benchmarks.reference import ReferenceLoop, captioned
from sdlora.adapters import attach
from sdlora.families.loading import load_family
from sdlora.formats import read_adapter, write_adapter


@pytest.mark.parametrize(("goal", "step"), [(0.1, 10), (0.35, 20), (0.4, 30), (0.45, None)])
def test_the_step_from_which_on_the_goal_is_kept_counts(goal, step):
    assert bench.stays_at({10: 0.9, 30: 0.5, 20: 0.35, 40: 0.4} | ({10: 0.2} if goal > 0.1 else {}), goal) == step


def test_a_goal_that_is_met_and_lost_again_is_not_reached():
    assert bench.stays_at({10: 0.9, 20: 0.1, 30: 0.5}, 0.4) == 30
    assert bench.stays_at({10: 0.9, 20: 0.1}, 0.4) is None


def test_the_table_says_who_came_there_and_who_did_not():
    side = {"once_seconds": 2.0, "step_seconds": 0.25, "steps": None, "seconds": None, "curve": {}}
    there = {**side, "steps": 40, "seconds": 12.0}
    curve = {"50": {"clip_i": 0.625}, "500": {"clip_i": 0.5}}
    found = {"trial": "style", "goal": 0.5, "rates": {"0.001": curve}, "reference_over_ours": 6.0}
    lines = bench.table({**found, "reference": {**there, "steps": 500, "seconds": 72.0}, "ours": there, "equal": side})
    assert lines[0].startswith("style, clip i 0.500")
    assert lines[2].split()[-3:] == ["40", "12.0", "6.0"] and lines[3].split()[-1] == "never"
    assert lines[4] == "the loop at 0.001: 0.500 in the end, at most 0.625, at step 50"


def test_what_was_measured_is_read_the_next_time(tmp_path):
    made = []
    measure = lambda: made.append(1) or {"seconds": 0.25}  # noqa: E731
    assert bench.Trial("style", tmp_path, 0).kept("times", measure) == {"seconds": 0.25}
    assert bench.Trial("style", tmp_path, 0).kept("times", measure) == {"seconds": 0.25}
    assert made == [1]


def test_equal_settings_are_the_references_own(tmp_path):
    trial = bench.Trial("style", tmp_path, 0)
    equal, reference, ours = trial.config("equal", 3e-3), trial.config("reference", 3e-3), trial.config("ours")
    for name in ("data", "adapter", "train", "loss", "optimizer", "schedule", "prior"):
        assert getattr(equal, name) == getattr(reference, name)
    assert equal.train.learning_rate == 3e-3
    assert ours.adapter.targets == "linear+conv"


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_reference_without_class_pictures_trains_an_adapter_that_reads_back_as_it_was(tmp_path):
    trial = bench.Trial("style", tmp_path, 0)
    loop = ReferenceLoop(trial.config("reference", 1e-2), trial.base, "fp32")
    losses = [loop.step() for _ in range(2)]
    assert all(0 < loss < 2 for loss in losses)
    write_adapter(loop.adapter(), tmp_path / "a.safetensors", "kohya")
    family = load_family(trial.config("ours").model)
    latents, timesteps = torch.randn(1, 4, 16, 16), torch.tensor([300])
    ids = family.tokenize(["ohwx style, a cat on sand"])
    with torch.no_grad():
        plain = family.predict(latents, timesteps, family.encode_text(ids))
        attach.load_state(family.models, read_adapter(tmp_path / "a.safetensors"), "read")
        read = family.predict(latents, timesteps, family.encode_text(ids))
        own = loop.unet(latents, timesteps, loop.text_encoder(ids, return_dict=False)[0], return_dict=False)[0]
    assert torch.allclose(read, own, atol=1e-6)
    assert (read - plain).abs().max() > 1e-3


def test_the_reference_says_each_pictures_caption_or_else_the_prompt(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    (tmp_path / "2.txt").write_text("a sks cat on snow\n")
    paths, prompts = captioned(tmp_path, "a sks cat")
    assert [path.name for path in paths] == ["1.png", "2.png"]
    assert prompts == ["a sks cat", "a sks cat on snow"]
