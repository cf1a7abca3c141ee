"""Every method in every format that can hold it: exact round trips, and the same updates by an independent reading."""

import json
from itertools import product

import peft as peft_library
import pytest
import torch
from peft.tuners.lokr.layer import factorization
from safetensors import safe_open
from safetensors.torch import save_file

from sdlora.adapters import METHODS, attach
from sdlora.adapters.fused import fuse
from sdlora.adapters.lycoris import kronecker_factors
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.adapters.targets import adaptable_layers, classic_prefix
from sdlora.errors import ConfigError, FormatError
from sdlora.families.sgm_names import to_sgm
from sdlora.formats import export_adapter, inspect_adapter, read_adapter, storage, write_adapter
from sdlora.formats.header_summary import read_header_summary
from sdlora.formats.storage import WRITTEN
from tests.support import reference_formulas
from tests.support.adapters import METHOD_SETTINGS, max_difference
from tests.support.tiny_models import SECOND_TEXT_WIDTH, UNET_CONFIGS, tiny_models

FAMILIES = tuple(UNET_CONFIGS)
HELD = {
    "kohya": (*METHODS, "full"),
    "diffusers": ("lora", "dora"),
    "peft": tuple(METHODS),
}
"""Methods that a format can hold."""
CASES = [(format, method, family) for format, methods in HELD.items() for method in methods for family in FAMILIES]
ALL, SOME = "linear+conv", "unet.down_blocks.1,unet.mid_block,text_encoder*"
"""Layers get their names whatever the method: LoRA shows all, the other methods one block of each kind."""
WITHOUT_BIAS = "unet.mid_block.*.to_[qkv],unet.down_blocks.1.*.to_[qkv],*.ff.net.2"
"""Layers of (IA)³ in PEFT's folders: where no bias is scaled with it."""


def base_of(family: str) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in tiny_models(family=family).items() if isinstance(part, torch.nn.Module)}


def models_of(family: str) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in base_of(family).items() if name == "unet" or name.startswith("text_encoder")}


def state_for(method: str, family: str, format: str = "kohya") -> AdapterState:
    """An adapter with numbers in all of its tensors, for every kind of layer that the format can hold."""
    models, draw = models_of(family), torch.Generator().manual_seed(1)
    if method == "full":
        kept = ("unet.mid_block.attentions.0.proj_in", "unet.mid_block.resnets.0.conv1")
        bases = {path: layer for path, layer in adaptable_layers(models) if path in kept or path.endswith(".fc1")}
        shapes = {path: {"diff": layer.weight.shape, "diff_b": layer.bias.shape} for path, layer in bases.items()}
        return build_adapter_state(
            {
                path: ModuleState({n: torch.randn(s, generator=draw) for n, s in own.items()})
                for path, own in shapes.items()
            },
            {"ss_sd_model_name": "tiny"},
        )
    targets = ALL if method == "lora" else WITHOUT_BIAS if (method, format) == ("ia3", "peft") else SOME
    METHODS[method](**METHOD_SETTINGS[method] | {"targets": targets}).attach(models, "a", 0)
    modules = {
        path: ModuleState({n: t + torch.randn(t.shape, generator=draw) * 0.2 for n, t in m.tensors.items()}, m.alpha)
        for path, m in attach.read_state(models, "a").modules.items()
    }
    return AdapterState(method, modules, {"ss_sd_model_name": "tiny"})


def same(one: AdapterState, other: AdapterState, tolerance: float = 0.0) -> None:
    assert one.method == other.method
    assert one.modules.keys() == other.modules.keys()
    for path, module in one.modules.items():
        theirs = other.modules[path]
        assert module.scale == pytest.approx(theirs.scale, rel=1e-12), path
        assert module.tensors.keys() == theirs.tensors.keys()
        for name, tensor in module.tensors.items():
            assert (tensor - theirs.tensors[name].reshape(tensor.shape)).abs().max() <= tolerance, (path, name)


def place(folder, format):
    return folder / ("peft" if format == "peft" else "a.safetensors")


