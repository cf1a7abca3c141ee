"""Methods made here alone go through the real code: into models, through the loop, into files and back.

One of each kind that trains: layers beside frozen weights, weights of the base, words of a vocabulary; and one whose
ranks change. None of them has a line in the program.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from sdlora import checkpoint
from sdlora.adapters import METHODS, attach
from sdlora.adapters.adapter_layers import AdapterLayer, apply_weights
from sdlora.adapters.fused import fuse
from sdlora.adapters.lora import Lora
from sdlora.adapters.method import AddedLayers, Method
from sdlora.adapters.parametrizations import Parametrization, Tensors
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.adapters.targets import adaptable_layers
from sdlora.adapters.trainable import Trainable, TrainableLayers, TrainablePart
from sdlora.errors import FormatError
from sdlora.formats import export_adapter, read_adapter
from sdlora.formats.header_summary import read_header_summary
from sdlora.formats.inspection import inspect_adapter
from tests.support.adapters import max_difference, outputs, tiny_networks
from tests.support.training import assert_equal_files, train_in_process

WORDS = {"sks": 2, "zwx": None}
"""Words that are taught, and the step at which each ends."""


class OuterProduct(Parametrization):
    """column (out,), row (in · kernel,): ΔW = column ⊗ row."""

    title = "Outer"
    required, leading = (("outer_column",), ("outer_row",)), ("outer_column",)
    flattens_kernel = True

    def unscaled_delta(self, tensors: Tensors) -> torch.Tensor:
        return torch.outer(tensors["outer_column"], tensors["outer_row"])

    def layer_class(self, base: nn.Module) -> type[AdapterLayer]:
        return OuterLayer


class OuterLayer(AdapterLayer):
    adapter_layer_names = ("outer_column", "outer_row")

    def delta_output(self, key: str, x: torch.Tensor, plain: torch.Tensor | None) -> torch.Tensor:
        weight = torch.outer(self.params("outer_column")[key], self.params("outer_row")[key])
        return apply_weights(self.get_base_layer(), x.float(), weight)


class Outer(AddedLayers):
    parametrization: ClassVar[Parametrization] = OuterProduct()
    method: Literal["outer"] = "outer"

    def init_state(self, path: str, base: Any, generator: torch.Generator) -> ModuleState:
        row = torch.randn(base.weight[0].numel(), generator=generator)
        return ModuleState({"outer_column": torch.zeros(len(base.weight)), "outer_row": row})


class Pruned(Lora):
    """A LoRA that gives up its last direction after the first step."""

    method: Literal["pruned"] = "pruned"  # type: ignore[assignment]
    parametrization = None

    def attach(self, models: Mapping[str, nn.Module], name: str, seed: int) -> "PrunedLayers":
        super().attach(models, name, seed)
        return PrunedLayers(models, name, self.lr_multiplier)


class PrunedLayers(TrainableLayers):
    def after_step(self, step: int, steps: int) -> None:
        for _, layer in attach.attached_layers(self.models, self.name):
            layer.tensors["up"][:, -1] = 0

    def state(self, metadata: Mapping[str, str] | None = None) -> AdapterState:
        modules = {}
        for path, module in super().state(metadata).modules.items():
            alive = module.tensors["up"].flatten(1).any(0)
            own = {"down": module.tensors["down"][alive], "up": module.tensors["up"][:, alive]}
            modules[path] = ModuleState(own, module.scale * int(alive.sum()))
        return build_adapter_state({path: module for path, module in modules.items() if module.rank}, metadata)


class Biases(Method):
    method: Literal["biases"] = "biases"

    def attach(self, models: Mapping[str, nn.Module], name: str, seed: int) -> "TrainableBiases":
        return TrainableBiases(models)


class TrainableBiases(Trainable):
    """Biases of the UNet's own layers, exported as whole differences."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__(models)
        for model in models.values():
            model.requires_grad_(False)
        layers = dict(adaptable_layers({"unet": models["unet"]}))
        self.layers: dict[str, Any] = {path: layer for path, layer in layers.items() if layer.bias is not None}
        self.before = {path: layer.bias.detach().clone() for path, layer in self.layers.items()}
        self.calls: list[tuple[str, int]] = []
        for layer in self.layers.values():
            layer.bias.requires_grad_(True)

    def parts(self, rate: Callable[[str], float]) -> list[TrainablePart]:
        return [TrainablePart(path, "bias", layer.bias, rate(path), 0.0) for path, layer in self.layers.items()]

    def penalty(self) -> torch.Tensor:
        self.calls.append(("penalty", len(self.calls)))
        return sum((layer.bias - self.before[path]).square().sum() for path, layer in self.layers.items())

    def before_step(self, step: int, steps: int) -> None:
        assert all(layer.bias.grad is not None for layer in self.layers.values())
        self.calls.append(("before", step))

    def after_step(self, step: int, steps: int) -> None:
        self.calls.append(("after", step))

    def state(self, metadata: Mapping[str, str] | None = None) -> AdapterState:
        modules = {
            path: ModuleState({"diff": torch.zeros_like(layer.weight), "diff_b": layer.bias - self.before[path]})
            for path, layer in self.layers.items()
        }
        return build_adapter_state(
            {path: ModuleState({n: t.detach().clone() for n, t in m.tensors.items()}) for path, m in modules.items()},
            metadata,
        )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        own = {path: layer.bias.data for path, layer in self.layers.items()}
        for path, layer in self.layers.items():
            layer.bias.data = self.before[path]
        yield
        for path, layer in self.layers.items():
            layer.bias.data = own[path]


