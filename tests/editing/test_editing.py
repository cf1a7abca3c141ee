"""Adapters made of adapters and models, held against the sums and singular values that they should have."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from sdlora import editing
from sdlora.adapters import attach
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.adapters.targets import adaptable_layers, select_layers
from sdlora.cli.main import main
from sdlora.editing.layer_spectrum import LayerSpectrum, save_spectrum_plot, spectrum, spectrum_table
from sdlora.editing.low_rank import Cut, factorize_matrix, factorize_product
from sdlora.errors import ConfigError, MismatchError, NonFiniteError
from sdlora.events import Event, Progress
from sdlora.families import meta_model, single_file
from sdlora.families.layer_weights import locate_tensors
from sdlora.families.loading import load_family
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.families.single_file import marked_schedule
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formats import read_adapter, write_adapter
from sdlora.generation.studio import Studio
from tests.support.adapters import random_adapter, reference_delta, reference_weight, tiny_networks
from tests.support.single_file_checkpoints import write_configs, write_single_file
from tests.support.tiny_models import tiny_pipeline
from tests.support.tiny_models import write_tiny_model as base_folder

ALL = ("lora", "dora", "loha", "lokr", "ia3")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The very tiny SD 1.x that ``made`` adapters are for, as a folder."""
    return str(base_folder(tmp_path_factory.mktemp("base") / "sd1", "sd1"))


@pytest.fixture(scope="module")
def weights():
    return {path: layer.weight.detach() for path, layer in adaptable_layers(tiny_networks())}


def changes(state: AdapterState, weights) -> dict[str, torch.Tensor]:
    """ΔW of every layer by the papers."""
    return {path: reference_weight(m, weights[path]) - weights[path].double() for path, m in state.modules.items()}


def test_the_factors_of_a_product_and_of_a_matrix_are_those_of_its_svd():
    up, down = noise(12, 5), noise(5, 30, seed=1)
    u, values, v = torch.linalg.svd(up.double() @ down.double(), full_matrices=False)
    for found in (factorize_product(up, down), factorize_matrix(up @ down), factorize_matrix((up @ down).T)):
        assert torch.allclose(found.values[:5], values[:5], rtol=1e-5)
    found = factorize_product(up, down)
    assert torch.allclose(found.left * found.values @ found.right, u * values @ v, atol=1e-9)


def test_a_cut_keeps_the_best_approximation_and_tells_its_share():
    matrix = noise(20, 30).double()
    values = torch.linalg.svdvals(matrix)
    found = factorize_matrix(matrix)
    for rank in (1, 7, 20):
        module = found.module(Cut(rank=rank).parts(found.values), ())
        assert module.rank == rank
        off = (reference_delta(module).double() - matrix).norm() ** 2
        assert off == pytest.approx(float(values[rank:].square().sum()), rel=1e-4, abs=1e-8)
        assert found.kept(rank) == pytest.approx(float(values[:rank].square().sum() / values.square().sum()))


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999, 1.0])
def test_a_share_of_energy_is_held_by_as_low_a_rank_as_can_be(energy):
    found = factorize_matrix(noise(20, 30))
    count = Cut(energy=energy).parts(found.values)
    assert found.kept(count) >= energy - 1e-12
    assert count == 1 or found.kept(count - 1) < energy
    assert Cut(rank=3, energy=energy).parts(found.values) == min(3, count)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.5}])
def test_a_cut_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="give"):
        Cut(**wrong).check()


def test_nothing_stays_nothing():
    found = factorize_matrix(torch.zeros(4, 6))
    module = found.module(Cut(energy=0.9).parts(found.values), ())
    assert module.rank == 1 and reference_delta(module).abs().max() == 0
    assert found.kept(1) == 1


def test_loras_side_by_side_are_exactly_the_scaled_sum(weights):
    one, two = random_adapter("lora"), random_adapter("lora", seed=2, targets="cross-attention")
    progress: list[tuple[int, int]] = []
    merged = editing.merge([("one", one, 0.7), ("two", two, -0.4)], on_progress=lambda *at: progress.append(at))
    first, second, found = (changes(state, weights) for state in (one, two, merged))
    assert merged.modules.keys() == one.modules.keys()
    for path, change in found.items():
        expected = 0.7 * first[path] - 0.4 * second.get(path, torch.zeros(()))
        assert torch.allclose(change, expected, atol=1e-6 * float(expected.abs().max() + 1))
        assert merged.modules[path].rank == 4 + 4 * (path in second)
    assert progress[-1] == (len(one.modules), len(one.modules))


