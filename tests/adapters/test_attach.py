"""Adapters in live models: the mathematics, scales, mixing, fusing, and nothing left behind."""

import copy
import time
from collections.abc import Mapping

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sdlora.adapters import METHODS, attach
from sdlora.adapters.fused import fuse
from sdlora.adapters.lora import Lora
from sdlora.adapters.state import AdapterState, ModuleState, Scale
from sdlora.adapters.targets import GROUPS, adaptable_layers
from sdlora.errors import ConfigError, MismatchError
from tests.support.adapters import (
    adapter_parameters,
    all_equal,
    max_difference,
    outputs,
    reference_delta,
    tiny_networks,
    trained_state,
    with_uneven_ranks,
)


def summed(states: list[tuple[AdapterState, float]]) -> dict[str, nn.Module]:
    """A tiny base with W + Σ scale · alpha / rank · up @ down in its weights, by the definition."""
    models = tiny_networks()
    bases = dict(adaptable_layers(models))
    for state, scale in states:
        for path, module in state.modules.items():
            weight = bases[path].weight.data
            weight += scale * reference_delta(module).reshape(weight.shape)
    return models


@pytest.mark.parametrize("group", GROUPS)
def test_live_adapter_computes_w_plus_alpha_over_rank_up_down(group: str) -> None:
    state, models = with_uneven_ranks(trained_state(targets=group)), tiny_networks()
    attach.load_state(models, state, "a")
    assert max_difference(outputs(models), outputs(summed([(state, 1.0)]))) < 1e-5


@pytest.mark.parametrize("scale", [0.5, 1.7, -1.0])
def test_a_scale_multiplies_the_update(scale: float) -> None:
    state, models = trained_state(targets="linear"), tiny_networks()
    attach.load_state(models, state, "a")
    attach.set_scales(models, {"a": scale})
    assert max_difference(outputs(models), outputs(summed([(state, scale)]))) < 1e-5


def test_scale_0_and_not_named_give_the_base_exactly() -> None:
    models = tiny_networks()
    before = outputs(models)
    attach.load_state(models, trained_state(targets="linear+conv"), "a")
    assert not all_equal(outputs(models), before)
    for scales in ({"a": 0.0}, {}, {"a": {"*": 0}}):
        attach.set_scales(models, scales)
        assert all_equal(outputs(models), before)


def test_two_adapters_mix_as_the_sum_of_their_updates() -> None:
    one, two, models = trained_state(1), with_uneven_ranks(trained_state(2, targets="linear+conv")), tiny_networks()
    attach.load_state(models, one, "one")
    attach.load_state(models, two, "two")
    attach.set_scales(models, {"one": 0.8, "two": -0.3})
    assert max_difference(outputs(models), outputs(summed([(one, 0.8), (two, -0.3)]))) < 1e-5
    assert set(attach.attached_adapters(models)) == {"one", "two"}


def test_scales_by_block() -> None:
    state, models = trained_state(targets="linear"), tiny_networks()
    attach.load_state(models, state, "a")
    attach.set_scales(models, {"a": {"*": 0.5, "unet.up_blocks": 0, "unet.up_blocks.1": 2, "*.attn2.to_k": -1}})

    def expected(path: str) -> float:
        # the longest key that matches counts: unet.up_blocks.1 (16 letters), unet.up_blocks (14), *.attn2.to_k (12)
        if path.startswith("unet.up_blocks."):
            return 2.0 if path.startswith("unet.up_blocks.1.") else 0.0
        return -1.0 if path.endswith(".attn2.to_k") else 0.5

    parts = [(AdapterState("lora", {path: module}), expected(path)) for path, module in state.modules.items()]
    assert max_difference(outputs(models), outputs(summed(parts))) < 1e-5


