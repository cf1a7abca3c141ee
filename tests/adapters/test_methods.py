"""Every adapter method in live models: each is what its paper says, and all mix."""

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

from sdlora.adapters import METHODS, adapter_layers, attach
from sdlora.adapters.fused import fuse
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.adapters.targets import adaptable_layers
from sdlora.errors import ConfigError, MismatchError
from tests.support.adapters import (
    METHOD_SETTINGS,
    adapter_parameters,
    all_equal,
    max_difference,
    outputs,
    random_adapter,
    reference_weight,
    tiny_networks,
)

NAMES = tuple(METHODS)
BOTH = pytest.mark.parametrize("method", NAMES)


def folded(*parts: tuple[AdapterState, float]):
    """A base whose weights are W + Σ scale · (W' - W), each W' by its paper."""
    models = tiny_networks()
    for path, layer in adaptable_layers(models):
        weight = layer.weight.data.clone()
        changes = (
            scale * (reference_weight(s.modules[path], weight) - weight) for s, scale in parts if path in s.modules
        )
        layer.weight.data = (weight + sum(changes)).float()
    return models


@BOTH
def test_a_fresh_adapter_leaves_outputs_as_they_are(method):
    models = tiny_networks()
    before = outputs(models)
    METHODS[method](**METHOD_SETTINGS[method] | {"targets": "linear+conv"}).attach(models, "a", 0)
    assert max_difference(outputs(models), before) < (1e-6 if method == "dora" else 1e-12)


@BOTH
def test_only_the_adapter_trains_and_a_step_moves_every_layer(method):
    models = tiny_networks()
    parameters = (
        METHODS[method](**METHOD_SETTINGS[method] | {"targets": "linear+conv"}).attach(models, "a", 0).parameters
    )
    before = outputs(models)
    own = {id(parameter) for parameter in parameters}
    assert all(p.requires_grad == (id(p) in own) for model in models.values() for p in model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for _ in range(2):  # A factor beside one that is zero gets its gradient in the second step.
        draw = torch.Generator().manual_seed(0)
        text = models["text_encoder"](torch.randint(0, 500, (2, 77), generator=draw))[0]
        latents = torch.randn(2, 4, 16, 16, generator=draw)  # The middle sees more than one place.
        models["unet"](latents, torch.tensor([10, 700]), text).sample.square().mean().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
        optimizer.step()
    for path, layer in attach.attached_layers(models, "a"):
        assert any(tensor.grad.abs().max() > 0 for tensor in layer.tensors.values()), path
    assert max_difference(outputs(models), before) > 0


@BOTH
@pytest.mark.parametrize("scale", [1.0, -0.6, 2.5])
def test_it_computes_what_its_paper_says_at_any_scale(method, scale):
    models, state = tiny_networks(), random_adapter(method)
    attach.load_state(models, state, "a")
    attach.set_scales(models, {"a": scale})
    theirs = outputs(folded((state, scale)))
    size = max(float(part.abs().max()) for part in theirs)
    assert max_difference(outputs(models), theirs) < 2e-5 * size
    assert max_difference(outputs(models), outputs(tiny_networks())) > 1e-3


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_it_computes_what_pefts_own_layers_do(method):
    """With PEFT's own initial numbers and its own layers, as ``get_peft_model`` would put them in."""
    configs = {
        "lora": LoraConfig(r=4, lora_alpha=3, init_lora_weights=False),  # type: ignore[arg-type]
        "dora": LoraConfig(r=4, lora_alpha=3, use_dora=True, init_lora_weights=False),  # type: ignore[arg-type]
        "loha": LoHaConfig(r=3, alpha=2, init_weights=False),
        "lokr": LoKrConfig(r=2, alpha=3, decompose_factor=2, init_weights=False),
    }
    config = configs[method]
    models, theirs = tiny_networks(), tiny_networks()
    paths = [path for path, layer in adaptable_layers(models) if path.endswith((".to_k", ".ff.net.2", ".conv1"))]
    unet = theirs["unet"]
    config.target_modules = [path.removeprefix("unet.") for path in paths]
    torch.manual_seed(3)
    inject_adapter_in_model(config, unet, "x")
    modules = {}
    for path in paths:
        adapter_layer = unet.get_submodule(path.removeprefix("unet."))
        if method in ("lora", "dora"):
            tensors = {"down": adapter_layer.lora_A["x"].weight, "up": adapter_layer.lora_B["x"].weight}
            if method == "dora":
                tensors["magnitude"] = adapter_layer.lora_magnitude_vector["x"].weight.flatten() * 1.1
                adapter_layer.lora_magnitude_vector["x"].weight.data *= 1.1
        else:
            tensors = {
                name: getattr(adapter_layer, name)["x"]
                for name in adapter_layer.adapter_layer_names
                if "x" in getattr(adapter_layer, name)
            }
        alpha = 3.0 if method != "loha" else 2.0
        modules[path] = ModuleState({name: tensor.detach() for name, tensor in tensors.items()}, alpha)
        if method == "lokr" and modules[path].rank is None:  # PEFT scales it by alpha / r, LyCORIS by 1.
            adapter_layer.scaling["x"] = 1.0
    attach.load_state(models, build_adapter_state(modules), "a")
    ours, theirs_out = outputs(models)[0], outputs(theirs)[0]
    assert max_difference((ours,), (theirs_out,)) < 2e-5 * float(theirs_out.abs().max())


def test_all_methods_mix_as_the_sum_of_their_updates_in_any_order():
    scales = dict(zip(NAMES, (0.7, -0.4, 0.9, 0.5, 1.3), strict=True))
    theirs = outputs(folded(*((random_adapter(method), scale) for method, scale in scales.items())))
    size = max(float(part.abs().max()) for part in theirs)
    for order in (NAMES, NAMES[::-1], ("ia3", "lora", "loha", "dora", "lokr")):
        models = tiny_networks()
        for method in order:
            attach.load_state(models, random_adapter(method), method)
        attach.set_scales(models, scales)
        assert max_difference(outputs(models), theirs) < 2e-5 * size, order
        with fuse(models, scales):
            assert max_difference(outputs(models), theirs) < 2e-5 * size, order
        before = outputs(tiny_networks())
        for number, method in enumerate(order[1:] + order[:1]):
            assert len(attach.attached_adapters(models)) == len(NAMES) - number
            attach.remove_adapter(models, method)
        assert all_equal(outputs(models), before)
        assert not any("base_layer" in name for model in models.values() for name, _ in model.named_modules())


@BOTH
def test_each_sample_has_its_own_scale(method):
    models = tiny_networks()
    attach.load_state(models, random_adapter(method), "a")
    scales = (0.8, 0.0)
    attach.set_scales(models, *({"a": scale} for scale in scales))
    unet = models["unet"]
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, 16, generator=draw)
    with torch.no_grad():
        both = unet(latents, torch.tensor([10, 700]), text).sample
        for number, scale in enumerate(scales):
            attach.set_scales(models, {"a": scale})
            alone = unet(
                latents[number : number + 1], torch.tensor([[10, 700][number]]), text[number : number + 1]
            ).sample
            assert torch.allclose(both[number : number + 1], alone, atol=1e-5 * float(alone.abs().max()))


