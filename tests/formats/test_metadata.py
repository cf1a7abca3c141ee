"""Headers, hashes, side files, and what inspection says of a file."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdlora.adapters.state import AdapterState, ModuleState
from sdlora.formats import FORMATS, inspect_adapter, read_adapter, write_adapter
from sdlora.formats.inspection import delta_square, infer_family
from sdlora.formats.metadata import Provenance, a1111_card, provenance_metadata
from tests.support.adapters import reference_delta, trained_state

KNOWN = Provenance(
    name="mystyle", family="sd1", base="pocket", triggers=["sks", "neon"], learning_rate=1e-4,
    text_encoder_learning_rate=5e-5, optimizer="adamw", scheduler="cosine", steps=300, images=100, class_images=0,
    resolution=(128, 128), seed=7, mixed_precision="no", noise_offset=0.0, min_snr_gamma=5.0, prior_weight=1.0,
    started=1.75e9, finished=1.75e9 + 60, folders={"10_sks": (10, 10)}, buckets={(128, 128): 8, (96, 160): 2},
    tag_frequency={"10_sks": {"sks": 10, "a house": 3}},
)  # fmt: skip


def stored(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_header_has_the_names_and_values_that_other_tools_read() -> None:
    values = provenance_metadata(KNOWN)
    expected = {
        "ss_output_name": "mystyle",
        "ss_sd_model_name": "pocket",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "0.0001",
        "ss_text_encoder_lr": "5e-05",
        "ss_optimizer": "adamw",
        "ss_lr_scheduler": "cosine",
        "ss_steps": "300",
        "ss_num_train_images": "100",
        "ss_num_reg_images": "0",
        "ss_resolution": "(128, 128)",
        "ss_seed": "7",
        "ss_mixed_precision": "no",
        "ss_noise_offset": "0.0",
        "ss_min_snr_gamma": "5.0",
        "ss_prior_loss_weight": "1.0",
        "ss_training_started_at": "1750000000.0",
        "ss_training_finished_at": "1750000060.0",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "mystyle",
        "modelspec.resolution": "128x128",
        "modelspec.date": "2025-06-15T15:07:40+00:00",
        "modelspec.trigger_phrase": "sks, neon",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: values.get(key) for key in expected} == expected
    assert json.loads(values["ss_dataset_dirs"]) == {"10_sks": {"n_repeats": 10, "img_count": 10}}
    assert json.loads(values["ss_bucket_info"])["buckets"]["1"] == {"resolution": [96, 160], "count": 2}
    assert json.loads(values["ss_tag_frequency"]) == {"10_sks": {"sks": 10, "a house": 3}}


def test_what_is_not_known_is_not_written() -> None:
    values = provenance_metadata(Provenance(name="x", family="sd1", base="pocket"))
    assert not {"ss_seed", "ss_steps", "modelspec.date"} & set(values)
    assert all(isinstance(text, str) and text for text in values.values())


@pytest.mark.parametrize(
    ("family", "prediction", "version", "v2", "architecture"),
    [
        ("sd1", "epsilon", "sd_v1", "False", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "sd_v2", "True", "stable-diffusion-v2-512/lora"),
        ("sd2", "v_prediction", "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_families_are_called_as_a1111_and_modelspec_call_them(
    family: str, prediction: str, version: str, v2: str, architecture: str
) -> None:
    values = provenance_metadata(Provenance(name="x", family=family, base="b", prediction_type=prediction))
    assert (values["ss_base_model_version"], values["ss_v2"]) == (version, v2)
    assert values["modelspec.architecture"] == architecture


@pytest.mark.parametrize("format", FORMATS)
def test_hashes_are_those_of_the_bytes_written(format: str, tmp_path: Path) -> None:
    state = trained_state(targets="linear", rank=64)
    path = tmp_path / "a.safetensors"
    write_adapter(AdapterState("lora", state.modules, provenance_metadata(KNOWN)), path, format)
    content = path.read_bytes()
    assert len(content) > (1 << 20) + (1 << 16)
    metadata = stored(path)
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert metadata["modelspec.hash_sha256"] == f"0x{metadata['sshs_model_hash']}"
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(content[0x100000:][:0x10000]).hexdigest()[:8]


def test_the_model_hash_depends_on_the_weights_alone(tmp_path: Path) -> None:
    state = trained_state()
    hashes = []
    for number, metadata in enumerate(({"ss_output_name": "one"}, {"ss_output_name": "two"})):
        path = tmp_path / f"{number}.safetensors"
        write_adapter(AdapterState("lora", state.modules, metadata), path)
        hashes.append(stored(path)["sshs_model_hash"])
    assert hashes[0] == hashes[1]


def test_network_figures_come_from_the_tensors_written(tmp_path: Path) -> None:
    state = trained_state(targets="linear+conv", rank=4, alpha=3.0)
    lying = AdapterState("lora", state.modules, {"ss_network_dim": "128", "ss_network_alpha": "1"})
    write_adapter(lying, tmp_path / "a.safetensors")
    metadata = stored(tmp_path / "a.safetensors")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "3.0")
    assert metadata["ss_network_module"] == "networks.lora"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "3.0"}


def test_metadata_survives_a_change_of_format(tmp_path: Path) -> None:
    state = trained_state()
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    write_adapter(AdapterState("lora", state.modules, provenance_metadata(KNOWN)), paths[0])
    write_adapter(read_adapter(paths[0]), paths[1], "diffusers")
    write_adapter(read_adapter(paths[1]), paths[2], "kohya")
    assert stored(paths[2]) == stored(paths[0])


def test_side_file_is_what_a1111_reads() -> None:
    fields = json.loads(a1111_card(KNOWN))
    assert fields["activation text"] == "sks, neon"
    assert (fields["preferred weight"], fields["sd version"], fields["negative text"]) == (1.0, "SD1", "")


def test_inspection_describes_a_file(tmp_path: Path) -> None:
    state = trained_state(targets="linear", rank=4, alpha=3.0)
    path = tmp_path / "a.safetensors"
    write_adapter(AdapterState("lora", state.modules, provenance_metadata(KNOWN)), path, dtype="fp16")
    found = inspect_adapter(path)
    assert (found.format, found.method, found.dtype, found.family) == ("kohya", "lora", "F16", "sd1")
    assert (found.ranks, found.alphas, found.text_width) == ((4,), (3.0,), 16)
    assert dict(found.modules) == {"unet": 192, "text_encoder": 2 * 6}
    assert found.triggers == ("sks", "neon")
    assert found.size == path.stat().st_size
    squares = sum(
        float(reference_delta(m).square().sum()) for name, m in state.modules.items() if name.startswith("unet")
    )
    assert found.norms["unet"] == pytest.approx(squares**0.5, rel=1e-3)
    text = str(found)
    for part in ("192 layers", "sd1, 16-wide text", "sks, neon", "ss_output_name", "mystyle"):
        assert part in text


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_norm_of_an_update_needs_no_product(kernel: tuple[int, ...]) -> None:
    module = ModuleState(
        {"down": torch.randn(3, 5, *kernel), "up": torch.randn(7, 3, *(1 for _ in kernel))}, alpha=2.0
    )  # fmt: skip
    assert delta_square(module) == pytest.approx(float(reference_delta(module).square().sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("path", "width", "metadata", "family"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 768, {}, "sd1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 1024, {}, "sd2"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 2048, {}, "sdxl"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 128, {"ss_base_model_version": "sd_v1"}, "sd1"),
        ("unet.mid_block.attentions.0.proj_in", 1280, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ("unet.mid_block.attentions.0.proj_in", 1280, {}, ""),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 1024, {}, "sd2"),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj", 1280, {}, "sdxl"),
    ],
)
def test_family_is_guessed_by_shapes_then_header(path: str, width: int, metadata: dict[str, str], family: str) -> None:
    module = ModuleState({"down": torch.zeros(1, width), "up": torch.zeros(1, 1)}, 1.0)
    assert infer_family(AdapterState("lora", {path: module}, metadata)) == family


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "sks,, neon "}, ("sks", "neon")),
        ({"ss_tag_frequency": '{"a": {"x": 1, "y": 5}, "b": {"x": 9}}'}, ("x", "y")),
        ({"ss_tag_frequency": "[1, 2]"}, ()),
        ({"ss_tag_frequency": '{"a": {"x": "many"}}'}, ()),
        ({"ss_tag_frequency": '{"a": {"x": Infinity}}'}, ()),
        ({"ss_tag_frequency": "{"}, ()),
        ({}, ()),
    ],
)
def test_trigger_words_come_from_the_phrase_or_the_commonest_tags(
    metadata: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lora_down.weight": torch.ones(1, 8), f"{stem}.lora_up.weight": torch.ones(8, 1)}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert inspect_adapter(tmp_path / "a.safetensors").triggers == words
