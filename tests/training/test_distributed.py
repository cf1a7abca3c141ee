"""Arithmetic of several processes: gradients cut to a norm, and float16's loss scaler, on a CPU so that it is always
tested.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from sdlora import checkpoint
from sdlora.adapters import METHODS
from sdlora.events import Notice
from sdlora.training import trainer
from sdlora.training.distributed import Distributed
from sdlora.training.run_paths import RunPaths
from sdlora.training.settings import Train
from tests.support.tiny_models import write_tiny_model
from tests.support.training import assert_equal_files, events_of, train_in_process

SCALE = 1024.0


class Scaled(Distributed):
    """One with a loss scaler, as on a card in fp16; with float32 the numbers themselves stay as they are."""

    def __init__(self, dtype=torch.float32):
        accelerator = Accelerator(cpu=True)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True  # Accelerate refuses it on a CPU.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        super().__init__(accelerator, dtype)

    def autocast(self):
        return torch.autocast("cpu", torch.float16) if self.dtype == torch.float16 else nullcontext()


@pytest.fixture
def gangs(monkeypatch):
    """Runs train with loss scalers; their gangs are listed here."""
    made = []

    def assemble(*settings):
        made.append(Scaled())
        return made[-1]

    monkeypatch.setattr(Distributed, "setup", assemble)
    return made


@pytest.fixture(params=["plain", "scaled"])
def distributed(request, tmp_path):
    return Scaled() if request.param == "scaled" else Distributed.setup(Train(device="cpu"), RunPaths(tmp_path))


def gradient_of_norm_5(distributed):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = distributed.prepare_optimizer(torch.optim.SGD([parameter], lr=1.0))
    distributed.backward((parameter * torch.tensor([3.0, 4.0])).sum())
    return parameter, optimizer


@pytest.mark.parametrize(
    ("most", "left"), [(1.0, [0.6, 0.8]), (2.5, [1.5, 2.0]), (10.0, [3.0, 4.0]), (0.0, [3.0, 4.0])]
)
def test_a_longer_gradient_is_cut_to_the_norm_and_a_shorter_one_left(distributed, most, left):
    parameter, optimizer = gradient_of_norm_5(distributed)
    assert distributed.clip(optimizer, [parameter], most).item() == 5.0
    assert parameter.grad.tolist() == pytest.approx(left, rel=1e-5)
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-value for value in left], rel=1e-5)


def test_an_overflow_leaves_the_step_out_and_halves_the_scale():
    distributed = Scaled()
    parameter, optimizer = gradient_of_norm_5(distributed)
    parameter.grad[0] = float("inf")
    assert not distributed.clip(optimizer, [parameter], 1.0).isfinite()
    optimizer.step()
    assert parameter.tolist() == [0, 0]
    assert distributed.scaler_state()["scale"] == SCALE / 2
    other = Scaled()
    other.restore_scaler(distributed.scaler_state())
    assert other.scaler_state() == distributed.scaler_state()
    assert other.accelerator.scaler.get_scale() == SCALE / 2


def overflow_at(number, monkeypatch):
    """Let micro-batch ``number`` give a loss beyond all bounds."""
    real = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda *a: real(*a) * (float("inf") if a[7] == number else 1.0))


def test_a_run_passes_over_an_overflow_in_silence(configure, tmp_path, monkeypatch, gangs):
    overflow_at(1, monkeypatch)
    config = configure(train__steps=3, checkpoint__every=1, checkpoint__keep=3)
    finished, events, output = train_in_process(config, tmp_path / "run")
    assert finished
    assert [event.message for event in events_of(Notice, events) if "left out" in event.message] == []
    scales = [checkpoint.load(output.states / f"{step:06}").values["scaler"]["scale"] for step in (1, 2, 3)]
    assert scales == [SCALE, SCALE / 2, SCALE / 2]
    assert_equal_files(output.checkpoint(1), output.checkpoint(2))
    before, after = load_file(output.checkpoint(2)), load_file(output.checkpoint(3))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_resumed_run_keeps_its_scale(configure, tmp_path, monkeypatch, gangs):
    overflow_at(1, monkeypatch)
    _, _, whole = train_in_process(configure(), tmp_path / "whole")
    train_in_process(configure(), tmp_path / "parts", stop_after=3)
    finished, _, parts = train_in_process(configure(), tmp_path / "parts")
    assert finished
    assert [distributed.scaler_state() for distributed in gangs[::2]] == [gangs[0].scaler_state()] * 2
    assert gangs[2].scaler_state()["scale"] == SCALE / 2
    assert_equal_files(whole.adapter, parts.adapter)


@pytest.mark.parametrize(
    ("method", "family"), [*((name, "sd1") for name in METHODS), ("lora", "sd2"), ("lora", "sdxl")]
)
def test_the_scaler_meets_float32_gradients_over_a_float16_base(method, family, configure, tmp_path, monkeypatch):
    """fp16 as on a card, on a CPU: base and activations in float16, autocast, and the scaler's own arithmetic."""
    seen = set()
    real = Scaled.clip

    def clip(self, optimizer, parameters, most):
        seen.update((parameter.dtype, parameter.grad.dtype) for parameter in parameters if parameter.grad is not None)
        return real(self, optimizer, parameters, most)

    monkeypatch.setattr(Scaled, "clip", clip)
    monkeypatch.setattr(Distributed, "setup", lambda *_: Scaled(torch.float16))
    dtypes = {}

    def between(base):
        dtypes.update({name: next(model.parameters()).dtype for name, model in base.models.items()})
        dtypes["vae"] = base.vae.dtype

    config = configure(
        model__base=str(write_tiny_model(tmp_path / family, family)), adapter__method=method,
        adapter__targets="linear+conv",
        train__steps=3, sample__every=3, sample__prompts=["a red house"], sample__steps=2,
    )  # fmt: skip
    finished, events, output = train_in_process(config, tmp_path / "run", between_steps=between)
    assert finished
    assert seen == {(torch.float32, torch.float32)}
    assert dtypes.pop("vae") == torch.float32  # In float16 some give infinite latents, and black pictures.
    assert set(dtypes.values()) == {torch.float16}
    assert [event.message for event in events_of(Notice, events) if "left out" in event.message] == []
    last, first = load_file(output.adapter), load_file(output.checkpoint(2))
    assert all(tensor.isfinite().all() for tensor in last.values())
    assert any(not torch.equal(last[key], first[key]) for key in last)
    assert {tensor.dtype for key, tensor in last.items() if tensor.is_floating_point()} == {torch.float32}
    preview = np.asarray(Image.open(output.sample(3, 0)))
    assert preview.std() > 1


def test_float16_parameters_would_have_been_caught():
    """The error that the test above guards against: PyTorch's scaler refuses gradients in float16."""
    distributed = Scaled()
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    optimizer = distributed.prepare_optimizer(torch.optim.SGD([parameter], lr=1.0))
    distributed.backward((parameter * 3).sum())
    with pytest.raises(ValueError, match="unscale FP16 gradients"):
        distributed.clip(optimizer, [parameter], 1.0)
