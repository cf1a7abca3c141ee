"""Several LoRAs in one pair of products give what the plain kernel gives, and do no more work for being many."""

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdlora.adapters import METHODS, attach, lora_layer
from sdlora.adapters.lora import Lora
from sdlora.adapters.state import AdapterState, ModuleState
from tests.support.adapters import (
    METHOD_SETTINGS,
    adapter_parameters,
    all_equal,
    max_difference,
    outputs,
    trained_state,
    with_uneven_ranks,
)
from tests.support.adapters import tiny_networks as tiny_sd1
from tests.support.tiny_models import tiny_models

NAMES = ("one", "two", "three")
WAYS = {
    "at scales of their own": [{"one": 0.8, "two": -0.3, "three": 1.7}],
    "by block": [{"one": {"*": 0.5, "unet.up_blocks": 0.0}, "two": {"*.attn2.*": -1.0}, "three": 0.4}],
    "one of them off": [{"one": 0.8, "two": 0.0, "three": 1.7}],
    "at a scale for each sample": [{"one": 0.8, "two": 0.5}, {"two": 0.2, "three": 1.0}],
}


@cache
def adapters(family: str, method: str = "lora") -> tuple[AdapterState, ...]:
    """Three of one family, with numbers in all tensors: of two kinds of targets, and of other ranks in some layers."""
    made = []
    for seed, targets in enumerate(("linear+conv", "attention", "linear"), start=1):
        models = models_of(family)
        kind = METHODS[method if seed == 2 else "lora"]
        kind(**METHOD_SETTINGS[kind.model_fields["method"].default] | {"targets": targets}).attach(
            models, "fresh", seed
        )
        draw = torch.Generator().manual_seed(seed)
        modules = {
            path: ModuleState(
                {k: t + 0.2 * torch.randn(t.shape, generator=draw) for k, t in m.tensors.items()}, m.alpha
            )
            for path, m in attach.read_state(models, "fresh").modules.items()
        }
        state = AdapterState("lora", modules)
        made.append(with_uneven_ranks(state) if seed == 3 else state)
    return tuple(made)


@cache
def _parts(family: str) -> dict[str, nn.Module]:
    return tiny_models(family=family)


def models_of(family: str) -> dict[str, nn.Module]:
    """The components that adapters may adapt, fresh."""
    return {name: copy.deepcopy(part) for name, part in _parts(family).items() if name == "unet" or "text_enc" in name}


@torch.no_grad()
def predicted(models: dict[str, nn.Module]) -> tuple[torch.Tensor, ...]:
    """Return the outputs of all components for fixed inputs of two samples."""
    draw = torch.Generator().manual_seed(0)
    unet = models["unet"]
    config, dtype = unet.config, unet.dtype
    latents, text = (torch.randn(s, generator=draw) for s in ((2, 4, 8, 8), (2, 77, config.cross_attention_dim)))
    ids = torch.randint(0, 500, (2, 77), generator=draw)
    more = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        more = {"text_embeds": torch.randn(2, pooled, generator=draw).to(dtype), "time_ids": torch.full((2, 6), 64.0)}
    seen = unet(latents.to(dtype), torch.tensor([10, 700]), text.to(dtype), added_cond_kwargs=more).sample
    read = [model(ids, output_hidden_states=True).hidden_states[-1] for name, model in models.items() if name != "unet"]
    return seen, *read


