"""Modules that open when they are read: cast, moved, and only then."""

import pytest
import torch
from torch import nn

from sdlora.families.lazy_modules import LazyModules
from sdlora.families.loading import load_family
from sdlora.families.settings import Model


@pytest.fixture
def modules():
    parts = {name: nn.Linear(3, 5).half() for name in ("unet", "text_encoder", "vae")}
    return LazyModules(parts, {"unet": torch.bfloat16, "vae": torch.float32})


def dtype(module):
    return module.weight.dtype


def test_a_closed_module_opens_when_it_is_read(modules):
    assert dtype(modules.peek("unet")) == torch.float16
    assert dtype(modules["unet"]) == torch.bfloat16
    assert dtype(modules.peek("vae")) == torch.float16
    modules.open()
    assert [dtype(module) for module in modules.values()] == [torch.bfloat16, torch.float16, torch.float32]


def test_names_are_told_without_opening(modules):
    assert list(modules) == ["unet", "text_encoder", "vae"] and len(modules) == 3 and "unet" in modules
    assert modules.closed_bytes == (2 + 4) * (3 * 5 + 5)


def test_a_view_shares_what_is_open(modules):
    view = modules.without("vae")
    assert list(view) == ["unet", "text_encoder"]
    assert view["unet"] is modules["unet"]
    assert modules.closed_bytes == 4 * (3 * 5 + 5)
    with pytest.raises(KeyError):
        view["vae"]


def test_a_closed_module_opens_where_it_was_placed(modules):
    modules.place("unet", "meta")
    assert dtype(modules.peek("unet")) == torch.float16 and modules.peek("unet").weight.device.type == "cpu"
    assert modules.device_of("unet").type == "meta"
    assert (modules["unet"].weight.device.type, dtype(modules["unet"])) == ("meta", torch.bfloat16)
    modules.place("unet", dtype=torch.float64)
    assert (modules["unet"].weight.device.type, dtype(modules["unet"])) == ("meta", torch.float64)


def test_a_module_that_does_not_fit_stays_closed(modules, monkeypatch):
    def full(*to, **named):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as short:
        short.setattr(nn.Module, "to", full)
        with pytest.raises(torch.OutOfMemoryError):
            modules["unet"]
    assert modules.closed_bytes == (2 + 4) * (3 * 5 + 5)
    assert dtype(modules["unet"]) == torch.bfloat16


def test_what_has_moved_of_a_module_that_does_not_fit_goes_back(modules, monkeypatch):
    calls = []

    def to(module, *device, **placement):
        calls.append((device, placement))
        if placement:
            raise torch.OutOfMemoryError

    modules.place("unet", "cuda")
    with monkeypatch.context() as short, pytest.raises(torch.OutOfMemoryError):
        short.setattr(nn.Module, "to", to)
        modules["unet"]
    assert calls == [((), {"device": "cuda", "dtype": torch.bfloat16}), (("cpu",), {})]


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_a_base_that_is_opened_late_has_the_same_bits(tiny_base, narrow, caplog):
    at_once, late = (load_family(Model(base=str(tiny_base)), narrow) for _ in range(2))
    at_once.modules.open()
    at_once.to(dtype=narrow)
    caplog.clear()
    late.to("cpu", narrow)
    for name, module in late.modules.items():
        expected = at_once.modules[name].state_dict()
        for key, tensor in module.state_dict().items():
            assert tensor.dtype == expected[key].dtype and torch.equal(tensor, expected[key]), key
    assert caplog.messages == []  # diffusers warns of its modules that are cast.
    assert late.fingerprint == load_family(Model(base=str(tiny_base))).fingerprint