@pytest.mark.parametrize("group", GROUPS)
def test_each_sample_of_a_batch_has_its_own_scales(group: str) -> None:
    """Make inputs of any layer: 2-D (time embeddings), tokens, feature maps. A doubled batch is two copies."""
    models = tiny_networks()
    attach.load_state(models, trained_state(targets=group), "a")
    attach.load_state(models, with_uneven_ranks(trained_state(2, targets=group)), "b")
    samples: list[Mapping[str, Scale]] = [
        {"a": 0.7}, {"b": {"*": -0.4, "unet.up_blocks": 0.5}}, {"a": 0.7, "b": 1.0}, {"a": 0.0},
    ]  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    latents, text = (torch.randn(shape, generator=draw) for shape in ((8, 4, 8, 8), (8, 77, 16)))
    times, ids = torch.randint(0, 1000, (8,), generator=draw), torch.randint(0, 500, (8, 77), generator=draw)
    with torch.no_grad(), attach.temporary_scales(models, *samples):
        together = models["unet"](latents, times, text).sample, models["text_encoder"](ids)[0]
    for place in range(8):
        one = slice(place, place + 1)
        with torch.no_grad(), attach.temporary_scales(models, samples[place % 4]):
            alone = models["unet"](latents[one], times[one], text[one]).sample, models["text_encoder"](ids[one])[0]
        assert max_difference((together[0][one], together[1][one]), alone) < 1e-5


def test_blocks_that_no_key_names_stay_at_1() -> None:
    state, models = trained_state(), tiny_networks()
    attach.load_state(models, state, "a")
    full = outputs(models)
    attach.set_scales(models, {"a": {"text_encoder": 0}})
    assert torch.equal(outputs(models)[0], full[0])
    assert torch.equal(outputs(models)[1], outputs(tiny_networks())[1])


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"b": 1.0}, "no adapter 'b' is loaded; there are a"),
        ({"a": float("nan")}, "no number to multiply by"),
        ({"a": {"unet.up_blok": 1.0}}, "no such layer; did you mean unet.up_blocks"),
    ],
)
def test_wrong_scales_are_refused_and_change_nothing(scales: Mapping[str, Scale], message: str) -> None:
    models = tiny_networks()
    attach.load_state(models, trained_state(), "a")
    attach.set_scales(models, {"a": 0.5})
    before = outputs(models)
    with pytest.raises(ConfigError, match=message):
        attach.set_scales(models, scales)
    assert all_equal(outputs(models), before)


def test_scales_change_beside_a_training_adapter() -> None:
    models = tiny_networks()
    before = outputs(models)
    trained = Lora(rank=2).attach(models, "training", seed=0).parameters
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_()
    training = outputs(models)
    attach.load_state(models, trained_state(), "other")
    assert all(parameter.requires_grad for parameter in trained)
    attach.set_scales(models, {"training": 1.0})
    assert all_equal(outputs(models), training)
    with attach.temporary_scales(models, {}):
        assert all_equal(outputs(models), before)
    with (
        attach.temporary_scales(models, {"other": 0.5}),
        pytest.raises(ConfigError),
        attach.temporary_scales(models, {"nobody": 1.0}),
    ):
        pass
    assert all_equal(outputs(models), training)
    attach.remove_adapter(models, "other")
    assert all(parameter.requires_grad for parameter in trained)
    assert {id(p) for model in models.values() for p in model.parameters() if p.requires_grad} == set(map(id, trained))
    assert all_equal(outputs(models), training)


@pytest.mark.parametrize("method", METHODS)
def test_a_bare_context_gives_the_base_exactly_as_often_as_it_is_entered(method: str) -> None:
    models = tiny_networks()
    before = outputs(models)
    trained = (
        METHODS[method](targets="ia3" if method == "ia3" else "linear+conv")
        .attach(models, "training", seed=0)
        .parameters
    )
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    training, bare = outputs(models), attach.DisabledAdapters(models)
    assert not all_equal(training, before)
    for _ in range(2):
        with bare:
            assert all_equal(outputs(models), before)
        assert all_equal(outputs(models), training)
    with pytest.raises(ZeroDivisionError), bare:
        1 / 0  # noqa: B018
    assert all_equal(outputs(models), training)
    assert all(parameter.requires_grad for parameter in trained)


def test_state_goes_in_and_comes_out_exactly() -> None:
    state, models = with_uneven_ranks(trained_state(targets="linear+conv")), tiny_networks()
    attach.load_state(models, state, "a")
    again = attach.read_state(models, "a", {"note": "kept"})
    assert again.metadata == {"note": "kept"}
    assert set(again.modules) == set(state.modules)
    for path, module in state.modules.items():
        assert again.modules[path].alpha == module.alpha
        assert all(torch.equal(again.modules[path].tensors[name], module.tensors[name]) for name in ("down", "up"))