def loaded(family: str, method: str = "lora", dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    models = {name: model.to(dtype) for name, model in models_of(family).items()}
    for name, state in zip(NAMES, adapters(family, method), strict=True):
        attach.load_state(models, state, name)
    return models


def stacks(models: dict[str, nn.Module]) -> int:
    """Layers that hold a stacked pair."""
    return sum(getattr(module, "_stacked", None) is not None for model in models.values() for module in model.modules())


def apart(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> float:
    """The largest difference, over the largest value."""
    return max_difference(one, other) / max(float(part.abs().max()) for part in other)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_mixed_adapters_generate_what_the_plain_kernel_does(family, monkeypatch):
    models = loaded(family)
    base = predicted(models_of(family))
    for way, scales in WAYS.items():
        attach.set_scales(models, *scales)
        ours = predicted(models)
        assert (stacks(models) > 0) == (len(scales) == 1), way
        with monkeypatch.context() as plain:
            plain.setattr(lora_layer.LoraAdapterLayer, "_parts", lambda adapter_layer: [])
            theirs = predicted(models)
        assert apart(ours, theirs) < 2e-6 < 1e-2 < apart(ours, base), way


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_other_methods_mix_with_stacked_loras(method, monkeypatch):
    models = loaded("sd1", method)
    attach.set_scales(models, *WAYS["at scales of their own"])
    ours = predicted(models)
    assert stacks(models) > 0
    monkeypatch.setattr(lora_layer.LoraAdapterLayer, "_parts", lambda adapter_layer: [])
    assert apart(ours, predicted(models)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_layer_is_as_near_the_truth_as_the_plain_kernel(dtype, monkeypatch):
    """One layer each, as rounding adds up over layers, against the same in float64."""
    models = loaded("sd1", dtype=dtype)
    attach.set_scales(models, *WAYS["at scales of their own"])
    draw = torch.Generator().manual_seed(0)
    for path, adapter_layer in attach.adapter_layers_in(models):
        base = adapter_layer.get_base_layer()
        shape = (2, base.in_channels, 8, 8) if isinstance(base, nn.Conv2d) else (2, base.in_features)
        x = torch.randn(shape, generator=draw).to(dtype)
        exact = copy.deepcopy(adapter_layer).double()
        with torch.no_grad():
            ours, truth = adapter_layer(x).double(), exact(x.double())
        with monkeypatch.context() as plain, torch.no_grad():
            plain.setattr(lora_layer.LoraAdapterLayer, "_parts", lambda adapter_layer: [])
            theirs = adapter_layer(x).double()
        step = torch.finfo(dtype).eps * truth.abs().max()
        assert (ours - truth).abs().max() <= (theirs - truth).abs().max() + step, path


def test_what_changes_is_noticed_without_being_told():
    """A scale, a tensor in place, another precision: nobody has to say that a kept pair is old."""
    models = loaded("sd1")
    attach.set_scales(models, {"one": 0.8, "two": 0.5, "three": 0.2})
    before = predicted(models)
    for _, adapter_layer in attach.adapter_layers_in(models):
        for key in adapter_layer.scales:
            adapter_layer.scales[key] *= 2.0
    louder = predicted(models)
    assert not all_equal(louder, before)
    with torch.no_grad():
        for parameter in adapter_parameters(models, "two"):
            parameter.mul_(0.5)
    assert not all_equal(predicted(models), louder)
    fresh = loaded("sd1")
    for name in NAMES:
        attach.assign_state(fresh, attach.read_state(models, name), name)
    attach.set_scales(fresh, {"one": 1.6, "two": 1.0, "three": 0.4})
    assert all_equal(predicted(models), predicted(fresh))
    assert {part.dtype for part in predicted({name: model.bfloat16() for name, model in models.items()})} == {
        torch.bfloat16
    }


def test_another_scale_stacks_nothing_anew(monkeypatch):
    models = loaded("sd1")
    attach.set_scales(models, {"one": 0.8, "two": 0.5})
    predicted(models)
    made, stacked = [], lora_layer.stack_pairs
    monkeypatch.setattr(lora_layer, "stack_pairs", lambda *tensors: made.append(1) or stacked(*tensors))
    attach.set_scales(models, {"one": -0.25, "two": 1.5})
    ours = predicted(models)
    assert not made
    fresh = loaded("sd1")
    attach.set_scales(fresh, {"one": -0.25, "two": 1.5})
    assert all_equal(ours, predicted(fresh)) and made


def test_an_adapter_in_training_gets_gradients_and_one_by_itself_draws_as_it_trains():
    models = tiny_sd1()
    parameters = Lora(rank=4, alpha=3.0).attach(models, "training", 0).parameters
    attach.load_state(models, trained_state(), "other")
    alone = tiny_sd1()
    attach.load_state(alone, attach.read_state(models, "training"), "file")
    with attach.temporary_scales(models, {"training": 1.0}):
        assert all_equal(outputs(models), outputs(alone))
    outputs(models)
    assert stacks(models) == stacks(alone) == 0
    models["unet"](torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 77, 16)).sample.sum().backward()
    assert any(parameter.grad is not None for parameter in parameters)


def test_five_adapters_take_as_many_operations_as_two():
    models = tiny_sd1()
    for number in range(5):
        attach.load_state(models, trained_state(number), f"{number}")
    counts = {}
    for many in (2, 5):
        attach.set_scales(models, {f"{number}": 0.5 for number in range(many)})
        outputs(models)  # Stacks them.
        with Operations() as seen:
            outputs(models)
        counts[many] = seen.counts
    assert counts[5] == counts[2]


class Operations(TorchDispatchMode):
    """Counts what is dispatched, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **kwargs or {})
