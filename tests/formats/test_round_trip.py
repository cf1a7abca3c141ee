"""Files carry adapters exactly: back into our own models, and into plain diffusers pipelines."""

from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sdlora.adapters import attach
from sdlora.adapters.state import AdapterState
from sdlora.adapters.targets import GROUPS, adaptable_layers
from sdlora.errors import ConfigError, FormatError, NonFiniteError
from sdlora.formats import FORMATS, read_adapter, write_adapter
from sdlora.formats.kohya import Kohya, dotted, path_steps
from tests.support.adapters import (
    max_difference,
    outputs,
    random_adapter,
    reference_delta,
    tiny_components,
    tiny_networks,
    trained_state,
    with_uneven_ranks,
)
from tests.support.architectures import meta_models


def same(one: AdapterState, other: AdapterState) -> bool:
    return one.modules.keys() == other.modules.keys() and all(
        module.alpha == other.modules[path].alpha
        and all(torch.equal(tensor, other.modules[path].tensors[name]) for name, tensor in module.tensors.items())
        for path, module in one.modules.items()
    )


@pytest.mark.parametrize(("format", "group"), product(FORMATS, GROUPS))
def test_every_format_gives_back_the_same_tensors_and_alphas(format: str, group: str, tmp_path: Path) -> None:
    state = trained_state(targets=group)
    write_adapter(state, tmp_path / "a.safetensors", format)
    assert same(read_adapter(tmp_path / "a.safetensors"), state)


@pytest.mark.parametrize("format", FORMATS)
def test_ranks_and_alphas_that_differ_by_layer_keep_their_updates(format: str, tmp_path: Path) -> None:
    state = with_uneven_ranks(trained_state(targets="linear+conv"))
    write_adapter(state, tmp_path / "a.safetensors", format)
    again = read_adapter(tmp_path / "a.safetensors")
    assert again.modules.keys() == state.modules.keys()
    for path, module in state.modules.items():
        torch.testing.assert_close(reference_delta(again.modules[path]), reference_delta(module), rtol=1e-6, atol=1e-7)
    assert format == "kohya" or same(again, state)