def test_loading_leaves_the_state_and_the_global_generator_alone() -> None:
    state, models = trained_state(), tiny_networks()
    copied, before = copy.deepcopy(state), torch.get_rng_state()
    attach.load_state(models, state, "a")
    with torch.no_grad():
        for parameter in adapter_parameters(models, "a"):
            parameter.zero_()
    assert torch.equal(torch.get_rng_state(), before)
    path = next(iter(state.modules))
    assert torch.equal(state.modules[path].tensors["up"], copied.modules[path].tensors["up"])


def test_removing_gives_back_the_very_base() -> None:
    models = tiny_networks()
    keys, before = {name: list(model.state_dict()) for name, model in models.items()}, outputs(models)
    for name, group in (("a", "linear+conv"), ("b", "attention")):
        attach.load_state(models, trained_state(targets=group), name)
    attach.remove_adapter(models, "a")
    attach.set_scales(models, {"b": 0})
    assert all_equal(outputs(models), before)
    attach.remove_adapter(models, "b")
    assert all_equal(outputs(models), before)
    assert {name: list(model.state_dict()) for name, model in models.items()} == keys
    assert not any(isinstance(part, BaseTunerLayer) for model in models.values() for part in model.modules())
    assert not any(hasattr(model, "peft_config") for model in models.values())
    with pytest.raises(ConfigError, match="no adapter 'b' is loaded; there are none"):
        attach.remove_adapter(models, "b")


def changed(state: AdapterState, path: str, **tensors: torch.Tensor) -> AdapterState:
    return AdapterState("lora", {**state.modules, path: ModuleState(tensors, 1.0)})


def misfits() -> dict[str, tuple[AdapterState, str]]:
    state = trained_state(text_encoder=False)
    wide = {
        path: ModuleState({"down": torch.zeros(4, 768), "up": module.tensors["up"]}, 1.0)
        for path, module in state.modules.items()
        if path.endswith("attn2.to_k")
    }
    first = next(iter(state.modules))
    stranger = changed(state, "unet.down_blocks.9.to_q", down=torch.zeros(1, 8), up=torch.zeros(8, 1))
    return {
        "other text width": (
            AdapterState("lora", wide),
            r"768-wide text, the base loaded has 16-wide text.*\(4, 768\)",
        ),
        "missing layer": (
            stranger,
            r"another base.*1 of its 65 layers are not in this one, such as unet.down_blocks.9",
        ),
        "other shape": (
            changed(state, first, down=torch.zeros(2, 8), up=torch.zeros(9, 2)),
            r"\(2, 8\) and \(9, 2\), this one takes \(2, 8\) and \(8, 2\)",
        ),
    }


@pytest.mark.parametrize("case", ["other text width", "missing layer", "other shape"])
def test_an_adapter_of_another_base_is_refused_whole(case: str) -> None:
    models = tiny_networks()
    attach.load_state(models, trained_state(), "kept")
    before = outputs(models)
    state, message = misfits()[case]
    with pytest.raises(MismatchError, match=message):
        attach.load_state(models, state, "a")
    assert attach.attached_adapters(models) == ["kept"]
    assert all_equal(outputs(models), before)


def test_a_failure_in_the_midst_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    models = tiny_networks()
    attach.load_state(models, trained_state(), "kept")
    before, original, text = outputs(models), attach._inject, {*models["text_encoder"].modules()}

    def fails_on_text(parent: nn.Module, *rest: object) -> None:
        original(parent, *rest)  # type: ignore[arg-type]
        if parent in text:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(attach, "_inject", fails_on_text)
    with pytest.raises(torch.OutOfMemoryError):
        attach.load_state(models, trained_state(2), "a")
    assert attach.attached_adapters(models) == ["kept"]
    assert all_equal(outputs(models), before)


def test_one_by_one_projections_fit_in_either_shape() -> None:
    state = trained_state(targets="linear")
    flat = {
        path: ModuleState({name: tensor.flatten(1) for name, tensor in module.tensors.items()}, module.alpha)
        for path, module in state.modules.items()
    }
    results = []
    for given in (state, AdapterState("lora", flat)):
        models = tiny_networks()
        attach.load_state(models, given, "a")
        results.append(outputs(models))
    assert max_difference(*results) == 0


