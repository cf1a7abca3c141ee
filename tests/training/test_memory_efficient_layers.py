"""Lean layers against the plain ones: the same outputs and gradients, fewer bytes kept."""

import copy
import gc
import weakref
from functools import partial
from itertools import product

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks
from transformers.activations import QuickGELUActivation

from sdlora.adapters import METHODS, attach
from sdlora.training import cpu_matmul, recomputation
from sdlora.training.memory_efficient_layers import EFFICIENT_CLASSES, use_memory_efficient_layers
from tests.support.adapters import METHOD_SETTINGS, adapter_parameters
from tests.support.tiny_models import UNET_CONFIGS, tiny_models

GROUPS = ("attention", "linear+conv", "unet.up_blocks")
CASES = [*product(UNET_CONFIGS, METHODS, ("linear+conv",)), *product(UNET_CONFIGS, ("lora",), GROUPS)]


EXACT = 1e-9
"""For float64; what methods compute in float32 whatever the base's type is the same on both sides."""


def attached(family: str, method: str, targets: str, dtype=torch.float32, **options):
    """A tiny model of ``family`` with an adapter of numbers in training, and its parameters."""
    parts = tiny_models(family=family)
    models = {name: parts[name].to(dtype) for name in parts if name == "unet" or name.startswith("text_encoder")}
    own = METHOD_SETTINGS[method] | {"targets": targets, "text_encoder": "unet" not in targets} | options
    parameters = METHODS[method](**own).attach(models, "a", 0).parameters
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    if dtype == torch.float64:  # The adapter too: rounding then hides no difference.
        for model in models.values():
            model.double()
    for model in models.values():
        model.train()
    return models, parameters


def inputs(family: str, models):
    draw = torch.Generator().manual_seed(3)
    unet, width = models["unet"], models["unet"].config.cross_attention_dim
    added = None
    if family == "sdxl":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * 8
        added = {"text_embeds": torch.randn(2, pooled, generator=draw), "time_ids": torch.full((2, 6), 64.0)}
    ids = torch.randint(1, 300, (2, 77), generator=draw)
    given = torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([300, 700])
    return ids, given, torch.randn(2, 77, width, generator=draw), added


def step(family: str, models, parameters):
    """The outputs of all models, and the gradients of the sum of their squares."""
    ids, (latents, timesteps), text, added = inputs(family, models)
    dtype = models["unet"].dtype
    read = [model(ids).last_hidden_state for name, model in models.items() if name != "unet"]
    predicted = models["unet"](
        latents.to(dtype), timesteps, text.to(dtype), added_cond_kwargs=added, return_dict=False
    )[0]
    outputs = [*read, predicted]
    sum(output.float().square().mean() for output in outputs if output.requires_grad).backward()
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return [output.detach() for output in outputs], gradients


def kept(work, weights=()) -> int:
    """Bytes that ``work()`` keeps for the backward pass, each storage once, ``weights`` not at all."""
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    storages = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storages.values())


def off(ours, theirs) -> float:
    """The largest difference of a tensor, over the largest value in any of them."""
    largest = max(tensor.abs().max().item() for tensor in theirs)
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) / largest


@pytest.mark.parametrize(("family", "method", "targets"), CASES)
def test_outputs_are_the_same_and_gradients_to_rounding(family, method, targets):
    models, parameters = attached(family, method, targets, torch.float64)
    outputs, gradients = step(family, models, parameters)
    use_memory_efficient_layers(models)
    lean_outputs, lean_gradients = step(family, models, parameters)
    assert off(lean_outputs, outputs) <= EXACT
    for ours, theirs in zip(lean_gradients, gradients, strict=True):
        assert (ours is None) == (theirs is None)
    pairs = [(a, b) for a, b in zip(lean_gradients, gradients, strict=True) if b is not None]
    assert off([a for a, _ in pairs], [b for _, b in pairs]) <= EXACT


def test_in_float32_gradients_differ_by_rounding_alone():
    """And not by more where another library multiplies the matrices."""
    models, parameters = attached("sd1", "lora", "linear+conv")
    _, gradients = step("sd1", models, parameters)
    use_memory_efficient_layers(models)
    assert off(step("sd1", models, parameters)[1], gradients) <= 1e-5


