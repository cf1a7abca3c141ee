"""Single files of the original layout: every weight arrives, without a hub, or one sentence says why not."""

import json
import shutil
import zlib

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.errors import ModelError
from sdlora.families import FAMILIES
from sdlora.families import single_file as originals
from sdlora.families.base_models import BUNDLED, family_of, native_size
from sdlora.families.clip_tokenizer import REPOSITORY
from sdlora.families.detect import detect_file, folder_size
from sdlora.families.loading import load_family
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.families.single_file import CONFIGS, config_folder
from sdlora.generation.studio import Studio
from tests.support.single_file_checkpoints import (
    fill_hub_cache,
    full_models,
    full_size_shapes,
    full_states,
    to_single_file,
    write_configs,
    write_full_size_vocabulary,
    write_header,
    write_single_file,
)
from tests.support.tiny_models import UNET_CONFIGS, tiny_pipeline


@pytest.fixture(scope="module", params=tuple(UNET_CONFIGS))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def made(family, tmp_path_factory):
    """A folder with ``configs/FAMILY``, and the same tiny model as a diffusers folder and as a file."""
    place = tmp_path_factory.mktemp(family)
    pipeline = tiny_pipeline(family=family)
    pipeline.save_pretrained(place / "base")
    write_configs(place / "configs" / family, pipeline)
    write_single_file(place / "model.safetensors", family, pipeline)
    return place