class Words(Method):
    method: Literal["words"] = "words"

    def attach(self, models: Mapping[str, nn.Module], name: str, seed: int) -> "TrainableWords":
        return TrainableWords(models)


class TrainableWords(Trainable):
    """A vector each for two words, which the text encoder reads at the first positions after the start."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__(models)
        for model in models.values():
            model.requires_grad_(False)
        encoder: Any = models["text_encoder"]
        table = encoder.get_input_embeddings()
        self.vectors = {word: nn.Parameter(torch.full((1, table.embedding_dim), 0.01)) for word in WORDS}
        self.on, self.steps_done = True, torch.zeros(1)
        table.register_forward_hook(self._add)

    def _add(self, table: nn.Module, ids: Any, output: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return output
        added = torch.cat([*self.vectors.values()])
        return output + nn.functional.pad(added, (0, 0, 1, output.shape[1] - len(added) - 1))

    def parts(self, rate: Callable[[str], float]) -> list[TrainablePart]:
        return [
            TrainablePart(f"text_encoder.{word}", "vectors", vector, 1e-2, 0.0, last=WORDS[word])
            for word, vector in self.vectors.items()
        ]

    def after_step(self, step: int, steps: int) -> None:
        self.steps_done += 1

    def extra_state(self) -> dict[str, torch.Tensor]:
        return {"steps_done": self.steps_done}

    def load_extra_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.steps_done.copy_(tensors["steps_done"])

    def state(self, metadata: Mapping[str, str] | None = None) -> AdapterState:
        words = {word: {"text_encoder": vector.detach().clone()} for word, vector in self.vectors.items()}
        return replace(build_adapter_state({}, metadata), words=words)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self.on = False
        yield
        self.on = True


@pytest.fixture
def run(configure, tmp_path):
    """Train a method for some steps in a folder of its own."""

    def go(method: Method, name: str = "run", steps: int = 2, stop_after: int | None = None, **overrides: Any) -> Any:
        config = configure(train__steps=steps, **overrides).model_copy(update={"adapter": method})
        return train_in_process(config, tmp_path / name, stop_after)[2]

    return go


@pytest.fixture
def seen(monkeypatch):
    """What ``attach`` of a method has returned, run by run."""
    found: list[Any] = []

    def watch(method: type[Method]) -> list[Any]:
        own = method.attach
        monkeypatch.setattr(method, "attach", lambda *given: found.append(own(*given)) or found[-1])
        return found

    return watch


def test_a_method_of_one_row_trains_saves_exports_and_loads(run, monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "outer", Outer)
    output = run(Outer(targets="linear+conv"))
    state = read_adapter(output.adapter)
    assert state.method == "outer"
    assert any(float(m.tensors["outer_column"].abs().sum()) > 0 for m in state.modules.values())
    assert (read_header_summary(output.adapter).method, inspect_adapter(output.adapter).method) == ("Outer", "outer")
    export_adapter(state, tmp_path / "again.safetensors", "kohya")
    with pytest.raises(FormatError, match="diffusers' keys have no names for outer"):
        export_adapter(state, tmp_path / "other.safetensors", "diffusers")
    models = tiny_networks()
    before = outputs(models)
    attach.load_state(models, read_adapter(tmp_path / "again.safetensors"), "a")
    live = outputs(models)
    assert max_difference(before, live) > 1e-4
    with fuse(models, {"a": 1.0}):
        assert max_difference(live, outputs(models)) < 1e-4
    attach.remove_adapter(models, "a")
    assert max_difference(before, outputs(models)) == 0


def test_a_method_of_one_row_resumes_exactly(run, monkeypatch):
    monkeypatch.setitem(METHODS, "outer", Outer)
    through = run(Outer(), "through", steps=4)
    run(Outer(), "again", steps=4, stop_after=2)
    assert_equal_files(through.adapter, run(Outer(), "again", steps=4).adapter)


def test_ranks_change_and_what_fell_away_is_not_exported(run):
    through = run(Pruned(rank=4), "through", steps=4)
    ranks = {module.rank for module in read_adapter(through.adapter).modules.values()}
    assert ranks == {3}
    run(Pruned(rank=4), "again", steps=4, stop_after=2)
    assert_equal_files(through.adapter, run(Pruned(rank=4), "again", steps=4).adapter)


def test_biases_of_the_base_train_alone_and_export_as_differences(run, seen):
    found = seen(Biases)
    through = run(Biases(), "through", steps=4)
    [trained] = found
    assert [call for call in trained.calls if call[0] != "penalty"] == [
        (k, n) for n in range(4) for k in ("before", "after")
    ]
    assert sum(call[0] == "penalty" for call in trained.calls) == 4
    state = read_adapter(through.adapter)
    assert state.method == "full"
    assert all(float(m.tensors["diff_b"].abs().sum()) > 0 for m in state.modules.values())
    models = tiny_networks()
    attach.load_state(models, state, "a")
    with torch.no_grad():
        text = torch.zeros(1, 77, 16)
        given = torch.ones(1, 4, 8, 8), torch.tensor([10]), text
        loaded, own = models["unet"](*given).sample, trained.models["unet"].eval()(*given).sample
        assert torch.allclose(loaded, own, atol=1e-5)
        with trained.disabled():
            attach.remove_adapter(models, "a")
            assert torch.allclose(trained.models["unet"](*given).sample, models["unet"](*given).sample, atol=1e-6)
    run(Biases(), "again", steps=4, stop_after=2)


def test_taught_words_train_until_their_last_step_and_are_kept_in_the_state(run, seen):
    found = seen(Words)
    through = run(Words(), "through", steps=4)
    [trained] = found
    states = {step: checkpoint.load(through.states / f"{step:06d}").tensors for step in (2, 4)}
    first, second = ([states[step][f"adapter.{number}"] for step in (2, 4)] for number in (0, 1))
    assert not torch.equal(first[0], torch.full_like(first[0], 0.01))
    assert torch.equal(*first)
    assert not torch.equal(*second)
    assert (float(states[2]["method.steps_done"]), float(states[4]["method.steps_done"])) == (2.0, 4.0)
    assert torch.equal(trained.state().words["zwx"]["text_encoder"], second[1])
    assert not through.adapter.exists()
    run(Words(), "again", steps=4, stop_after=1)
    run(Words(), "again", steps=4)
    for word, vector in trained.vectors.items():
        assert torch.equal(found[-1].vectors[word], vector)


def test_no_adapter_file_holds_taught_words(tmp_path):
    state = AdapterState("lora", {}, words={"sks": {"text_encoder": torch.zeros(1, 4)}})
    with pytest.raises(FormatError, match=r"taught words \(sks\) have no keys"):
        export_adapter(state, tmp_path / "a.safetensors")