@pytest.mark.parametrize(("format", "method", "family"), CASES)
def test_a_round_trip_is_exact_and_an_independent_reading_agrees(format, method, family, tmp_path):
    state, path = state_for(method, family, format), place(tmp_path, format)
    proof = export_adapter(state, path, format)
    assert (proof.layers, proof.keys) == (len(state.modules), sum(len(m.tensors) for m in state.modules.values()))
    assert proof.error <= 1e-5 * proof.largest
    back = read_adapter(path)
    # (IA)³ in PEFT's folders is 1 + the difference: rounded once.
    same(back, state, tolerance=2**-23 if (format, method) == ("peft", "ia3") else 0.0)
    assert back.metadata["ss_sd_model_name"] == "tiny"
    assert inspect_adapter(path).method == method

    models = models_of(family)
    weights = {path: layer.weight.detach().clone() for path, layer in adaptable_layers(models)}
    attach.load_state(models, back, "a")
    with fuse(models, {"a": 0.7}):
        ours = {path: layer.weight.detach().double() for path, layer in adaptable_layers(models)}
    theirs = independent(format, path, models, weights)
    assert theirs.keys() == state.modules.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() <= 2e-5 * weight.abs().max(), name


def test_an_exported_dora_says_where_its_keys_are_read_otherwise(tmp_path):
    state = state_for("dora", "sd1")
    text = {format: export_adapter(state, place(tmp_path / format, format), format) for format in WRITTEN}
    assert "ComfyUI and Forge read a DoRA's lengths differently" in str(text.pop("kohya"))
    assert not any(proof.advice for proof in text.values())
    assert not export_adapter(state_for("lora", "sd1"), place(tmp_path, "kohya")).advice


def independent(format, path, models, weights):
    """W' of each layer at scale 0.7, as ``tests.support.reference_formulas`` reads the file."""
    if format == "kohya":
        stems = {name: stem_of(name, "text_encoder_2" in models) for name in weights}
        names = {stem: name for name, stem in stems.items()}
        return {names[stem]: w for stem, w in reference_formulas.kohya(path, weights, stems, 0.7).items()}
    if format == "diffusers":
        # Files spell text encoders with text_model, as the state does.
        return reference_formulas.diffusers(path, weights, 0.7)
    bare = {c: classic_prefix(model) for c, model in models.items()}
    own = {
        name.replace(f".{bare[name.split('.')[0]]}", ".", 1) if bare[name.split(".")[0]] else name: name
        for name in weights
    }
    return {
        own[name]: w for name, w in reference_formulas.peft(path, {o: weights[n] for o, n in own.items()}, 0.7).items()
    }


def stem_of(name: str, sdxl: bool) -> str:
    component, _, rest = name.partition(".")
    if component == "unet":
        return "lora_unet_" + ((to_sgm(rest) or rest) if sdxl else rest).replace(".", "_")
    prefix = {"text_encoder": "lora_te1" if sdxl else "lora_te", "text_encoder_2": "lora_te2"}[component]
    return f"{prefix}_{rest.replace('.', '_')}"


@pytest.mark.parametrize(
    ("format", "method"), [(f, m) for f, m in product(WRITTEN, (*METHODS, "full")) if m not in HELD[f]]
)
def test_what_a_format_cannot_hold_it_refuses_by_name(format, method, tmp_path):
    message = (
        "no full difference"
        if (format, method) == ("peft", "full")
        else f"names for {method}; export with --format kohya"
    )
    with pytest.raises(FormatError, match=message):
        write_adapter(state_for(method, "sd1"), place(tmp_path, format), format)
    assert list(tmp_path.iterdir()) == []


def test_ia3_beside_a_bias_is_refused_for_peft(tmp_path):
    with pytest.raises(FormatError, match="would scale its bias too"):
        write_adapter(state_for("ia3", "sd1"), tmp_path / "p", "peft")