@pytest.mark.parametrize("family", UNET_CONFIGS)
def test_checkpointed_layers_give_the_same_gradients(family):
    models, parameters = attached(family, "lora", "attention", torch.float64)
    _, gradients = step(family, models, parameters)
    models["unet"].enable_gradient_checkpointing()
    use_memory_efficient_layers(models)
    _, ours = step(family, models, parameters)
    pairs = [(a, b) for a, b in zip(ours, gradients, strict=True) if b is not None]
    assert off([a for a, _ in pairs], [b for _, b in pairs]) <= EXACT


@pytest.mark.parametrize("targets", ["attention", "linear+conv"])
def test_over_a_bf16_base_gradients_are_as_near_to_float32_as_with_plain_layers(targets):
    def gradients(lean: bool, dtype: torch.dtype):
        models, parameters = attached("sd1", "lora", targets, dtype)
        if lean:
            use_memory_efficient_layers(models)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            return torch.cat([g.flatten() for g in step("sd1", models, parameters)[1] if g is not None])

    true = gradients(False, torch.float32)
    plain, lean = (gradients(lean, torch.bfloat16) for lean in (False, True))
    assert (lean - true).norm() <= 1.25 * (plain - true).norm()


@pytest.mark.parametrize("targets", ["attention", "linear+conv"])
def test_fewer_bytes_are_kept(targets):
    models, _ = attached("sd1", "lora", targets)
    _, given, text, _ = inputs("sd1", models)
    work = partial(models["unet"], *given, text)
    before = kept(work, models["unet"].parameters())
    use_memory_efficient_layers(models)
    assert kept(work, models["unet"].parameters()) < 0.75 * before  # Of the real SD 1.5 it is less: benchmarks.memory.


def test_without_gradients_nothing_changes():
    models, _ = attached("sd1", "lora", "linear+conv")
    lean = copy.deepcopy(models)
    use_memory_efficient_layers(lean)
    _, given, text, _ = inputs("sd1", models)
    with torch.no_grad():
        assert torch.equal(models["unet"](*given, text)[0], lean["unet"](*given, text)[0])
    assert models["unet"].state_dict().keys() == lean["unet"].state_dict().keys()


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {}], ids=["dropout", "a second adapter"])
def test_what_is_more_than_one_lora_goes_the_way_of_plain_layers(options):
    models, parameters = attached("sd1", "lora", "linear+conv", torch.float64, **options)
    if not options:
        other = {path: state for path, state in attach.read_state(models, "a").modules.items() if "attn1" in path}
        attach.attach_modules(models, other, "b")
        for model in models.values():
            model.double()
    torch.manual_seed(4)
    outputs, gradients = step("sd1", models, parameters)
    use_memory_efficient_layers(models)
    torch.manual_seed(4)
    lean_outputs, lean_gradients = step("sd1", models, parameters)
    assert off(lean_outputs, outputs) <= EXACT
    assert off(lean_gradients, gradients) <= EXACT


def test_adapters_that_come_and_go_between_steps_leave_nothing_behind():
    models, _ = attached("sd1", "lora", "linear+conv")
    use_memory_efficient_layers(models)
    _, given, text, _ = inputs("sd1", models)
    state = attach.read_state(models, "a").modules
    for name in "bc":
        attach.attach_modules(models, state, name)
    kept_by = [weakref.ref(parameter) for name in "bc" for parameter in adapter_parameters(models, name)]
    with torch.no_grad(), attach.temporary_scales(models, {"b": 1.0, "c": 0.5}):
        models["unet"](*given, text)
    for name in "bc":
        attach.remove_adapter(models, name)
    gc.collect()
    assert not [reference for reference in kept_by if reference() is not None]


def test_a_tensor_changed_since_its_recipe_was_noted_is_kept_itself():
    norm, down, up = torch.nn.LayerNorm(8), torch.randn(2, 8, requires_grad=True), torch.randn(8, 2, requires_grad=True)
    models = {"unet": torch.nn.Sequential(norm).requires_grad_(False)}
    use_memory_efficient_layers(models)
    gradients = []
    for change in (lambda y: y * 3, lambda y: y.mul_(3)):
        y = change(norm(torch.arange(32.0).view(4, 8).requires_grad_()))
        recomputation.lora_linear(y, torch.eye(8), None, down, up, 1.0).square().sum().backward()
        gradients.append(down.grad.clone())
        down.grad = up.grad = None
    assert torch.equal(*gradients)


