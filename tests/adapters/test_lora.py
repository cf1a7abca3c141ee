"""Fresh LoRA layers: what they change (nothing), what trains (they alone), and where their numbers come from."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from sdlora.adapters import METHODS, Adapter, attach
from sdlora.adapters.lora import Lora
from sdlora.adapters.targets import GROUPS
from sdlora.errors import ConfigError
from tests.support.adapters import all_equal, outputs, tiny_networks


@pytest.mark.parametrize("group", GROUPS)
def test_fresh_lora_leaves_outputs_unchanged(group: str) -> None:
    models = tiny_networks()
    before = outputs(models)
    Lora(targets=group).attach(models, "new", seed=0)
    assert all_equal(outputs(models), before)


def test_only_the_adapter_trains_and_gradients_reach_it() -> None:
    models = tiny_networks()
    trained = Lora(rank=2).attach(models, "new", seed=0).parameters
    assert {id(p) for model in models.values() for p in model.parameters() if p.requires_grad} == set(map(id, trained))
    latents, ids = torch.randn(1, 4, 8, 8), torch.ones(1, 77, dtype=torch.long)
    models["unet"](latents, torch.tensor([5]), models["text_encoder"](ids)[0]).sample.square().mean().backward()
    ups = [layer.tensors["up"] for _, layer in attach.attached_layers(models, "new")]
    assert all(up.grad is not None and up.grad.abs().sum() > 0 for up in ups)


def test_adapter_is_float32_over_a_bfloat16_base() -> None:
    models = {name: model.to(torch.bfloat16) for name, model in tiny_networks().items()}
    before = outputs(models)
    trained = Lora(rank=2).attach(models, "new", seed=0).parameters
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert all_equal(outputs(models), before)


def test_down_is_gaussian_of_1_over_rank_and_comes_from_the_seed_alone() -> None:
    states = []
    for seed in (3, 3, 4):
        models = tiny_networks()
        before = torch.get_rng_state()
        Lora(targets="linear", rank=8).attach(models, "new", seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(
            torch.cat([layer.tensors["down"].flatten() for _, layer in attach.attached_layers(models, "new")])
        )
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert states[0].std().item() == pytest.approx(1 / 8, rel=0.02)


def test_dropout_works_while_training_only() -> None:
    models = tiny_networks()
    trained = Lora(dropout=0.5).attach(models, "new", seed=0).parameters
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_()
    assert all_equal(outputs(models), outputs(models))
    models["unet"].train()
    assert not all_equal(outputs(models), outputs(models))


def test_size_counts_layers_parameters_and_their_share() -> None:
    models = tiny_networks()
    base = sum(parameter.numel() for parameter in models["unet"].parameters())
    trained = Lora(rank=2, text_encoder=False).attach(models, "new", seed=0)
    count = sum(parameter.numel() for parameter in trained.parameters)
    assert trained.size == (16 * 4, count, pytest.approx(count / (base + count)))


def test_a_name_is_taken_once() -> None:
    models = tiny_networks()
    Lora().attach(models, "new", seed=0)
    with pytest.raises(ConfigError, match="'new' is already loaded"):
        Lora().attach(models, "new", seed=1)


@pytest.mark.parametrize("name", ["half", "train", "weight", "attn2", "v1.5 final", "空", "a/b", "100%"])
def test_any_name_will_do(name: str) -> None:
    models = tiny_networks()
    Lora(rank=1).attach(models, name, seed=0)
    assert attach.attached_adapters(models) == [name]
    attach.remove_adapter(models, name)
    assert attach.attached_adapters(models) == []


@pytest.mark.parametrize(
    "wrong",
    [{"rank": 0}, {"rank": 1025}, {"alpha": 0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"targets": "atention"}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Lora(**wrong)


@pytest.mark.parametrize("method", METHODS)
def test_the_config_chooses_a_method_by_its_name(method: str) -> None:
    assert type(TypeAdapter(Adapter).validate_python({"method": method})) is METHODS[method]


def test_a_table_without_a_method_is_lora_and_an_unknown_method_is_refused() -> None:
    adapter = TypeAdapter(Adapter)
    assert adapter.validate_python({"rank": 8}) == Lora(rank=8)
    with pytest.raises(ValidationError, match="'lora'"):
        adapter.validate_python({"method": "lora2"})