def test_the_keys_of_each_method_are_lycoriss(tmp_path):
    linear = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"
    expected = {
        "lora": {"lora_down.weight": (4, 64), "lora_up.weight": (16, 4), "alpha": ()},
        "dora": {"lora_down.weight": (4, 64), "lora_up.weight": (16, 4), "alpha": (), "dora_scale": (16, 1)},
        "loha": {
            "hada_w1_a": (16, 3), "hada_w1_b": (3, 64), "hada_w2_a": (16, 3), "hada_w2_b": (3, 64), "alpha": (),
        },
        "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 32), "alpha": ()},
        "ia3": {"weight": (64,), "on_input": ()},
    }  # fmt: skip
    conv = "lora_unet_mid_block_resnets_0_conv1"
    of_conv = {
        "lora": {"lora_down.weight": (4, 16, 3, 3), "lora_up.weight": (16, 4, 1, 1), "alpha": ()},
        "dora": {
            "lora_down.weight": (4, 16, 3, 3), "lora_up.weight": (16, 4, 1, 1), "alpha": (), "dora_scale": (16, 1, 1, 1)
        },
        "loha": {
            "hada_w1_a": (16, 3), "hada_w1_b": (3, 144), "hada_w2_a": (16, 3), "hada_w2_b": (3, 144), "alpha": (),
        },
        "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 72), "alpha": ()},
        "ia3": {"weight": (1, 16, 1, 1), "on_input": ()},
    }  # fmt: skip
    for method, tensors in expected.items():
        path = tmp_path / f"{method}.safetensors"
        write_adapter(state_for(method, "sd1"), path)
        with safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            header = file.metadata()
        for stem, wanted in ((linear, tensors), (conv, of_conv[method])):
            found = {key.partition(".")[2]: shape for key, shape in shapes.items() if key.startswith(f"{stem}.")}
            assert found == wanted
        assert header["ss_network_module"] == ("networks.lora" if method == "lora" else "lycoris.kohya")
        card = read_header_summary(path)
        assert card.method == {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "ia3": "(IA)³"}[method]
        assert card.rank == ("" if method == "ia3" else str(METHOD_SETTINGS[method]["rank"]))


@pytest.mark.parametrize(("method", "family"), list(product(METHODS, FAMILIES)))
def test_pefts_own_loader_computes_the_same_from_its_folder(method, family, tmp_path):
    state = state_for(method, family, "peft")
    write_adapter(state, tmp_path / "p", "peft")
    models = models_of(family)
    attach.load_state(models, state, "a")
    draw = torch.Generator().manual_seed(3)
    for component, base in models_of(family).items():
        if not (tmp_path / "p" / component).is_dir():
            continue
        theirs = peft_library.PeftModel.from_pretrained(base, tmp_path / "p" / component).eval()
        if component == "unet":
            width = base.config.cross_attention_dim
            latents, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, width, generator=draw)
            conditions = {}
            if family == "sdxl":
                conditions = {
                    "added_cond_kwargs": {
                        "text_embeds": torch.randn(2, SECOND_TEXT_WIDTH, generator=draw),
                        "time_ids": torch.ones(2, 6),
                    }
                }
            with torch.no_grad():
                pair = [
                    m(latents, torch.tensor([10, 700]), text, **conditions).sample for m in (models[component], theirs)
                ]
        else:
            ids = torch.randint(0, 100, (2, 77), generator=draw)
            with torch.no_grad():
                pair = [m(ids)[0] for m in (models[component], theirs)]
        assert max_difference(pair[:1], pair[1:]) < 2e-5 * float(pair[0].abs().max()), component


def test_sides_are_shared_out_as_peft_does_and_the_smaller_part_comes_first():
    # LyCORIS's own factorization: 320 by 64 is 5 and 64, where PEFT has 64 and 5.
    assert [kronecker_factors(320, 64), kronecker_factors(1280, 40), kronecker_factors(320, 8)] == [
        (5, 64),
        (32, 40),
        (8, 40),
    ]
    for side in (4, 8, 12, 127, 320, 640, 768, 1280, 2560, 3072, 10240):
        assert kronecker_factors(side, None) == factorization(side, -1)
        for factor in (2, 3, 8, 16, 20, 64):
            assert set(kronecker_factors(side, factor)) == set(factorization(side, factor))