@pytest.mark.parametrize("targets", ["attention", "linear+conv"])
def test_in_float16_a_small_update_of_a_small_scale_keeps_its_gradients(targets):
    """alpha = 1 at rank 64, and an update as small as after the first steps: products with it must not be subnormal."""
    x, weight = tensor(2, 6, 5, 4).half().requires_grad_(), tensor(6, 6, 1, 1).half()
    down, up = tensor(64, 6, 1, 1).float().requires_grad_(), (tensor(6, 64, 1, 1) * 1e-4).float().requires_grad_()
    off_from = {}
    for name, dtype in (("half", torch.float16), ("true", torch.float64)):
        own = [part.detach().to(dtype).requires_grad_() for part in (x, weight)]
        learnt = [part.detach().to(torch.float32 if name == "half" else dtype).requires_grad_() for part in (down, up)]
        if targets == "attention":
            rows = own[0].permute(0, 2, 3, 1)
            y = recomputation.lora_linear(
                rows, own[1].detach().flatten(1), None, *(p.flatten(1) for p in learnt), 1 / 64
            )
        else:
            y = recomputation.lora_conv(own[0], own[1].detach(), None, *learnt, 1 / 64, cpu_matmul.POINTS)
        y.sum().backward()
        off_from[name] = learnt[0].grad.double()
    assert (off_from["half"] - off_from["true"]).norm() <= 5e-3 * off_from["true"].norm()


def test_every_kind_of_layer_is_met_in_the_models():
    """Else a library's new name for a layer would cost its bytes again, silently."""
    models, _ = attached("sd1", "lora", "linear+conv")
    use_memory_efficient_layers(models)
    assert set(EFFICIENT_CLASSES.values()) <= {type(module) for model in models.values() for module in model.modules()}


