"""The self-test of an adapter file: what fits a base, what does not, and one sentence for what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdlora.adapters.targets import adaptable_layers
from sdlora.families.loading import load_family
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.formats.adapter_check import TargetBase, check_adapter
from sdlora.formats.header_summary import read_header_summary

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(width: int = 16, out: int = 8, stem: str = KEY, value: float = 1.0) -> dict[str, torch.Tensor]:
    tensors = {"lora_down.weight": torch.full((2, width), value), "lora_up.weight": torch.ones(out, 2)}
    return {f"{stem}.{name}": tensor for name, tensor in (tensors | {"alpha": torch.tensor(2.0)}).items()}


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> TargetBase:
    return TargetBase("tiny", *build_meta_model(str(tiny_base)))


def checked(tmp_path: Path, base: TargetBase | None, tensors: dict[str, torch.Tensor], **metadata: str):
    path = tmp_path / "file.safetensors"
    save_file(tensors, path, metadata)
    return check_adapter(path, base)


def test_a_skeleton_has_the_layers_of_the_base_and_none_of_its_weights(tiny_base):
    family, models = build_meta_model(str(tiny_base))
    loaded = load_family(Model(base=str(tiny_base)))
    assert family == loaded.name
    ours, theirs = (
        {path: tuple(layer.weight.shape) for path, layer in adaptable_layers(m)} for m in (models, loaded.models)
    )
    assert ours == theirs
    assert {p.device.type for model in models.values() for p in model.parameters()} == {"meta"}


def test_a_file_that_fits_is_told_with_what_it_is(base, tmp_path):
    check = checked(tmp_path, base, lora(), **{"modelspec.trigger_phrase": "sks, red"})
    assert (check.refusal, check.layers, check.fitting, check.base) == ("", 1, 1, "tiny")
    assert dict(check.facts) | {"Method": "LoRA", "Rank": "2", "Trigger words": "sks, red"} == dict(check.facts)
    assert "|ΔW|" in check.said


def test_keys_that_name_no_layer_are_counted_and_listed(base, tmp_path):
    check = checked(tmp_path, base, lora() | {"lora_unet_strange.alpha": torch.tensor(1.0)})
    assert (check.refusal, check.unknown, check.strange) == ("", 1, ("lora_unet_strange.alpha",))


def test_an_adapter_of_another_width_is_refused_naming_both(base, tmp_path):
    check = checked(tmp_path, base, lora(width=768), ss_base_model_version="sd_v1")
    assert check.refusal == "This adapter is for a base that reads 768-wide text; tiny reads 16-wide text."
    assert (check.layers, check.fitting, len(check.misfits)) == (1, 0, 1)


@pytest.mark.parametrize(
    "tensors",
    [
        lora(width=2048),
        lora(stem="lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        lora(stem="lora_unet_input_blocks_4_1_proj_in"),
    ],
)
def test_an_adapter_of_another_family_is_refused_naming_both(tensors, base, tmp_path):
    assert checked(tmp_path, base, tensors).refusal == "This adapter is for SDXL; tiny is SD 1.x."


def test_layers_that_the_base_lacks_are_counted_and_listed(base, tmp_path):
    lacking = KEY.replace("down_blocks_0", "down_blocks_3")
    check = checked(tmp_path, base, lora() | lora(stem=lacking) | lora(out=5, stem=KEY.replace("to_k", "to_v")))
    assert check.refusal.startswith("2 of its 3 layers do not fit tiny, such as unet.")
    assert (check.fitting, len(check.misfits)) == (1, 2)
    assert any("there is no such layer" in text for text in check.misfits)
    assert any("(5, 2)" in text for text in check.misfits)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (lora(value=float("nan")), "holds NaN or infinite values"),
        ({f"{KEY}.lora_down.weight": torch.ones(2, 16)}, "its down is there without its up"),
        ({f"{KEY}.oft_blocks": torch.ones(2, 2)}, "is OFT"),
        ({"model.weight": torch.ones(2)}, "is no adapter that is known here"),
    ],
)
def test_what_cannot_be_used_is_refused_by_the_files_own_name(tensors, reason, tmp_path):
    check = checked(tmp_path, None, tensors)
    assert reason in check.refusal
    assert check.refusal.startswith("file.safetensors: ")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_what_is_no_safetensors_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04junk junk")
    assert check_adapter(tmp_path / name).refusal.startswith(f"{name}: ")


def test_a_card_tells_what_the_whole_file_tells(tmp_path):
    path = tmp_path / "file.safetensors"
    save_file(lora(width=768) | lora(stem=KEY.replace("to_k", "to_v"), width=768), path, {"ss_network_alpha": "2.0"})
    card = read_header_summary(path)
    assert (card.format, card.family, card.rank, card.alpha, card.layers) == ("kohya", "sd1", "2", "2.0", 2)