def lokr_of_factor_8(targets: str) -> AdapterState:
    """16 by 8 is shared out as 2 and 8 here and by LyCORIS; PEFT has 8 and 2 for that factor, but 2 and 8 for 2."""
    models, draw = models_of("sd1"), torch.Generator().manual_seed(1)
    METHODS["lokr"](rank=1, factor=8, targets=targets).attach(models, "a", 0)
    return build_adapter_state(
        {
            path: ModuleState({n: torch.randn(t.shape, generator=draw) * 0.2 for n, t in m.tensors.items()}, m.alpha)
            for path, m in attach.read_state(models, "a").modules.items()
        }
    )


def test_a_lokr_with_a_factor_beyond_the_root_is_the_same_in_pefts_folder(tmp_path):
    state = lokr_of_factor_8("unet.mid_block.*.attn1.to_v,unet.up_blocks.1.*.attn1.to_out.0")
    write_adapter(state, tmp_path / "p", "peft")
    theirs = peft_library.PeftModel.from_pretrained(models_of("sd1")["unet"], tmp_path / "p" / "unet").eval()
    models, draw = models_of("sd1"), torch.Generator().manual_seed(2)
    attach.load_state(models, state, "a")
    latents, text = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 77, 16, generator=draw)
    with torch.no_grad():
        base, ours, other = (
            m(latents, torch.tensor([10, 700]), text).sample for m in (models_of("sd1")["unet"], models["unet"], theirs)
        )
    assert (ours - other).abs().max() < 2e-5 * ours.abs().max() < (ours - base).abs().max()


def test_factors_that_pefts_one_rule_does_not_give_are_refused_for_its_folders(tmp_path):
    with pytest.raises(FormatError, match="not of one rule"):
        write_adapter(lokr_of_factor_8("unet.mid_block"), tmp_path / "p", "peft")


def test_an_adapter_of_several_methods_goes_through_kohyas_keys(tmp_path):
    parts = [state_for(method, "sd1").modules for method in ("lora", "loha", "ia3", "full")]
    paths = list(parts[1])  # LoRA has more.
    mixed = {path: parts[number % 3][path] for number, path in enumerate(paths)} | dict(list(parts[3].items())[:1])
    state = build_adapter_state(mixed)
    export_adapter(state, tmp_path / "a.safetensors")
    back = read_adapter(tmp_path / "a.safetensors")
    assert {module.method for module in back.modules.values()} == {"lora", "loha", "ia3", "full"}
    for path, module in mixed.items():
        for name, tensor in module.tensors.items():
            assert torch.allclose(
                back.modules[path].tensors[name].reshape(tensor.shape) * back.modules[path].scale,
                tensor * module.scale,
                atol=1e-6,
            )


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_lora_beside_dora_in_one_model_is_refused_where_one_setting_counts_for_all(format, tmp_path):
    """PEFT's ``use_dora`` is a component's: its LoRA layers would get lengths, or its DoRA layers lose theirs."""
    dora, lora = (state_for(method, "sd1").modules for method in ("dora", "lora"))
    first = next(iter(dora))
    with pytest.raises(FormatError, match=r"(LoRA or DoRA, not both|one method each)"):
        write_adapter(build_adapter_state({**dora, first: lora[first]}), place(tmp_path, format), format)
    assert list(tmp_path.iterdir()) == []
    apart = {path: (lora if path.startswith("unet.") else dora)[path] for path in dora}
    export_adapter(build_adapter_state(apart), place(tmp_path, format), format)
    back = read_adapter(place(tmp_path, format)).modules
    assert {path: module.method for path, module in back.items()} == {p: m.method for p, m in apart.items()}