@BOTH
def test_a_state_goes_in_and_comes_out_exactly(method):
    models, state = tiny_networks(), random_adapter(method)
    attach.load_state(models, state, "a")
    back = attach.read_state(models, "a")
    assert back.method == method
    assert back.modules.keys() == state.modules.keys()
    for path, module in state.modules.items():
        assert back.modules[path].alpha == module.alpha
        assert back.modules[path].tensors.keys() == module.tensors.keys()
        for name, tensor in module.tensors.items():
            assert torch.equal(back.modules[path].tensors[name].reshape(tensor.shape), tensor)


@BOTH
def test_it_works_over_a_bfloat16_base(method):
    models = {name: model.to(torch.bfloat16) for name, model in tiny_networks().items()}
    rounded = {name: model.float() for name, model in tiny_networks().items()}
    attach.load_state(models, random_adapter(method), "a")
    assert {p.dtype for p in adapter_parameters(models, "a")} == {torch.float32}
    found = outputs(models)
    assert all(part.dtype == torch.bfloat16 for part in found)
    attach.load_state(rounded, random_adapter(method), "a")
    theirs = outputs(rounded)
    for one, other in zip(found, theirs, strict=True):
        assert (one.float() - other).norm() < 0.05 * other.norm()


def test_a_fresh_dora_over_bfloat16_is_the_base_to_the_bit():
    models = {name: model.to(torch.bfloat16) for name, model in tiny_networks().items()}
    before = outputs(models)
    METHODS["dora"](targets="linear+conv").attach(models, "a", 0)
    assert all_equal(outputs(models), before)


def test_a_full_difference_changes_weight_and_bias():
    models, draw = tiny_networks(), torch.Generator().manual_seed(4)
    bases = dict(adaptable_layers(models))
    paths = ["unet.mid_block.attentions.0.proj_in", "unet.mid_block.resnets.0.conv1", "unet.time_embedding.linear_1"]
    modules = {}
    for path in paths:
        weight, bias = bases[path].weight, bases[path].bias
        noise = {"diff": torch.randn(weight.shape, generator=draw), "diff_b": torch.randn(bias.shape, generator=draw)}
        modules[path] = ModuleState(noise)
    state = build_adapter_state(modules)
    assert state.method == "full"
    expected = tiny_networks()
    for path, layer in adaptable_layers(expected):
        if path in modules:
            layer.weight.data += 0.3 * modules[path].tensors["diff"]
            layer.bias.data += 0.3 * modules[path].tensors["diff_b"]
    attach.load_state(models, state, "a")
    attach.set_scales(models, {"a": 0.3})
    assert max_difference(outputs(models), outputs(expected)) < 1e-5
    before = attach.read_state(models, "a")
    with fuse(models, {"a": 0.3}):
        assert max_difference(outputs(models), outputs(expected)) < 1e-5
    attach.set_scales(models, {"a": 1.0})
    assert torch.equal(before.modules[paths[0]].tensors["diff"], modules[paths[0]].tensors["diff"])
    attach.remove_adapter(models, "a")
    assert all_equal(outputs(models), outputs(tiny_networks()))


def test_a_dora_with_its_lengths_by_input_is_served_as_what_it_changes():
    state, draw = random_adapter("dora"), torch.Generator().manual_seed(5)
    bases = dict(adaptable_layers(tiny_networks()))
    path = "unet.mid_block.resnets.0.conv1"
    low = state.modules[path].tensors
    weight = bases[path].weight.double()
    lengths = torch.rand(weight.shape[1], generator=draw) + 0.5
    module = ModuleState({"down": low["down"], "up": low["up"], "input_magnitude": lengths}, 3.0)
    plain = ModuleState({"down": low["down"], "up": low["up"]}, 3.0)
    changed = reference_weight(plain, weight)
    norm = changed.pow(2).sum((0, 2, 3)).sqrt()
    expected = changed * (lengths.double() / norm).view(1, -1, 1, 1)
    models = tiny_networks()
    attach.load_state(models, build_adapter_state({path: module}), "a")
    with fuse(models, {"a": 1.0}):
        assert torch.allclose(dict(adaptable_layers(models))[path].weight.double(), expected, atol=1e-5)


def test_tucker_forms_compute_what_their_tensors_multiply_out_to():
    draw, path = torch.Generator().manual_seed(6), "unet.mid_block.resnets.0.conv1"
    weight = dict(adaptable_layers(tiny_networks()))[path].weight.detach()
    out, inputs = weight.shape[:2]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    r = 3
    cases = {
        "lora": {"down": noise(r, inputs, 1, 1), "mid": noise(r, r, 3, 3), "up": noise(out, r, 1, 1)},
        "loha": {f"hada_w{n}_{s}": noise(r, side) for n in (1, 2) for s, side in (("a", out), ("b", inputs))}
        | {f"hada_t{n}": noise(r, r, 3, 3) for n in (1, 2)},
        "lokr": {
            "lokr_w1": noise(4, 2), "lokr_w2_a": noise(r, out // 4), "lokr_w2_b": noise(r, inputs // 2),
            "lokr_t2": noise(r, r, 3, 3),
        },
    }  # fmt: skip

    def tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Sum over both ranks, by the definition: a (r, out), b (r, in)."""
        total = torch.zeros(a.shape[1], b.shape[1], *core.shape[2:], dtype=torch.float64)
        for p in range(len(a)):
            for q in range(len(b)):
                total += a[p].double()[:, None, None, None] * b[q].double()[None, :, None, None] * core[p, q].double()
        return total

    for method, t in cases.items():
        if method == "lora":
            product = tucker(t["mid"], t["up"].flatten(1).T, t["down"].flatten(1))
        elif method == "loha":
            product = tucker(t["hada_t1"], t["hada_w1_a"], t["hada_w1_b"]) * tucker(
                t["hada_t2"], t["hada_w2_a"], t["hada_w2_b"]
            )
        else:
            product = torch.kron(
                t["lokr_w1"].double()[:, :, None, None], tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
            )
        models = tiny_networks()
        attach.load_state(models, build_adapter_state({path: ModuleState(t, 1.5)}), "a")
        unfused = outputs(models)
        with fuse(models, {"a": 1.0}):
            own = dict(adaptable_layers(models))[path].weight.double()
            assert torch.allclose(own, weight.double() + 1.5 / r * product, atol=1e-4), method
            assert max_difference(outputs(models), unfused) < 1e-4


@pytest.mark.parametrize("method", NAMES)
def test_training_goes_on_from_a_state_and_other_states_are_refused(method):
    models = tiny_networks()
    METHODS[method](**METHOD_SETTINGS[method] | {"targets": "linear"}).attach(models, "training", 9)
    parameters = adapter_parameters(models, "training")
    attach.assign_state(models, random_adapter(method, targets="linear"), "training")
    assert all(one is other for one, other in zip(parameters, adapter_parameters(models, "training"), strict=True))
    other = tiny_networks()
    attach.load_state(other, random_adapter(method, targets="linear"), "a")
    assert all_equal(outputs(models), outputs(other))
    wrong = random_adapter("loha" if method != "loha" else "lora", targets="linear")
    with pytest.raises(MismatchError):
        attach.assign_state(models, wrong, "training")


def test_layers_may_have_ranks_of_their_own():
    models = tiny_networks()
    settings = {
        "rank": 8,
        "alpha": 4.0,
        "ranks": "unet.mid_block=2, *.attn1.*=0, unet.mid_block.attentions.0.proj_in=5",
    }
    METHODS["lora"](**settings, targets="linear").attach(models, "a", 0)
    state = attach.read_state(models, "a")
    ranks = {path: module.rank for path, module in state.modules.items()}
    assert {path for path in ranks if ".attn1." in path} == {
        path
        for path in ranks
        if ".attn1." in path and "mid_block" in path  # unet.mid_block is the longer name
    }
    assert any(".attn1." in path for path in ranks)
    assert {rank for path, rank in ranks.items() if "mid_block" in path} == {2, 5}
    assert ranks["unet.mid_block.attentions.0.proj_in"] == 5
    assert {rank for path, rank in ranks.items() if "mid_block" not in path} == {8}
    assert {module.scale for module in state.modules.values()} == {0.5}
    with pytest.raises(ConfigError, match=r"adapter\.ranks: 'unet.middle' matches no adapted layer"):
        METHODS["lora"](ranks="unet.middle=3").attach(tiny_networks(), "a", 0)


@pytest.mark.parametrize("ranks", ["unet.mid_block", "=4", "unet.mid_block=x", "unet.mid_block=2000", "a=1.5"])
def test_what_gives_no_ranks_is_refused(ranks):
    with pytest.raises(ValueError, match=r"rank|number"):
        METHODS["lora"](ranks=ranks)


def test_a_dora_over_an_output_of_zero_weights_leaves_it_at_zero():
    models = tiny_networks()
    layer = dict(adaptable_layers(models))["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    layer.weight.data[0] = 0
    before = outputs(models)
    METHODS["dora"](targets="linear").attach(models, "a", 0)
    assert max_difference(outputs(models), before) < 1e-6
    with fuse(models, {"a": 1.0}):
        assert max_difference(outputs(models), before) < 1e-5


def test_a_failure_in_the_midst_leaves_no_host_of_any_method(monkeypatch):
    state, models = random_adapter("loha"), tiny_networks()
    real, calls = adapter_layers.AdapterLayer.add_adapter, []

    def fails_on_the_fifth(self, key, module):
        calls.append(key)
        if len(calls) == 5:
            raise torch.OutOfMemoryError
        real(self, key, module)

    monkeypatch.setattr(adapter_layers.AdapterLayer, "add_adapter", fails_on_the_fifth)
    with pytest.raises(torch.OutOfMemoryError):
        attach.load_state(models, state, "a")
    assert attach.attached_adapters(models) == []
    assert not any("base_layer" in name for model in models.values() for name, _ in model.named_modules())


def test_training_does_not_go_on_from_a_kronecker_product_of_another_layout():
    models = tiny_networks()
    METHODS["lokr"](rank=64, factor=2, targets="linear").attach(models, "training", 0)
    state = attach.read_state(models, "training")
    turned = {
        path: ModuleState({name: tensor.reshape(tensor.T.shape) for name, tensor in module.tensors.items()})
        if all(tensor.ndim == 2 for tensor in module.tensors.values())
        and any(tensor.shape != tensor.T.shape for tensor in module.tensors.values())
        else module
        for path, module in state.modules.items()
    }
    with pytest.raises(MismatchError):
        attach.assign_state(models, build_adapter_state(turned), "training")