def test_any_methods_merge_by_their_singular_values(base, weights):
    parts = [(method, random_adapter(method), 0.5 + number / 4) for number, method in enumerate(ALL)]
    merged = editing.merge(parts, Cut(energy=1.0), base)
    found = changes(merged, weights)
    for path, change in found.items():
        expected = sum(
            scale * (reference_weight(s.modules[path], weights[path]) - weights[path].double())
            for _, s, scale in parts if path in s.modules
        )  # fmt: skip
        assert torch.allclose(change, expected, atol=2e-5 * float(expected.abs().max()))
    assert {module.method for module in merged.modules.values()} == {"lora"}
    low = editing.merge(parts, Cut(rank=2), base)
    assert {module.rank for module in low.modules.values()} == {2}
    for path, change in changes(low, weights).items():
        values = torch.linalg.svdvals(found[path].flatten(1))
        off = (change - found[path]).norm()
        assert off == pytest.approx(float(values[2:].square().sum().sqrt()), rel=1e-3, abs=1e-4)


def test_merging_tells_what_it_needs():
    with pytest.raises(ConfigError, match="at least one"):
        editing.merge([])
    with pytest.raises(ConfigError, match=r"loha has no factors .* give a rank"):
        editing.merge([("a", random_adapter("loha"), 1.0)])
    with pytest.raises(ConfigError, match=r"\(IA\)³ changes a weight by what the weight is; name the base"):
        editing.merge([("a", random_adapter("ia3"), 1.0)], Cut(rank=2))
    other = {
        path: ModuleState({"down": noise(2, 999), "up": noise(8, 2)}, 2.0)
        for path in list(random_adapter("lora").modules)[:1]
    }
    with pytest.raises(MismatchError, match="for different bases"):
        editing.merge([("a", random_adapter("lora"), 1.0), ("b", build_adapter_state(other), 1.0)])


def test_a_merged_header_says_what_is_common_and_what_was_merged():
    headers = [
        {"ss_v2": "False", "ss_steps": "10", "modelspec.trigger_phrase": "sks, cat"},
        {"ss_v2": "False", "ss_steps": "20", "modelspec.trigger_phrase": "cat, neon"},
    ]
    parts = [
        (name, AdapterState("lora", random_adapter("lora").modules, header), 0.5)
        for name, header in zip("ab", headers, strict=True)
    ]
    header = editing.merge(parts).metadata
    assert header["ss_v2"] == "False" and "ss_steps" not in header
    assert header["modelspec.trigger_phrase"] == "sks, cat, neon"
    assert json.loads(header["sdlora_merged"]) == [{"name": "a", "scale": 0.5}, {"name": "b", "scale": 0.5}]


@pytest.mark.parametrize("method", ALL)
def test_any_adapter_becomes_a_lora_of_a_lower_rank(method, base, weights):
    state = random_adapter(method)
    whole = editing.resize(state, Cut(energy=1.0), base)
    assert whole.kept == pytest.approx(1.0)
    before = changes(state, weights)
    for path, change in changes(whole.state, weights).items():
        assert torch.allclose(change, before[path], atol=2e-5 * float(before[path].abs().max()))
    low = editing.resize(state, Cut(rank=1), base)
    assert all(module.method == "lora" and module.rank == 1 for module in low.state.modules.values())
    squares = sum(float(change.square().sum()) for change in before.values())
    kept = sum(float(torch.linalg.svdvals(change.flatten(1))[0] ** 2) for change in before.values())
    assert low.kept == pytest.approx(kept / squares, rel=1e-3)


def test_without_a_base_a_lohas_convolutions_keep_their_kernel():
    state = random_adapter("loha")
    resized = editing.resize(state, Cut(rank=2)).state
    models = tiny_networks()
    attach.load_state(models, resized, "a")  # Refuses what does not fit.
    with pytest.raises(ConfigError, match="name the base model"):
        editing.resize(random_adapter("dora"), Cut(rank=2))