def test_peft_folders_are_written_once_and_read_with_suspicion(tmp_path):
    state = state_for("lora", "sd1")
    write_adapter(state, tmp_path / "p", "peft")
    with pytest.raises(ConfigError, match="new one"):
        write_adapter(state, tmp_path / "p", "peft")
    config = tmp_path / "p" / "unet" / "adapter_config.json"
    kept = config.read_text()
    for text, reason in (("{", "no JSON"), ("[1]", "no JSON object"), ('{"peft_type": "OFT"}', "kind 'OFT'")):
        config.write_text(text)
        with pytest.raises(FormatError, match=reason):
            read_adapter(tmp_path / "p")
    config.write_text(kept)
    alone = read_adapter(tmp_path / "p" / "unet")
    assert {path.split(".")[0] for path in alone.modules} == {"unet"}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_an_export_tells_how_far_its_rounding_moves_an_update(dtype, tmp_path):
    state = state_for("lora", "sd1")
    proof = export_adapter(state, tmp_path / "a.safetensors", dtype=dtype)
    back = read_adapter(tmp_path / "a.safetensors")
    off = max(
        float(
            (
                m.scale * (m.tensors["up"].flatten(1) @ m.tensors["down"].flatten(1))
                - (n := back.modules[p]).scale * (n.tensors["up"].flatten(1) @ n.tensors["down"].flatten(1))
            )
            .abs()
            .max()
        )
        for p, m in state.modules.items()
    )
    assert proof.error == pytest.approx(off, rel=0.01)
    assert 0 < proof.error < 0.05 * proof.largest


def test_an_export_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch):
    state = state_for("lora", "sd1")
    first = next(iter(state.modules))
    real = storage.FORMATS["kohya"].read

    def damaged(tensors, metadata):
        read = real(tensors, metadata)
        module = read.modules[first]
        return build_adapter_state({**read.modules, first: module.scaled_by(1.5)})

    monkeypatch.setattr(storage.FORMATS["kohya"], "read", damaged)
    with pytest.raises(FormatError, match="reads back as another"):
        export_adapter(state, tmp_path / "a.safetensors")
    monkeypatch.setattr(
        storage.FORMATS["kohya"], "read", lambda *a: build_adapter_state(dict(list(real(*a).modules.items())[1:]))
    )
    with pytest.raises(FormatError, match="does not read back"):
        export_adapter(state, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("fan_in_fan_out", True, "fan_in_fan_out = True changes"),
        ("init_lora_weights", "pissa", "'pissa' changes"),
        ("modules_to_save", ["conv_out"], "modules_to_save"),
    ],
)
def test_peft_settings_that_change_the_meaning_are_refused(name, value, reason, tmp_path):
    write_adapter(state_for("lora", "sd1"), tmp_path / "p", "peft")
    config = tmp_path / "p" / "unet" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
    with pytest.raises(FormatError, match=reason):
        read_adapter(tmp_path / "p")


def test_a_peft_folder_without_a_known_tensor_is_refused_and_one_with_fits_its_base(tmp_path):
    from sdlora.formats.adapter_check import TargetBase, check_adapter

    write_adapter(state_for("lora", "sd1"), tmp_path / "p", "peft")
    found = check_adapter(tmp_path / "p", TargetBase("tiny", "sd1", models_of("sd1")))
    assert found.refusal == "" and found.fitting == found.layers > 0
    for part in ("unet", "text_encoder"):
        save_file({"nothing": torch.ones(1)}, tmp_path / "p" / part / "adapter_model.safetensors")
    with pytest.raises(FormatError, match="no tensor that is known here"):
        read_adapter(tmp_path / "p")


def test_a_lightly_trained_ia3_goes_into_a_peft_folder(tmp_path):
    state = state_for("ia3", "sd1", "peft")
    light = {p: ModuleState({n: t * 1e-3 for n, t in m.tensors.items()}) for p, m in state.modules.items()}
    proof = export_adapter(build_adapter_state(light), tmp_path / "p", "peft")
    assert proof.error < 1e-6