def plain_pipeline(path: Path) -> dict[str, torch.nn.Module]:
    """The models of a diffusers pipeline that knows nothing of this program, with the adapter file at ``path``."""
    pipeline = StableDiffusionPipeline(
        **tiny_components(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.load_lora_weights(str(path))
    return {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}


# diffusers reads kohya's keys of a text encoder in another way where self_attn.out_proj is not among them, as in ia3.
WITH_OUT_PROJ = [group for group in GROUPS if group != "ia3"]


@pytest.mark.parametrize(("format", "group"), product(FORMATS, WITH_OUT_PROJ))
def test_a_plain_pipeline_computes_what_the_live_adapter_does(format: str, group: str, tmp_path: Path) -> None:
    state, models = trained_state(targets=group), tiny_networks()
    base = outputs(models)
    attach.load_state(models, state, "a")
    write_adapter(attach.read_state(models, "a"), tmp_path / "a.safetensors", format)
    got, wanted = outputs(plain_pipeline(tmp_path / "a.safetensors")), outputs(models)
    assert max_difference(got, wanted) < 1e-5
    assert min(float((a - b).abs().max()) for a, b in zip(wanted, base, strict=True)) > 1e-2


@pytest.mark.parametrize("group", WITH_OUT_PROJ)
def test_a_plain_pipeline_computes_what_a_live_dora_does_from_diffusers_keys(group: str, tmp_path: Path) -> None:
    """diffusers drops DoRA's magnitudes from kohya's keys, with a warning: docs/formats.md."""
    state, models = random_adapter("dora", targets=group), tiny_networks()
    attach.load_state(models, state, "a")
    write_adapter(state, tmp_path / "a.safetensors", "diffusers")
    assert max_difference(outputs(plain_pipeline(tmp_path / "a.safetensors")), outputs(models)) < 1e-5
    write_adapter(state, tmp_path / "a.safetensors", "kohya")
    assert max_difference(outputs(plain_pipeline(tmp_path / "a.safetensors")), outputs(models)) > 0.1


TEXT_LAYERS = {
    "*.q_proj,*.k_proj,*.v_proj": {"kohya": "refused", "diffusers": "whole"},
    "*.k_proj,*.v_proj,*.fc2": {"kohya": "fc2 alone", "diffusers": "whole"},
    "*.fc1,*.fc2": {"kohya": "whole", "diffusers": "refused"},
    "*.out_proj,*.fc1": {"kohya": "whole", "diffusers": "whole"},
}
"""Text layers that diffusers reads differently, as docs/formats.md says."""


@pytest.mark.parametrize(("layers", "format"), product(TEXT_LAYERS, FORMATS))
def test_diffusers_reads_text_layers_as_told(layers: str, format: str, tmp_path: Path) -> None:
    state, models = trained_state(targets=layers), tiny_networks()
    write_adapter(state, tmp_path / "a.safetensors", format)
    wanted = TEXT_LAYERS[layers][format]
    if wanted == "refused":
        with pytest.raises(ValueError, match="infer state dict type"):
            plain_pipeline(tmp_path / "a.safetensors")
        return
    kept = {path: m for path, m in state.modules.items() if wanted == "whole" or path.endswith(wanted.split()[0])}
    attach.load_state(models, AdapterState("lora", kept), "a")
    assert max_difference(outputs(plain_pipeline(tmp_path / "a.safetensors")), outputs(models)) < 1e-5


@pytest.mark.parametrize(("format", "text_encoder"), product(FORMATS, (True, False)))
def test_a_plain_pipeline_scales_uneven_layers_rightly(format: str, text_encoder: bool, tmp_path: Path) -> None:
    state, models = with_uneven_ranks(trained_state(targets="linear+conv", text_encoder=text_encoder)), tiny_networks()
    attach.load_state(models, state, "a")
    write_adapter(state, tmp_path / "a.safetensors", format)
    assert max_difference(outputs(plain_pipeline(tmp_path / "a.safetensors")), outputs(models)) < 1e-5


def test_a_file_converts_to_the_other_format_and_back(tmp_path: Path) -> None:
    state = trained_state()
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    write_adapter(state, paths[0], "kohya")
    write_adapter(read_adapter(paths[0]), paths[1], "diffusers")
    write_adapter(read_adapter(paths[1]), paths[2], "kohya")
    assert same(read_adapter(paths[2]), state)
    assert max_difference(outputs(plain_pipeline(paths[2])), outputs(plain_pipeline(paths[1]))) < 1e-5


def test_kohya_keys_are_those_of_sd_scripts(tmp_path: Path) -> None:
    write_adapter(trained_state(targets="linear+conv", alpha=2.0), tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    # (key, shape of lora_down) as in published files, at this tiny width
    for stem, shape in {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (4, 16),
        "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_out_0": (4, 16),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": (4, 16),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2": (4, 64),
        "lora_unet_down_blocks_0_attentions_1_proj_in": (4, 8, 1, 1),
        "lora_unet_down_blocks_1_resnets_0_conv_shortcut": (4, 8, 1, 1),
        "lora_unet_up_blocks_0_resnets_2_conv2": (4, 16, 3, 3),
        "lora_unet_up_blocks_0_resnets_2_time_emb_proj": (4, 32),
        "lora_unet_down_blocks_2_downsamplers_0_conv": (4, 16, 3, 3),
        "lora_te_text_model_encoder_layers_1_self_attn_out_proj": (4, 16),
        "lora_te_text_model_encoder_layers_1_mlp_fc2": (4, 32),
    }.items():
        assert tuple(tensors[f"{stem}.lora_down.weight"].shape) == shape
        assert tensors[f"{stem}.lora_up.weight"].shape[1] == 4
        assert tensors[f"{stem}.alpha"].item() == 2.0
    assert len(tensors) == 3 * len(trained_state(targets="linear+conv").modules)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_kohya_names_lead_back_to_every_layer_that_can_be_adapted(family: str) -> None:
    for path, _ in adaptable_layers(meta_models(family)):
        rest = path.partition(".")[2]
        assert dotted(rest.replace(".", "_")) == rest


def test_sdxls_layers_have_kohyas_names_and_lead_back() -> None:
    """Some as in published files; the UNet's are those of the original code."""
    names = {path: Kohya()._stem(path, "sdxl") for path, _ in adaptable_layers(meta_models("sdxl"))}
    for path, name in {
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k":
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        "unet.down_blocks.2.attentions.1.proj_in": "lora_unet_input_blocks_8_1_proj_in",
        "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
        "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj":
            "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        "unet.mid_block.resnets.1.conv2": "lora_unet_middle_block_2_out_layers_3",
        "unet.up_blocks.0.attentions.2.proj_out": "lora_unet_output_blocks_2_1_proj_out",
        "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
        "unet.up_blocks.2.resnets.2.conv_shortcut": "lora_unet_output_blocks_8_0_skip_connection",
        "text_encoder.text_model.encoder.layers.11.mlp.fc1": "lora_te1_text_model_encoder_layers_11_mlp_fc1",
        "text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj":
            "lora_te2_text_model_encoder_layers_31_self_attn_q_proj",
    }.items():  # fmt: skip
        assert names[path] == name
    assert len(set(names.values())) == len(names)


@given(st.lists(st.sampled_from([*sorted(path_steps()), "0", "11"]), min_size=1))
def test_kohya_names_lead_to_a_path_of_the_same_name(steps: list[str]) -> None:
    name = "_".join(steps)
    path = dotted(name)
    assert path is not None
    assert path.replace(".", "_") == name


@given(st.text(max_size=60))
def test_any_key_names_a_layer_and_its_tensor_or_nothing(key: str) -> None:
    for format in FORMATS.values():
        for name in (key, f"lora_unet_{key}.alpha", f"unet.{key}.lora_A.weight", f"text_encoder.{key}.lora.up.weight"):
            slot = format.parse(name)
            assert slot is None or (len(slot) == 2 and all(slot))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_files_hold_the_rounded_numbers(dtype: str, tmp_path: Path) -> None:
    state = trained_state(alpha=0.3)
    write_adapter(state, tmp_path / "a.safetensors", dtype=dtype)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    again = read_adapter(tmp_path / "a.safetensors")
    for path, module in state.modules.items():
        assert torch.equal(again.modules[path].tensors["up"], module.tensors["up"].to(kind).float())
        assert again.modules[path].alpha == pytest.approx(0.3, rel=1e-7)


OLDER = {
    "attention processors": (
        "{attention}.processor.to_k_lora.{way}.weight",
        "{attention}.processor.to_out_lora.{way}.weight",
    ),
    "lora layers": ("{attention}.to_k.lora.{way}.weight", "{attention}.to_out.0.lora.{way}.weight"),
    "without component": ("{bare}.processor.to_k_lora.{way}.weight", "{bare}.processor.to_out_lora.{way}.weight"),
}


@pytest.mark.parametrize("spelling", OLDER)
def test_older_diffusers_spellings_of_the_unet_are_read(spelling: str, tmp_path: Path) -> None:
    bare = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    names = {"attention": f"unet.{bare}", "bare": bare}
    tensors = {
        template.format(way=way, **names): torch.full((2, 8) if way == "down" else (8, 2), float(number))
        for number, template in enumerate(OLDER[spelling])
        for way in ("down", "up")
    }
    save_file(tensors, tmp_path / "a.safetensors")
    state = read_adapter(tmp_path / "a.safetensors")
    assert {path: float(m.tensors["up"][0, 0]) for path, m in state.modules.items()} == {
        f"unet.{bare}.to_k": 0.0,
        f"unet.{bare}.to_out.0": 1.0,
    }
    assert {module.alpha for module in state.modules.values()} == {2.0}


@pytest.mark.parametrize(
    "template",
    [
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{way}.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{way}.weight",
        "text_encoder.encoder.layers.0.self_attn.q_proj.lora.{way}.weight",
    ],
)
def test_older_diffusers_spellings_of_the_text_encoder_are_read(template: str, tmp_path: Path) -> None:
    shapes = {"down": (2, 8), "up": (8, 2)}
    save_file(
        {template.format(way=way): torch.ones(shape) for way, shape in shapes.items()}, tmp_path / "a.safetensors"
    )
    layers = read_adapter(tmp_path / "a.safetensors").modules
    assert list(layers) == ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]


def test_a_kohya_file_without_alpha_means_rank_and_whole_alphas_are_numbers(tmp_path: Path) -> None:
    stems = ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_mid_block_attentions_0_proj_in"]
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 8) for stem in stems}
    tensors |= {f"{stem}.lora_up.weight": torch.ones(8, 2) for stem in stems}
    save_file({**tensors, f"{stems[1]}.alpha": torch.tensor(1)}, tmp_path / "a.safetensors")
    alphas = {path: module.alpha for path, module in read_adapter(tmp_path / "a.safetensors").modules.items()}
    assert alphas == {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": 2.0,
        "unet.mid_block.attentions.0.proj_in": 1.0,
    }