@pytest.fixture
def tiny(made, monkeypatch):
    """``made``, with its configs in the place of the bundled ones, in which sizes alone are others."""
    monkeypatch.setattr(originals, "CONFIGS", made / "configs")
    return made


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch):
    """No models folder, an empty cache, and no hub."""
    monkeypatch.setenv("SDLORA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("SDLORA_MODELS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def weights(family):
    return {part: module.state_dict() for part, module in {**family.models, "vae": family.vae}.items()}


def from_file(tiny, file="model.safetensors", **settings):
    return load_family(Model(base=str(tiny / file), tokenizer=tiny / "base", **settings))


def changed(tiny, tmp_path, change):
    """The file with its tensors as ``change`` returns them."""
    save_file(change(load_file(tiny / "model.safetensors")), tmp_path / "changed.safetensors")
    return Model(base=str(tmp_path / "changed.safetensors"), tokenizer=tiny / "base")


def test_every_weight_of_a_file_is_the_folders(family, tiny):
    folder, file = load_family(Model(base=str(tiny / "base"))), from_file(tiny)
    assert file.name == folder.name == family
    expected, found = weights(folder), weights(file)
    assert {part: {*state} for part, state in found.items()} == {part: {*state} for part, state in expected.items()}
    for part, state in expected.items():
        for name, tensor in state.items():
            assert found[part][name].dtype == tensor.dtype == torch.float32
            assert torch.equal(found[part][name], tensor), f"{part}.{name}"
    assert file.fingerprint == folder.fingerprint
    assert (file.prediction_type, file.native_size) == (folder.prediction_type, folder.native_size)
    assert not any(weight.requires_grad for model in file.models.values() for weight in model.parameters())


def test_a_picture_from_a_file_is_the_folders(tiny, tmp_path, monkeypatch):
    """But for rounding: the same weights lie elsewhere in memory, and some processors' products depend on where."""
    shutil.copytree(tiny / "base" / "tokenizer", tmp_path / "data" / "models" / "tokenizer")
    pictures = [
        Studio(str(tiny / base), device="cpu").generate("a red house", negative="snow", seed=3, steps=2, cfg=7)[0]
        for base in ("base", "model.safetensors")
    ]
    folder, file = (np.asarray(picture).astype(int) for picture in pictures)
    assert np.abs(folder - file).max() <= 1 and (folder != file).mean() < 1e-3
    assert folder.std() > 1


def test_prompts_are_cut_and_filled_up_as_the_folders(tiny):
    folder, file = load_family(Model(base=str(tiny / "base"))), from_file(tiny)
    prompts = ["a red house", "", "a blue cat " * 60]
    assert torch.equal(file.tokenize(prompts), folder.tokenize(prompts))
    with torch.no_grad():
        read, expected = (each.encode_text(each.tokenize(prompts)) for each in (file, folder))
    assert all(torch.equal(read.tensors()[name], part) for name, part in expected.tensors().items())


def test_a_file_in_half_precision_comes_in_float32(tiny, tmp_path):
    half = changed(
        tiny, tmp_path, lambda tensors: {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    )
    found, whole = weights(load_family(half)), weights(from_file(tiny))
    for part, state in whole.items():
        assert all(torch.equal(found[part][name], tensor.half().float()) for name, tensor in state.items())


def test_a_files_skeleton_has_its_layers(tiny):
    family, models = build_meta_model(str(tiny / "model.safetensors"))
    expected = from_file(tiny)
    assert family == expected.name
    assert {part: shapes(model) for part, model in models.items()} == {
        part: shapes(model) for part, model in expected.models.items()
    }
    assert all(weight.is_meta for model in models.values() for weight in model.parameters())


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_part_that_is_missing_is_named(family, tiny, tmp_path):
    declared = FAMILIES[family].single_file_prefixes
    prefixes = {part: prefix for part, prefix in declared.items() if part.startswith("text_encoder")}
    prefixes["vae"] = "first_stage_model."
    for part, prefix in prefixes.items():
        model = changed(
            tiny, tmp_path, lambda tensors, p=prefix: {n: t for n, t in tensors.items() if not n.startswith(p)}
        )
        for read in (load_family, lambda model: build_meta_model(model.base)):
            with pytest.raises(ModelError, match=f"the part {part} is missing in it; give a file that holds UNet, VAE"):
                read(model)


def test_a_unet_with_nothing_beside_it_is_refused(family, tiny, tmp_path):
    unet = "model.diffusion_model."
    alone = changed(tiny, tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n.startswith(unet)})
    with pytest.raises(ModelError, match=r"the part vae, text_encoder.* missing"):
        load_family(alone)
    bare = changed(
        tiny, tmp_path, lambda tensors: {n.removeprefix(unet): t for n, t in tensors.items() if n.startswith(unet)}
    )
    with pytest.raises(ModelError, match="holds a UNet alone"):
        load_family(bare)


@pytest.mark.parametrize(
    "absent",
    [
        "model.diffusion_model.middle_block.0.in_layers.2.weight",
        "first_stage_model.decoder.conv_out.bias",
        "final_norm",
    ],
)
def test_a_file_that_was_cut_down_is_refused(absent, family, tiny, tmp_path):
    norms = {
        "sd1": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "sd2": "cond_stage_model.model.ln_final.weight",
        "sdxl": "conditioner.embedders.1.model.ln_final.weight",
    }
    absent = norms[family] if absent == "final_norm" else absent

    def without(tensors):
        del tensors[absent]
        return tensors

    with pytest.raises(ModelError, match="cut down, or is of another architecture"):
        load_family(changed(tiny, tmp_path, without))


def test_a_layer_of_another_width_is_refused_by_its_name(tiny, tmp_path):
    name = "model.diffusion_model.out.2.bias"
    model = changed(tiny, tmp_path, lambda tensors: tensors | {name: torch.zeros(8)})
    with pytest.raises(ModelError, match=r"cannot be loaded as .*conv_out\.bias"):
        load_family(model)


def test_a_vocabulary_of_another_size_is_refused(family, tiny):
    with pytest.raises(ModelError, match=r"1293 pieces, but the model's text_encoder has \d+; set model.tokenizer"):
        load_family(Model(base=str(tiny / "model.safetensors"), tokenizer=BUNDLED["pocket"]))


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_full_size_models_refuse_pockets_vocabulary_before_anything_is_loaded(name, tmp_path):
    file = write_header(tmp_path / "model.safetensors", full_size_shapes(name))
    with pytest.raises(ModelError, match="1293 pieces, but the model's text_encoder has 49408"):
        load_family(Model(base=str(file), tokenizer=BUNDLED["pocket"]))


def test_without_a_vocabulary_three_ways_to_one_are_told(tiny):
    with pytest.raises(ModelError) as caught:
        load_family(Model(base=str(tiny / "model.safetensors")))
    text = str(caught.value)
    assert "openai/clip-vit-large-patch14" in text and "HF_HUB_OFFLINE is set" in text
    assert all(way in text for way in ("go online once", "HF_HOME", "model.tokenizer"))


@pytest.fixture
def words(tiny, tmp_path):
    """The tiny vocabulary as the hub's repository has it: ``vocab.json`` and ``merges.txt``."""
    model = json.loads((tiny / "base" / "tokenizer" / "tokenizer.json").read_text())["model"]
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    return folder


@pytest.mark.parametrize("kept", ["two files", "one file"])
def test_a_vocabulary_may_lie_alone_in_a_folder(kept, tiny, words, tmp_path):
    if kept == "one file":
        shutil.rmtree(words)
        words.mkdir()
        shutil.copy(tiny / "base" / "tokenizer" / "tokenizer.json", words)
    found = load_family(Model(base=str(tiny / "model.safetensors"), tokenizer=words))
    assert torch.equal(found.tokenize(["a red house"]), from_file(tiny).tokenize(["a red house"]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no vocabulary"),
        ({"vocab.json": "{}"}, "holds no vocabulary"),
        ({"vocab.json": "no json", "merges.txt": ""}, "its vocabulary cannot be read"),
        ({"tokenizer.json": "{}"}, "its vocabulary cannot be read"),
    ],
)
def test_a_folder_without_a_vocabulary_is_refused(files, message, tiny, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        load_family(Model(base=str(tiny / "model.safetensors"), tokenizer=tmp_path))


def test_the_hub_is_asked_for_the_vocabulary_alone(tiny, words, monkeypatch):
    requests = []

    def download(repository, name, **options):
        requests.append((repository, name))
        return str(words / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = load_family(Model(base=str(tiny / "model.safetensors")))
    assert requests == [("openai/clip-vit-large-patch14", name) for name in ("vocab.json", "merges.txt")]
    assert torch.equal(found.tokenize(["a red house"]), from_file(tiny).tokenize(["a red house"]))


def test_a_vocabulary_in_the_hubs_cache_serves_offline(tiny, words, tmp_path):
    fill_hub_cache(tmp_path / "cache", REPOSITORY, words)
    found = load_family(Model(base=str(tiny / "model.safetensors")))
    assert torch.equal(found.tokenize(["a red house"]), from_file(tiny).tokenize(["a red house"]))


def test_marks_and_settings_decide_the_schedule(family, tiny, tmp_path):
    marked = changed(tiny, tmp_path, lambda tensors: tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    found = load_family(marked)
    assert found.prediction_type == "v_prediction"
    assert found.scheduler_config["rescale_betas_zero_snr"] is True
    if family != "sd2":  # Whose configs are others then, which are not made here.
        quiet = marked.model_copy(update={"prediction_type": "epsilon", "zero_terminal_snr": "off"})
        assert load_family(quiet).prediction_type == "epsilon"


# From the papers and the released models' cards: UNet, VAE and text encoders.
PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_bundled_configs_are_the_released_architectures(name):
    found = {part: sum(weight.numel() for weight in model.parameters()) for part, model in full_models(name).items()}
    assert found == PARAMETERS[name]


def test_the_file_of_sdxl_has_the_released_ones_number_of_tensors_and_all_are_converted(tmp_path):
    from diffusers.loaders import single_file_utils as converters

    states, tensors = full_states("sdxl"), to_single_file("sdxl", full_states("sdxl"))
    assert len(tensors) == 2515  # sd_xl_base_1.0.safetensors
    configs = {part: json.loads((CONFIGS / "sdxl" / part / "config.json").read_text()) for part in ("unet", "vae")}
    unet = converters.convert_ldm_unet_checkpoint(dict(tensors), configs["unet"])
    vae = converters.convert_ldm_vae_checkpoint(dict(tensors), configs["vae"])
    second = converters.convert_open_clip_checkpoint(
        full_models("sdxl")["text_encoder_2"], dict(tensors), "conditioner.embedders.1.model."
    )
    for state, converted in ((states["unet"], unet), (states["vae"], vae), (states["text_encoder_2"], second)):
        assert {name: tensor.shape for name, tensor in converted.items()} == {
            name: tensor.shape for name, tensor in state.items()
        }


@pytest.mark.parametrize(("name", "size"), [("sd1", 512), ("sd2", 768), ("sdxl", 1024)])
def test_a_full_size_file_is_known_by_its_header(name, size, tmp_path):
    file = write_header(tmp_path / "model.safetensors", full_size_shapes(name))
    assert (detect_file(file), family_of(str(file)), native_size(str(file))) == (name, name, size)
    assert build_meta_model(str(file)).family == name


def test_sd2_predicts_velocity_at_768_px_and_noise_at_512():
    def answer(config):
        scheduler = json.loads((config / "scheduler" / "scheduler_config.json").read_text())
        return scheduler["prediction_type"], folder_size(config)

    assert answer(config_folder("sd2")) == answer(config_folder("sd2", "v_prediction")) == ("v_prediction", 768)
    assert answer(config_folder("sd2", "epsilon")) == ("epsilon", 512)
    assert answer(config_folder("sd1", "v_prediction")) == ("epsilon", 512)


def test_an_epsilon_file_of_sd2_has_the_smaller_size(tmp_path, monkeypatch):
    pipeline = tiny_pipeline(family="sd2")
    write_single_file(tmp_path / "model.safetensors", "sd2", pipeline)
    pipeline.tokenizer.save_pretrained(tmp_path / "words")
    for name, size in (("sd2", 12), ("sd2-base", 8)):
        pipeline.unet.register_to_config(sample_size=size)
        write_configs(tmp_path / "configs" / name, pipeline)
    monkeypatch.setattr(originals, "CONFIGS", tmp_path / "configs")
    model = Model(base=str(tmp_path / "model.safetensors"), tokenizer=tmp_path / "words")
    assert load_family(model).native_size == native_size(model.base) == 96
    small = load_family(model.model_copy(update={"prediction_type": "epsilon"}))
    assert (small.prediction_type, small.native_size) == ("epsilon", 64)


def test_the_bundled_configs_hold_no_weights_and_no_vocabulary():
    files = [path for path in CONFIGS.rglob("*") if path.is_file()]
    assert len(files) == 26 and {path.suffix for path in files} == {".json"}
    assert max(path.stat().st_size for path in files) < 2000


def drawn_tensor(name, tensor):
    """A full-size tensor in half precision, the same whenever it is asked for by its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(tensor.shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_every_weight_of_a_full_size_file_arrives(name, tmp_path):
    states = full_states(name)
    filled = {part: {n: drawn_tensor(f"{part}.{n}", t) for n, t in state.items()} for part, state in states.items()}
    file = tmp_path / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in to_single_file(name, filled).items()}, file)
    del filled
    tiny_words = write_full_size_vocabulary(tmp_path / "words")
    found = load_family(Model(base=str(file), tokenizer=tiny_words))
    for part, state in weights(found).items():
        assert {*state} == {*states[part]}
        for key, tensor in state.items():
            assert torch.equal(tensor, drawn_tensor(f"{part}.{key}", tensor).float()), f"{part}.{key}"
    with torch.no_grad():
        read = found.encode_text(found.tokenize(["a red house"]))
        answer = found.predict(torch.zeros(1, 4, 8, 8), torch.tensor([500]), read)
    assert answer.shape == (1, 4, 8, 8) and torch.isfinite(answer).all()