def test_assigning_a_state_keeps_the_parameters_and_takes_its_numbers() -> None:
    state, models = trained_state(alpha=3.0), tiny_networks()
    trained = Lora(rank=4, alpha=8.0).attach(models, "training", seed=9).parameters
    attach.assign_state(models, state, "training")
    assert list(map(id, adapter_parameters(models, "training"))) == list(map(id, trained))
    assert all(parameter.requires_grad for parameter in trained)
    assert max_difference(outputs(models), outputs(summed([(state, 1.0)]))) < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8}, "the file has rank 4, the settings 8; set adapter.rank = 4"),
        ({"targets": "linear"}, "not in the file, such as"),
        ({"text_encoder": False}, "only in the file, such as text_encoder"),
    ],
)
def test_assigning_a_state_that_differs_is_refused(settings: dict[str, object], message: str) -> None:
    models = tiny_networks()
    Lora(**{"rank": 4} | settings).attach(models, "training", seed=9)
    before = attach.read_state(models, "training")
    with pytest.raises(MismatchError, match=message):
        attach.assign_state(models, trained_state(), "training")
    after = attach.read_state(models, "training")
    assert all(torch.equal(after.modules[p].tensors["down"], m.tensors["down"]) for p, m in before.modules.items())


def test_fused_weights_compute_the_same_and_are_restored_bit_for_bit() -> None:
    models = tiny_networks()
    base, weights = outputs(models), copy.deepcopy({name: model.state_dict() for name, model in models.items()})
    for name, group in (("one", "linear+conv"), ("two", "cross-attention")):
        attach.load_state(models, trained_state(targets=group), name)
    scales: dict[str, Scale] = {"one": {"*": 0.7, "text_encoder": 0}, "two": -0.4}
    attach.set_scales(models, scales)
    mixed = outputs(models)
    attach.set_scales(models, {"one": 0.1})
    with fuse(models, scales) as fused:
        assert max_difference(outputs(models), mixed) < 1e-5
        assert not any(isinstance(part, BaseTunerLayer) for model in models.values() for part in model.modules())
        with pytest.raises(RuntimeError, match="fused"):
            attach.set_scales(models, scales)
    fused.restore()
    attach.set_scales(models, scales)
    assert all_equal(outputs(models), mixed)
    attach.remove_adapter(models, "one")
    attach.remove_adapter(models, "two")
    assert all_equal(outputs(models), base)
    assert all(
        torch.equal(model.state_dict()[key], weight)
        for n, model in models.items()
        for key, weight in weights[n].items()
    )


def test_fusing_in_half_precision_rounds_once() -> None:
    state = trained_state(targets="linear")
    models = {name: model.to(torch.bfloat16) for name, model in tiny_networks().items()}
    bases = {path: layer.weight.data.clone() for path, layer in adaptable_layers(models)}
    attach.load_state(models, state, "a")
    with fuse(models, {"a": 0.5}):
        for path, layer in adaptable_layers(models):
            if path in state.modules:
                exact = bases[path].float() + 0.5 * reference_delta(state.modules[path]).reshape(bases[path].shape)
                assert torch.allclose(layer.weight.float(), exact, rtol=2**-8, atol=1e-7)
    assert all(torch.equal(layer.weight, bases[path]) for path, layer in adaptable_layers(models))


def test_modes_follow_the_base() -> None:
    models = tiny_networks()
    models["unet"].train()
    attach.load_state(models, trained_state(), "a")
    for _, layer in attach.attached_layers(models, "a"):
        assert layer.adapter_layer.training == layer.adapter_layer.base_layer.training


def test_scales_change_within_tens_of_milliseconds() -> None:
    models = tiny_networks()
    attach.load_state(models, trained_state(targets="linear+conv"), "a")
    durations = []
    for scale in (0.1, 0.2, 0.3, 0.4, 0.5):
        start = time.thread_time()
        attach.set_scales(models, {"a": scale})
        durations.append(time.thread_time() - start)
    assert min(durations) < 0.1


def test_fusing_nothing_is_undone_as_well() -> None:
    models = tiny_networks()
    before = outputs(models)
    with fuse(models, {}):
        assert all_equal(outputs(models), before)
    attach.load_state(models, trained_state(), "a")
    assert attach.attached_adapters(models) == ["a"]