def tensor(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


ACTIVATIONS = {
    "silu": (recomputation.silu, torch.nn.functional.silu),
    "quick gelu": (recomputation.quick_gelu, QuickGELUActivation()),
    "geglu": (recomputation.geglu, lambda x: x.chunk(2, -1)[0] * torch.nn.functional.gelu(x.chunk(2, -1)[1])),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_has_its_derivative(name):
    ours, theirs = ACTIVATIONS[name]
    x = tensor(3, 4, 6).requires_grad_()
    assert torch.equal(ours(x), theirs(x))
    assert gradcheck(ours, (x,))


CONVOLUTIONS = [((1, 1), (1, 1), (1, 1), 3), ((2, 2), (0, 0), (1, 1), 3), ((2, 1), (1, 2), (1, 2), 3)]
"""Stride, padding, dilation and the side of the kernel."""


@pytest.mark.parametrize(("stride", "padding", "dilation", "side"), CONVOLUTIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_frozen_convolution_has_its_derivative(stride, padding, dilation, side, groups):
    x, weight, bias = tensor(2, 4, 7, 8).requires_grad_(), tensor(6, 4 // groups, side, side), tensor(6)
    steps = (stride, padding, dilation)
    assert torch.equal(
        recomputation.frozen_conv(x, weight, bias, steps, groups),
        torch.nn.functional.conv2d(x, weight, bias, *steps, groups),
    )
    assert gradcheck(lambda x: recomputation.frozen_conv(x, weight, bias, steps, groups), (x,))


@pytest.mark.parametrize("bias", [None, tensor(5)], ids=["no bias", "bias"])
def test_a_lora_over_a_linear_layer_has_its_derivatives(bias):
    x, weight, down, up = tensor(2, 3, 4), tensor(5, 4), tensor(2, 4), tensor(5, 2)
    given = [part.requires_grad_() for part in (x, down, up)]
    expected = torch.nn.functional.linear(x, weight + 0.7 * up @ down, bias)
    torch.testing.assert_close(recomputation.lora_linear(x, weight, bias, down, up, 0.7), expected)
    assert gradcheck(lambda x, down, up: recomputation.lora_linear(x, weight, bias, down, up, 0.7), given)


@pytest.mark.parametrize(("stride", "padding", "dilation", "side"), CONVOLUTIONS)
def test_a_lora_over_a_convolution_has_its_derivatives(stride, padding, dilation, side):
    x, weight, bias = tensor(2, 3, 6, 5), tensor(4, 3, side, side), tensor(4)
    down, up, steps = tensor(2, 3, side, side), tensor(4, 2, 1, 1), (stride, padding, dilation)
    given = [part.requires_grad_() for part in (x, down, up)]
    whole = weight + 0.7 * torch.einsum("or,rihw->oihw", up.flatten(1), down)
    expected = torch.nn.functional.conv2d(x, whole, bias, *steps)
    torch.testing.assert_close(recomputation.lora_conv(x, weight, bias, down, up, 0.7, steps), expected)
    assert gradcheck(lambda x, down, up: recomputation.lora_conv(x, weight, bias, down, up, 0.7, steps), given)


SHAPES = [(1, 3, 5), (33, 16, 320), (250, 64, 70), (120, 96, 100)]
"""Rows, inputs, outputs: below and above what is worth a call of oneDNN."""


@pytest.mark.parametrize("onednn", {False, cpu_matmul.THERE})
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_products_are_the_same_by_whatever_library(rows, inputs, outputs, onednn, monkeypatch):
    monkeypatch.setattr(cpu_matmul, "ONEDNN", onednn)
    x, weight, bias = tensor(rows, inputs), tensor(outputs, inputs), tensor(outputs)
    near = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    near(cpu_matmul.linear(x.float(), weight.float(), bias.float()).double(), x @ weight.T + bias)
    y = tensor(rows, outputs)
    near(cpu_matmul.linear(x.T.float(), y.T.float()).double(), x.T @ y)  # As gradients of weights ask for it.
    picture, points = tensor(2, inputs, 4, 3), weight[:, :, None, None]
    expected = torch.nn.functional.conv2d(picture, points, bias)
    given = cpu_matmul.conv(picture.float(), points.float(), bias.float(), cpu_matmul.POINTS)
    near(given.double(), expected)
    gradient = torch.nn.grad.conv2d_input(picture.shape, points, expected)
    near(
        cpu_matmul.conv_input(picture.shape, points.float(), expected.float(), cpu_matmul.POINTS).double(),
        gradient,
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_choice_of_a_library_hangs_on_the_processor_alone():
    """A race's outcome would change from run to run, and with it the bits of a resumed one."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert not cpu_matmul.ONEDNN or (wide and cpu_matmul.THERE)
    x, weight = torch.zeros(1000, 10), torch.zeros(100, 10)
    assert cpu_matmul.uses_onednn(x, weight) == cpu_matmul.ONEDNN
    assert not cpu_matmul.uses_onednn(x[1:], weight)
    assert not cpu_matmul.uses_onednn(x.double(), weight.double())


def test_what_can_be_made_again_is_kept_by_its_source_alone():
    norm, geglu = torch.nn.LayerNorm(8), GEGLU(8, 16)
    models = {"unet": torch.nn.Sequential(norm, geglu).requires_grad_(False)}
    use_memory_efficient_layers(models)
    x = torch.randn(4, 8, requires_grad=True)
    y = norm(x)
    down, up = torch.randn(2, 8, requires_grad=True), torch.zeros(8, 2, requires_grad=True)
    three = kept(lambda: [recomputation.lora_linear(y, torch.eye(8), None, down, up, 1.0) for _ in "qkv"])
    own = down.nbytes + up.nbytes + 3 * torch.eye(8).nbytes + 3 * 4 * 2 * x.itemsize  # Each keeps its (4, rank) too.
    assert three == own + x.nbytes


def test_biases_that_train_keep_their_gradients():
    models, parameters = attached("sd1", "lora", "linear+conv", torch.float64)
    kinds = torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm
    layers = [module for module in models["unet"].modules() if isinstance(module, kinds)]
    biases = [layer.bias.requires_grad_(True) for layer in layers if layer.bias is not None]
    _, gradients = step("sd1", models, [*biases, *parameters])
    use_memory_efficient_layers(models)
    _, efficient = step("sd1", models, [*biases, *parameters])
    trained = [(a, b) for a, b in zip(efficient, gradients, strict=True) if b is not None]
    assert all(gradient is not None for gradient in efficient[: len(biases)])
    assert off([a for a, _ in trained], [b for _, b in trained]) <= EXACT