def test_what_was_tuned_is_extracted_and_gives_the_tuned_model_back(base, tmp_path):
    adapter = random_adapter("lora", targets="linear")
    path = tmp_path / "a.safetensors"
    write_adapter(adapter, path)
    tuned = editing.bake(base, [("a", path, 0.8)], tmp_path / "tuned", "fp32")
    notices: list[str] = []
    state = editing.extract(base, str(tuned), Cut(rank=4), "linear", notice=notices.append)
    assert state.modules.keys() == adapter.modules.keys() and not notices
    assert state.metadata["ss_v2"] == "False"
    for name, module in state.modules.items():
        expected = 0.8 * reference_delta(adapter.modules[name])
        assert torch.allclose(reference_delta(module).reshape(expected.shape), expected, atol=1e-5)
    part = editing.extract(base, str(tuned), Cut(rank=4), "cross-attention", notice=notices.append)
    assert part.modules.keys() < state.modules.keys()
    energy = {path: float(reference_delta(module).norm() ** 2) for path, module in state.modules.items()}
    share = 1 - sum(energy[path] for path in part.modules) / sum(energy.values())
    left = len(state.modules) - len(part.modules)
    assert f"{left} layers beyond cross-attention differ too, with {share:.0%} of the squared norm" in notices[-1]
    with pytest.raises(ConfigError, match="nothing to extract"):
        editing.extract(base, base, Cut(rank=4))
    unet = editing.extract(base, str(tuned), Cut(rank=1), "cross-attention", text_encoder=False)
    assert {name.split(".")[0] for name in unet.modules} == {"unet"}


def test_layers_that_were_not_tuned_are_left_out_and_told(base, tmp_path):
    path = tmp_path / "a.safetensors"
    write_adapter(random_adapter("lora", targets="cross-attention"), path)
    tuned = editing.bake(base, [("a", path, 1.0)], tmp_path / "tuned", "fp32")
    notices: list[str] = []
    state = editing.extract(base, str(tuned), Cut(rank=4), notice=notices.append)
    assert state.modules.keys() == random_adapter("lora", targets="cross-attention").modules.keys()
    assert "are the same in both models" in notices[0]


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def file_base(request, tmp_path_factory):
    """A single file of each family with the configs of its tiny architecture, and the same model as a folder."""
    folder = tmp_path_factory.mktemp("file")
    pipeline = tiny_pipeline(family=request.param)
    pipeline.save_pretrained(folder / "folder")
    configs = write_configs(folder / "configs", tiny_pipeline(family=request.param))
    return (
        request.param,
        write_single_file(folder / "model.safetensors", request.param, pipeline),
        folder / "folder",
        configs,
    )


@pytest.fixture
def own_configs(file_base, monkeypatch):
    for module in (single_file, meta_model):
        monkeypatch.setattr(module, "config_folder", lambda family, prediction_type="auto": file_base[3])


def test_every_layer_is_found_in_a_folder_and_in_a_single_file(file_base, own_configs):
    _, file, folder, _ = file_base
    models = build_meta_model(str(folder)).models
    paths = select_layers(models, "linear+conv")
    one, other = locate_tensors(str(folder), paths), locate_tensors(str(file), paths)
    truth = dict(adaptable_layers(load_family(Model(base=str(folder))).models))
    assert len(paths) > 50
    for path in paths:
        assert torch.equal(one[path].read(), truth[path].weight), path
        assert torch.equal(other[path].read().reshape(truth[path].weight.shape), truth[path].weight), path


def test_a_single_file_is_baked_tensor_by_tensor(file_base, own_configs, tmp_path):
    _, file, folder, _ = file_base
    models = load_family(Model(base=str(folder))).models
    draw = torch.Generator().manual_seed(2)
    paths = select_layers(models, "linear+conv")
    bases = dict(adaptable_layers(models))
    modules = {}
    for path in paths:
        weight = bases[path].weight
        shape = (3, *weight.shape[1:])
        up = (len(weight), 3, *[1] * (weight.ndim - 2))
        tensors = {"down": torch.randn(shape, generator=draw) * 0.1, "up": torch.randn(up, generator=draw) * 0.1}
        modules[path] = ModuleState(tensors, 3.0)
    adapter = tmp_path / "a.safetensors"
    write_adapter(build_adapter_state(modules), adapter)
    events: list[Event] = []
    made_file = editing.bake(str(file), [("a", adapter, 0.5)], tmp_path / "baked.safetensors", "fp32", events.append)
    with safe_open(file, "pt") as before, safe_open(made_file, "pt") as after:
        order = [key for key in read_safetensors_header(made_file) if key != "__metadata__"]
        assert order == [key for key in read_safetensors_header(file) if key != "__metadata__"]
        assert isinstance(events[-1], Progress)
        assert events[-1].done == events[-1].total == len(list(before.keys()))
        changed = {key for key in before.keys() if not torch.equal(before.get_tensor(key), after.get_tensor(key))}  # noqa: SIM118
        assert json.loads(after.metadata()["sdlora_merged"]) == [{"name": "a", "scale": 0.5}]
    found = locate_tensors(str(made_file), paths)
    assert changed == {place.key for place in found.values()}
    for path in paths:
        weight = bases[path].weight.detach()
        expected = weight + 0.5 * reference_delta(modules[path]).reshape(weight.shape)
        assert torch.allclose(found[path].read().reshape(weight.shape), expected, atol=1e-6), path