def test_text_layers_without_text_model_are_the_same_layers(tmp_path: Path) -> None:
    """LyCORIS's names under transformers 5."""
    ends = [("lora_te", "encoder_layers_0_mlp_fc1"), ("lora_te2", "encoder_layers_31_self_attn_q_proj")]
    for number, middle in enumerate(("", "text_model_")):
        stems = [f"{prefix}_{middle}{rest}" for prefix, rest in ends]
        shapes = {"lora_down": (2, 8), "lora_up": (8, 2)}
        tensors = {f"{stem}.{name}.weight": torch.ones(shape) for stem in stems for name, shape in shapes.items()}
        save_file(tensors, tmp_path / f"{number}.safetensors")
        assert read_adapter(tmp_path / f"{number}.safetensors").modules.keys() == {
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
            "text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj",
        }


def test_rank_stabilised_alpha_in_a_diffusers_header_is_understood(tmp_path: Path) -> None:
    header = '{"unet.r": 4, "unet.lora_alpha": 6, "unet.use_rslora": true, "unet.alpha_pattern": {"proj_out": 2}}'
    tensors = {
        f"unet.mid_block.attentions.0.{layer}.{way}.weight": torch.ones(shape)
        for layer in ("proj_in", "proj_out")
        for way, shape in {"lora_A": (4, 8), "lora_B": (8, 4)}.items()
    }
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": header})
    alphas = [module.alpha for module in read_adapter(tmp_path / "a.safetensors").modules.values()]
    assert sorted(alphas) == [2 * 2.0, 6 * 2.0]  # alpha / sqrt(4) = alpha' / 4


def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    state, path = trained_state(), tmp_path / "a.safetensors"
    first = next(iter(state.modules))
    for tensors, dtype, error in (
        ({"up": float("nan")}, "fp32", NonFiniteError),
        ({"up": 7e4}, "fp16", NonFiniteError),
    ):
        broken = {name: torch.full_like(state.modules[first].tensors[name], value) for name, value in tensors.items()}
        module = type(state.modules[first])({**state.modules[first].tensors, **broken}, 1.0)
        with pytest.raises(error, match=f"not finite in {dtype}"):
            write_adapter(AdapterState("lora", {first: module}), path, dtype=dtype)
    strange = AdapterState("lora", {"unet.strange_part.0": state.modules[first]})
    with pytest.raises(FormatError, match="no name for this layer"):
        write_adapter(strange, path)
    for wrong in ({"format": "koya"}, {"dtype": "fp8"}):
        with pytest.raises(ConfigError, match="formats are kohya, diffusers"):
            write_adapter(state, path, **wrong)
    with pytest.raises(ConfigError, match="give the file that ending"):
        write_adapter(state, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []
