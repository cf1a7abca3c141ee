"""States that survive: whole or not there, exact, and never code."""

import errno
import math
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from sdlora import checkpoint, optim
from sdlora.checkpoint import State
from sdlora.errors import ConfigError, FileError


def _state(step: int) -> State:
    return State(step, {"a": torch.arange(3.0) + step}, {"lr": 0.1 + step})


def test_a_state_comes_back_and_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, _state(step), keep=2)
    found = checkpoint.newest_state(tmp_path)
    assert found.step == 3
    assert torch.equal(found.tensors["a"], _state(3).tensors["a"])
    assert found.values == {"lr": 3.1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_state_is_passed_over_for_the_one_before(name, damage, tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, _state(step), keep=2)
    path = tmp_path / "000002" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else content.replace(b"2", b"3"))
    assert checkpoint.newest_state(tmp_path).step == 1
    with pytest.raises(FileError, match="damaged"):
        checkpoint.load(tmp_path / "000002")


def test_a_damaged_later_state_takes_no_whole_ones_place(tmp_path):
    """A run that begins anew saves its first steps while the damaged state of a later step is still there."""
    checkpoint.save(tmp_path, _state(5), keep=1)
    (tmp_path / "000005" / "state.json").write_text("{}")
    told = []
    assert checkpoint.newest_state(tmp_path, told.append) is None
    assert told == ["the checkpoint 000005 is damaged; there is none before it, and the run begins anew"]
    for step in (1, 2):
        checkpoint.save(tmp_path, _state(step), keep=1)
        assert checkpoint.newest_state(tmp_path).step == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000005"]


def test_a_state_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, _state(step), keep=2)

    def broken(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(checkpoint, "sha256", broken)
    with pytest.raises(FileError, match=r"000002/state\.safetensors: cannot be read \(Input/output error\)"):
        checkpoint.newest_state(tmp_path)


def test_a_disk_too_small_for_the_runs_checkpoints_is_told_before_the_first(tmp_path, monkeypatch):
    """Two kept states and one in writing, of three times the adapter each, and five adapter files."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=14_000_000))
    checkpoint.require_space(tmp_path, 1_000_000, keep=2, files=5)
    with pytest.raises(FileError, match=r"free 13\.4 MiB on this disk"):
        checkpoint.require_space(tmp_path, 2_000_000, keep=2, files=5)


def test_the_newest_step_is_known_by_its_folder(tmp_path):
    assert checkpoint.newest_step(tmp_path) == 0
    for step in (9, 100):
        checkpoint.save(tmp_path, _state(step), keep=2)
    assert checkpoint.newest_step(tmp_path) == 100


def test_a_half_written_state_is_no_state(tmp_path):
    checkpoint.save(tmp_path, _state(1), keep=2)
    (tmp_path / ".tmp-000002").mkdir()
    (tmp_path / ".tmp-000002" / "state.json").write_text("{}")
    assert checkpoint.newest_state(tmp_path).step == 1
    checkpoint.save(tmp_path, _state(2), keep=2)
    assert checkpoint.newest_state(tmp_path).step == 2


def test_states_are_ordered_by_number_not_by_name(tmp_path):
    for step in (999_900, 1_000_000):
        checkpoint.save(tmp_path, _state(step), keep=1)
    assert checkpoint.newest_state(tmp_path).step == 1_000_000


def test_a_damaged_newest_state_is_told(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, _state(step), keep=2)
    (tmp_path / "000002" / "state.json").unlink()
    notices = []
    assert checkpoint.newest_state(tmp_path, notices.append).step == 1
    assert "000002 is damaged" in notices[0]


class Nested(torch.optim.SGD):
    """Keeps a tensor one level down, as bitsandbytes does."""

    def state_dict(self):
        return {"state": {0: {"inner": {"a": torch.arange(3)}, "n": 2}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

    def load_state_dict(self, state):
        self.got = state


def test_tensors_deep_in_an_optimizers_state_are_kept(tmp_path):
    optimizer = Nested([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    tensors, values = checkpoint.pack_optimizer(optimizer)
    checkpoint.save(tmp_path, State(1, tensors, {"optimizer": values}), keep=1)
    state = checkpoint.newest_state(tmp_path)
    checkpoint.unpack_optimizer(optimizer, state.tensors, state.values["optimizer"])
    assert torch.equal(optimizer.got["state"][0]["inner"]["a"], torch.arange(3))
    assert optimizer.got["state"][0]["n"] == 2
    assert optimizer.got["param_groups"] == [{"lr": 0.1, "params": [0]}]


def test_no_state_is_none(tmp_path):
    assert checkpoint.newest_state(tmp_path / "nothing") is None


def test_prodigy_refuses_two_rates():
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in (1.0, 0.5)]
    with pytest.raises(ConfigError, match=r"prodigy moves everything at one rate"):
        optim.Optimizer(name="prodigy").build(groups)


def test_an_optimizer_whose_library_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # Importing it fails, installed or not.
    with pytest.raises(ConfigError) as caught:
        optim.Optimizer(name="adamw8bit").build([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1}])
    text = "optimizer.name: adamw8bit needs bitsandbytes; run pip install bitsandbytes, or take adamw"
    assert str(caught.value) == text


OPTIMIZERS = ["adamw", "adamw8bit", "prodigy", "lion", "adafactor", "schedulefree"]
ENOUGH = (64, 80)
"""Numbers in a tensor: of smaller ones the 8-bit optimizer keeps its moments in full."""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_from_its_packed_state_bit_for_bit(name, tmp_path):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    start = torch.linspace(-1, 1, 64 * 80).reshape(ENOUGH)

    def build() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(start.clone())
        return parameter, optim.Optimizer(name=name).build([{"params": [parameter], "lr": 0.01}])

    def step(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, number: int) -> None:
        parameter.grad = torch.sin(parameter.detach() * (number + 1))
        optimizer.step()

    whole, optimizer = build()
    for number in range(6):
        step(whole, optimizer, number)
        if number == 2:
            tensors, values = checkpoint.pack_optimizer(optimizer)
            tensors["p"] = whole.detach()
            checkpoint.save(tmp_path, State(3, tensors, {"optimizer": values}), keep=1)
    resumed, optimizer = build()
    state = checkpoint.newest_state(tmp_path)
    with torch.no_grad():
        resumed.copy_(state.tensors["p"])
    checkpoint.unpack_optimizer(optimizer, state.tensors, state.values["optimizer"])
    for number in range(3, 6):
        step(resumed, optimizer, number)
    assert torch.equal(resumed, whole)
    assert not torch.equal(whole.detach(), start)


def test_a_schedule_free_optimizer_gives_its_average_and_trains_on_from_where_it_was():
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12))
    optimizer = optim.Optimizer(name="schedulefree", weight_decay=0.0).build([{"params": [parameter], "lr": 0.1}])
    moved = []  # z of arXiv:2405.15682, whose plain mean is x where the rate is constant (eq. 3 with c = 1 / t)
    for number in range(5):
        parameter.grad = torch.sin(parameter.detach() * (number + 1))
        optimizer.step()
        moved.append(optimizer.state[parameter]["z"].clone())
    trained = parameter.detach().clone()
    with optim.averaged_parameters(optimizer):
        assert torch.allclose(parameter, torch.stack(moved).mean(0), atol=1e-6)
    assert torch.equal(parameter, trained)
    assert optimizer.param_groups[0]["train_mode"]


def test_other_optimizers_give_what_they_train():
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12))
    before = parameter.detach().clone()
    with optim.averaged_parameters(optim.Optimizer().build([{"params": [parameter], "lr": 0.1}])):
        assert torch.equal(parameter, before)


def test_schedules_follow_their_formulas():
    def factors(name: str, **options) -> list[float]:
        schedule = optim.Schedule(name=name, **options)
        return [schedule.factor(step, 8) for step in range(8)]

    assert factors("constant", warmup_steps=3)[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors("linear") == [1 - step / 8 for step in range(8)]
    assert factors("cosine") == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    assert factors("cosine-restarts", cycles=2) == pytest.approx(factors("cosine")[::2] * 2)