def test_baking_a_file_in_half_precision_rounds_once_and_halves_it(file_base, own_configs, tmp_path):
    _, file, folder, _ = file_base
    models = load_family(Model(base=str(folder))).models
    path = select_layers(models, "*.attn2.to_k")[0]
    weight = dict(adaptable_layers(models))[path].weight.detach()
    module = ModuleState({"down": noise(2, weight.shape[1]), "up": noise(len(weight), 2)}, 2.0)
    write_adapter(build_adapter_state({path: module}), tmp_path / "a.safetensors")
    baked = editing.bake(str(file), [("a", tmp_path / "a.safetensors", 1.0)], tmp_path / "b.safetensors", "fp16")
    exact = (weight + reference_delta(module)).half()
    assert torch.equal(locate_tensors(str(baked), [path])[path].read(), exact)
    assert baked.stat().st_size < 0.6 * file.stat().st_size


def test_a_baked_file_says_what_was_said_of_its_base_and_who_was_trained_otherwise(
    file_base, own_configs, tmp_path, monkeypatch
):
    """``v_pred`` and ``ztsnr``: tensors that hold nothing, by whose names ComfyUI and this program know."""
    _, file, _, _ = file_base
    velocity = {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}
    path = select_layers(build_meta_model(str(file)).models, "*.attn2.to_k")[0]
    shape = dict(adaptable_layers(build_meta_model(str(file)).models))[path].weight.shape
    module = ModuleState({"down": noise(2, shape[1]), "up": noise(shape[0], 2)}, 2.0)
    write_adapter(build_adapter_state({path: module}, velocity), tmp_path / "a.safetensors")
    adapters = [("fast", tmp_path / "a.safetensors", 1.0)]
    with pytest.warns(UserWarning, match="adapter 'fast' was trained with .*zero_terminal_snr on"):
        plain = editing.bake(str(file), adapters, tmp_path / "plain.safetensors")
    overridden = Model(base=str(file), prediction_type="v_prediction", zero_terminal_snr="on")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        baked = editing.bake(overridden, adapters, tmp_path / "baked.safetensors")
        undone = Model(base=str(baked), prediction_type="epsilon", zero_terminal_snr="off")
        twice = editing.bake(undone, adapters, tmp_path / "twice.safetensors")
        editing.bake(str(baked), adapters, tmp_path / "again.safetensors")
    assert marked_schedule(plain) == marked_schedule(file) == marked_schedule(twice) == {}
    assert marked_schedule(baked) == marked_schedule(tmp_path / "again.safetensors") == overridden.schedule
    with safe_open(baked, "pt") as found:
        assert found.get_tensor("v_pred").numel() == 0


def test_baking_refuses_what_it_cannot_write(base, file_base, own_configs, tmp_path):
    _, file, _, _ = file_base
    path = tmp_path / "a.safetensors"
    write_adapter(random_adapter("lora"), path)
    with pytest.raises(ConfigError, match="is no single file"):
        editing.bake(base, [("a", path, 1.0)], tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="exists already"):
        editing.bake(str(file), [("a", path, 1.0)], path)
    wrong = {"unet.mid_block.attentions.0.proj_in": ModuleState({"down": noise(2, 999), "up": noise(9, 2)}, 1.0)}
    write_adapter(build_adapter_state(wrong), tmp_path / "w.safetensors")
    with pytest.raises(MismatchError):
        editing.bake(str(file), [("w", tmp_path / "w.safetensors", 1.0)], tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_layers_are_described_by_their_singular_values(weights):
    values = torch.tensor([4.0, 2.0, 1.0])
    up, down = torch.linalg.qr(noise(8, 3))[0] * values, torch.linalg.qr(noise(16, 3, seed=1))[0].T
    path = "unet.mid_block.attentions.0.proj_in"
    [layer] = spectrum(build_adapter_state({path: ModuleState({"down": down, "up": up}, 1.5)}))
    assert layer.values == pytest.approx([2.0, 1.0, 0.5], rel=1e-5)
    assert layer.norm == pytest.approx((4 + 1 + 0.25) ** 0.5, rel=1e-6)
    shares = np.array([4, 2, 1]) / 7
    assert layer.effective == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert layer.needed == 2  # 5 of 5.25 is over 95 %
    assert path in next(line for line in spectrum_table([layer]) if "layer" not in line or path in line)


def test_a_plot_shows_every_layer(tmp_path):
    layers = [
        LayerSpectrum(f"unet.a.{n}", "lora", 4, 4.0, float(n + 1), (1.0, 0.5, 0.1, 0.01), 2.0, 2) for n in range(30)
    ]
    picture = np.asarray(Image.open(save_spectrum_plot(layers, tmp_path / "p.png")).convert("RGB")).astype(int)
    assert picture.shape[1] == 1200
    blue = (picture[56:277, :, 2] - picture[56:277, :, 0] > 60).sum(0)  # The bars alone.
    assert blue[1100:1180].mean() > 5 * blue[80:160].mean() > 0  # The last bar is the highest, the first is seen.


def test_the_commands_make_what_they_say(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SDLORA_DATA_DIR", str(tmp_path / "data"))
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    write_adapter(random_adapter("lora"), one)
    write_adapter(random_adapter("loha", seed=2), two)

    def run(*arguments: str) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    out = run(
        "merge", "--adapter", f"{one}:0.5", "--adapter", two, "--rank", "3", "--output", tmp_path / "m.safetensors"
    )
    assert "layers" in out and "max |ΔW| error" in out
    merged = read_adapter(tmp_path / "m.safetensors")
    assert {module.rank for module in merged.modules.values()} == {3}
    assert merged.metadata["ss_output_name"] == "m"
    out = run("merge", "--adapter", one, "--adapter", one, "--method", "orthogonal", "--protect", "1", "--output",
              tmp_path / "o.safetensors")  # fmt: skip
    assert (
        '"method": "orthogonal", "protect": 1.0'
        in read_adapter(tmp_path / "o.safetensors").metadata["sdlora_merge_method"]
    )
    out = run("overlap", one, tmp_path / "o.safetensors", "--layers")
    assert "nearly the same change" in out and "mid_block" in out and "written" in out
    assert "of the energy is kept" in run("resize", two, "--energy", "0.9", "--output", tmp_path / "r.safetensors")
    run("bake", "--base", base, "--adapter", one, "--dtype", "fp32", "--output", tmp_path / "baked")
    run("extract", "--base", base, "--tuned", tmp_path / "baked", "--rank", "4", "--output", tmp_path / "e.safetensors")
    run("convert", one, "--format", "diffusers", "--output", tmp_path / "d.safetensors")
    run("convert", one, two, "--format", "peft", "--output", tmp_path / "many")
    assert {path.name for path in (tmp_path / "many").iterdir()} == {"one", "two"}
    out = run("inspect", tmp_path / "m.safetensors", "--base", base, "--layers", "--plot", tmp_path / "p.png")
    assert "effective" in out and "layers match" in out and (tmp_path / "p.png").exists()

    studio = Studio(base, device="cpu")
    studio.add_adapter("one", one)
    generated = np.asarray(studio.generate("a red house", steps=2, seed=3)[0], int)
    again = Studio(base, device="cpu")
    again.add_adapter("one", tmp_path / "many" / "one")
    assert np.array_equal(generated, np.asarray(again.generate("a red house", steps=2, seed=3)[0], int))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resize", "{one}", "--output", "{new}"], "say how much to keep"),
        (["resize", "{one}", "--rank", "2", "--output", "{one}"], "exists already"),
        (["merge", "--adapter", "nowhere", "--output", "{new}"], "nowhere"),
        (["extract", "--base", "pocket", "--tuned", "no/such/one", "--rank", "2", "--output", "{new}"], "'no/such/one"),
        (["bake", "--base", "pocket", "--adapter", "{one}", "--output", "{new}"], "is no single file"),
        (["merge", "--adapter", "{one}", "--method", "ties", "--output", "{new}"], "ties: its result fills every rank"),
        (["merge", "--adapter", "{one}", "--density", "0.5", "--output", "{new}"], "density: sum has no density"),
        (["overlap", "{one}"], "at least two adapters"),
        (["merge", "--adapter", "{one}:nan", "--output", "{new}"], "nan is no scale"),
        (["merge", "--adapter", "{one}", "--output", "{new}x"], "give it the ending .safetensors"),
        (["convert", "{one}", "--format", "peft", "--output", "{new}"], "leave the ending out"),
        (["inspect", "{one}", "--plot", "{new}"], "give it the ending .png"),
        (["extract", "--base", "pocket", "--tuned", "pocket", "--rank", "2", "--targets", "foo", "--output", "{new}"],
         "'foo' is no group"),
    ],
)  # fmt: skip
def test_a_command_says_in_one_sentence_what_is_wrong(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SDLORA_DATA_DIR", str(tmp_path / "data"))
    one = tmp_path / "one.safetensors"
    save_file(
        {
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 8),
            "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(8, 2),
        },
        one,
    )
    code = main([text.format(one=one, new=tmp_path / "new.safetensors") for text in arguments])
    error = capsys.readouterr().err
    assert code != 0 and message in error
    assert not (tmp_path / "new.safetensors").exists()


def test_weights_are_those_that_diffusers_loads_not_a_variant_beside_them(base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    unet = folder / "unet"
    [file] = unet.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        other = {key: opened.get_tensor(key) + 1 for key in opened.keys()}  # noqa: SIM118
    for name in ("diffusion_pytorch_model.non_ema", "diffusion_pytorch_model.fp16"):
        save_file(other, unet / f"{name}.safetensors")
    path = "unet.mid_block.attentions.0.proj_in"
    assert torch.equal(locate_tensors(str(folder), [path])[path].read(), locate_tensors(base, [path])[path].read())


def test_a_model_that_was_only_rounded_gives_nothing_to_extract(base, tmp_path):
    rounded = tmp_path / "rounded"
    shutil.copytree(base, rounded)
    for file in (*rounded.glob("unet/*.safetensors"), *rounded.glob("text_encoder/*.safetensors")):
        with safe_open(file, "pt") as opened:
            half = {key: opened.get_tensor(key).half() for key in opened.keys()}  # noqa: SIM118
        save_file(half, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="nothing to extract"):
        editing.extract(base, str(rounded), Cut(rank=4))


def test_what_is_not_finite_is_refused_and_nothing_is_written(base, file_base, own_configs, tmp_path):
    _, file, folder, _ = file_base
    path = select_layers(build_meta_model(str(folder)).models, "*.attn2.to_k")[0]
    width = locate_tensors(str(file), [path])[path].read().shape
    adapter = tmp_path / "a.safetensors"
    write_adapter(
        build_adapter_state({path: ModuleState({"down": noise(2, width[1]), "up": noise(width[0], 2)}, 2.0)}), adapter
    )
    for source, output in ((str(file), "m.safetensors"), (str(folder), "m")):
        with pytest.raises(NonFiniteError, match="nothing is written"):
            editing.bake(source, [("a", adapter, 1e30)], tmp_path / output, "fp16")
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.safetensors").exists()
    with pytest.raises(NonFiniteError, match="not finite"):
        editing.merge([("a", random_adapter("lora"), float("nan"))], Cut(rank=1))


def test_a_bias_is_not_dropped_in_silence():
    path = "unet.mid_block.resnets.0.conv1"
    state = build_adapter_state({path: ModuleState({"diff": noise(16, 16, 3, 3), "diff_b": noise(16)})})
    with pytest.raises(ConfigError, match="changes the bias too"):
        editing.resize(state, Cut(rank=2))


def test_a_base_that_does_not_fit_is_refused_before_anything_is_computed(tmp_path):
    other = str(base_folder(tmp_path / "sdxl", "sdxl"))
    with pytest.raises(MismatchError):
        editing.resize(random_adapter("dora", targets="linear"), Cut(rank=2), other)


def test_adapters_of_other_outputs_do_not_merge():
    path = "unet.mid_block.attentions.0.proj_in"
    one, two = (
        build_adapter_state({path: ModuleState({"down": noise(2, 8), "up": noise(out, 2)}, 2.0)}) for out in (8, 16)
    )
    with pytest.raises(MismatchError, match=r"gives 16 numbers .* 8: they are for different bases"):
        editing.merge([("a", one, 1.0), ("b", two, 1.0)])
