"""From what a user wrote for the base model to a loaded family, or to one sentence why not."""

import json
import shutil
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from sdlora.api.training import preset_for
from sdlora.errors import FormatError, ModelError
from sdlora.families import FAMILIES, loading
from sdlora.families.base import weights_fingerprint
from sdlora.families.base_models import locate_base, native_size
from sdlora.families.detect import detect_file, detect_folder
from sdlora.families.hub import explain_hub_error
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from tests.support.single_file_checkpoints import fill_hub_cache, write_header


@pytest.fixture
def broken(tiny_base, tmp_path):
    """A copy of the tiny base, to be damaged."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_loads_in_float32_with_nothing_to_train(tiny_base):
    family = load_family(Model(base=str(tiny_base)))
    assert isinstance(family, FAMILIES["sd1"])
    parameters = [p for module in (*family.models.values(), family.vae) for p in module.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters)
    assert (family.native_size, family.latent_factor, family.size_step) == (64, 8, 64)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_parts_are_opened_in_the_precision_they_are_used_in_and_keep_their_fingerprints(tiny_base, tmp_path, stored):
    from diffusers import StableDiffusionPipeline

    folder = tmp_path / "base"
    StableDiffusionPipeline.from_pretrained(tiny_base, dtype=stored).save_pretrained(folder)
    wide, narrow = (load_family(Model(base=str(folder)), dtype) for dtype in (None, torch.bfloat16))
    assert narrow.fingerprints == wide.fingerprints
    assert {p.dtype for p in narrow.vae.parameters()} == {torch.float32}
    for component, module in narrow.models.items():
        for name, parameter in module.named_parameters():
            whole = wide.models[component].get_parameter(name)
            assert whole.dtype == torch.float32 and torch.equal(parameter, whole.to(torch.bfloat16)), name


def test_predictions_equal_diffusers_own_pipeline_parts(tiny_base):
    from diffusers import StableDiffusionPipeline

    family = load_family(Model(base=str(tiny_base)))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([3, 700])
    with torch.no_grad():
        conditioning = family.encode_text(family.tokenize(["a red house", "x"]))
        expected, _ = pipeline.encode_prompt(["a red house", "x"], "cpu", 1, False)
        assert torch.equal(conditioning.text, expected)
        ours = family.predict(latents, timesteps, conditioning)
        assert torch.equal(ours, pipeline.unet(latents, timesteps, expected).sample)


def test_a_fingerprint_reads_tensors_of_more_elements_than_float32_counts():
    large = torch.nn.Module()
    large.register_buffer("weight", torch.zeros(49408 * 768, dtype=torch.int8))  # CLIP-L's token embedding
    before = weights_fingerprint(large)
    large.weight[-1] = 1
    assert weights_fingerprint(large) != before


def test_a_fingerprint_tells_seeds_apart_and_stays(tiny_base, tmp_path):
    from tests.support.tiny_models import write_tiny_sd1

    one, again = (load_family(Model(base=str(tiny_base))).fingerprint for _ in range(2))
    other = load_family(Model(base=str(write_tiny_sd1(tmp_path / "other", seed=1)))).fingerprint
    assert one == again != other


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("pockt", "did you mean pocket"),
        ("model.ckpt", "can run code"),
        ("folder/model.bin", "can run code"),
        ("nothing here", "give pocket, a folder"),
    ],
)
def test_a_base_that_can_be_nothing_is_refused(base, message):
    with pytest.raises(ModelError, match=message):
        locate_base(base)


def test_a_hub_id_is_known_by_its_form():
    assert locate_base("stable-diffusion-v1-5/stable-diffusion-v1-5").kind == "hub"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(broken, part):
    shutil.rmtree(broken / part)
    with pytest.raises(ModelError, match=part):
        load_family(Model(base=str(broken)))


def test_both_of_sdxls_encoders_are_asked_for(broken):
    edit(broken / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ModelError, match="the part text_encoder_2, tokenizer_2 is missing"):
        load_family(Model(base=str(broken)))


def test_weights_that_are_only_pickles_are_refused(broken):
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="convert them to"):
        load_family(Model(base=str(broken)))


def test_a_truncated_part_is_named(broken):
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError, match=f"{weights.name}.*cut short"):
        load_family(Model(base=str(broken)))


@pytest.mark.parametrize(
    ("file", "values", "family"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "inpainting"),
        ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "StableDiffusionXLImg2ImgPipeline"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
    ],
)
def test_a_family_that_is_not_served_is_told_by_name(broken, file, values, family):
    edit(broken / file, **values)
    assert detect_folder(broken) == family
    with pytest.raises(ModelError, match=f"family {family}, which is not served yet"):
        load_family(Model(base=str(broken)))


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
TO_K = "model.diffusion_model.input_blocks.{}.transformer_blocks.0.attn2.to_k.weight"
SINGLE_FILES = {  # names and shapes as in the released checkpoints
    "sd1": {FIRST: [320, 4, 3, 3], TO_K.format("1.1"): [320, 768]},
    "sd2": {FIRST: [320, 4, 3, 3], TO_K.format("1.1"): [320, 1024]},
    "sdxl": {
        FIRST: [320, 4, 3, 3], TO_K.format("4.1"): [640, 2048], "conditioner.embedders.1.model.ln_final.weight": [1280],
    },
    "inpainting": {FIRST: [320, 9, 3, 3], "conditioner.embedders.1.model.ln_final.weight": [1280]},
    "SDXL refiner": {FIRST: [384, 4, 3, 3], "conditioner.embedders.0.model.ln_final.weight": [1280]},
}  # fmt: skip


@pytest.mark.parametrize("family", SINGLE_FILES)
def test_a_single_files_family_is_read_from_its_header(family, tmp_path):
    assert detect_file(write_header(tmp_path / "model.safetensors", SINGLE_FILES[family])) == family


@pytest.mark.parametrize("family", sorted(SINGLE_FILES.keys() - FAMILIES.keys()))
def test_a_single_file_of_a_family_that_is_not_served_is_told_by_name(family, tmp_path):
    path = write_header(tmp_path / "model.safetensors", SINGLE_FILES[family])
    with pytest.raises(ModelError, match=f"model.safetensors: .*family {family}, which is not served yet"):
        load_family(Model(base=str(path)))


@pytest.mark.parametrize("key", ["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "conv_in.weight"])
def test_a_single_file_without_a_diffusion_model_is_refused(key, tmp_path):
    path = write_header(tmp_path / "other.safetensors", {key: [4, 320]})
    with pytest.raises(ModelError, match=r"other\.safetensors: holds no diffusion model.*is it an adapter\?"):
        load_family(Model(base=str(path)))


TEXT = {"sdxl": ["conditioner.embedders.0.transformer.text_model.x"]}


@pytest.fixture
def described(monkeypatch):
    """Record the arguments with which single files are loaded; of the files, only headers are read."""
    given = []
    monkeypatch.setattr(loading, "load_tokenizers", lambda config, encoders, own: {})
    for family in FAMILIES:
        monkeypatch.setattr(FAMILIES[family], "load_single_file", lambda *all: given.append(all))
    return given


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((), {}),
        (("v_pred",), {"prediction_type": "v_prediction"}),
        (("v_pred", "ztsnr"), {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ],
)
def test_a_single_files_marks_tell_its_schedule_and_settings_go_before(marks, expected, tmp_path, described):
    whole = SINGLE_FILES["sdxl"] | {name: [1] for name in (*TEXT["sdxl"], "first_stage_model.x")}
    path = write_header(tmp_path / "juggernaut.safetensors", whole | {mark: [0] for mark in marks})
    load_family(Model(base=str(path)))
    load_family(Model(base=str(path), prediction_type="epsilon"))
    assert [schedule for *_, schedule, _ in described] == [expected, {**expected, "prediction_type": "epsilon"}]
    assert (native_size(str(path)), preset_for(str(path), "style")) == (1024, "sdxl-style")


CONFIGS = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json",
    "vae/config.json", "feature_extractor/preprocessor_config.json", "safety_checker/config.json",
]  # fmt: skip
WEIGHTS = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
UNUSED = [
    ".gitattributes", "README.md", "v1-inference.yaml", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors",
    "v1-5-pruned-emaonly.ckpt", "v1-5-pruned-emaonly.safetensors", "safety_checker/model.safetensors",
    "safety_checker/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "text_encoder/pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin", "unet/diffusion_pytorch_model.pt",
    "unet/diffusion_pytorch_model.non_ema.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.bin",
]  # fmt: skip
REPOSITORY = [*CONFIGS, *UNUSED, *(f"{name}{kind}.safetensors" for name in WEIGHTS for kind in ("", ".fp16"))]
"""The files of stable-diffusion-v1-5/stable-diffusion-v1-5, and a ``.pt``."""


@pytest.mark.parametrize(("variant", "ending"), [(None, ".safetensors"), ("fp16", ".fp16.safetensors")])
def test_of_a_hubs_repository_only_what_is_needed_is_fetched_and_loaded(variant, ending, broken, monkeypatch):
    requests = []

    def download(*arguments, **options):
        requests.append((arguments, options))
        return str(broken)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for weights in broken.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(ending))
    family = load_family(Model(base="someone/model", revision="a1b2c3", variant=variant))
    assert family.source == "someone/model"
    [(arguments, options)] = requests
    assert (arguments, options.pop("revision")) == (("someone/model",), "a1b2c3")
    assert set(filter_repo_objects(REPOSITORY, **options)) == {*CONFIGS, *(name + ending for name in WEIGHTS)}


def test_a_hub_id_offline_and_not_cached_says_to_go_online_once(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="nothing is cached; go online once"):
        load_family(Model(base="someone/model"))


@pytest.mark.parametrize("revision", [None, "fp16-branch"])
def test_a_hub_id_that_was_downloaded_loads_offline(revision, tiny_base, tmp_path, monkeypatch):
    fill_hub_cache(tmp_path, "someone/model", tiny_base, revision or "main")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    family = load_family(Model(base="someone/model", revision=revision))
    assert (family.source, family.fingerprint) == ("someone/model", load_family(Model(base=str(tiny_base))).fingerprint)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set and nothing is cached"):
        load_family(Model(base="someone/model", revision="another"))


@pytest.mark.parametrize("values", [{"prediction_type": "sample"}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_a_schedule_that_would_be_trained_wrongly_is_refused(broken, values):
    edit(broken / "scheduler" / "scheduler_config.json", **values)
    with pytest.raises(ModelError, match=next(iter(values))):
        load_family(Model(base=str(broken)))


def answers(monkeypatch, error):
    """A hub whose answer to any request is ``error``."""

    def download(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def refused(kind):
    """An error of the hub's library as it arrives: behind another one."""
    error = OSError("something went wrong")
    error.__cause__ = kind("no", response=Mock())
    return error


def test_the_hubs_answers_are_told_apart(monkeypatch):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    text = {
        "gated; accept its terms on the hub, then log in": refused(GatedRepoError),
        "has no revision r of it; check model.revision": refused(RevisionNotFoundError),
        "no such model .*check the spelling": refused(RepositoryNotFoundError),
        "nothing is cached; go online once, or give a folder": OSError("timed out"),
    }
    for sentence, error in text.items():
        answers(monkeypatch, error)
        with pytest.raises(ModelError, match=f"^someone/model: .*{sentence}"):
            load_family(Model(base="someone/model", revision="r"))


def test_why_nothing_comes_from_the_hub_is_told(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "the hub cannot be reached" in explain_hub_error(ConnectionError("no route"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in explain_hub_error(ConnectionError("no route"))
    full = OSError(28, "No space left on device", "/cache/blob")
    assert "is full; free some space, or set HF_HOME" in explain_hub_error(full)
    denied = PermissionError(13, "Permission denied", "/cache/blob")
    assert "cache cannot be used: " in explain_hub_error(denied) and "Permission denied" in explain_hub_error(denied)


def test_a_hub_without_a_part_names_it(broken, monkeypatch):
    shutil.rmtree(broken / "vae")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(broken))
    with pytest.raises(ModelError, match=r"^someone/model: the part vae is missing"):
        load_family(Model(base="someone/model"))


def test_a_variant_that_a_hub_has_not_is_named(broken, monkeypatch):
    for weights in broken.glob("*/*.safetensors"):
        weights.unlink()  # Only weights of the variant are fetched.
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(broken))
    with pytest.raises(ModelError, match=r"the part unet has no fp16 \.safetensors weights; leave model\.variant out"):
        load_family(Model(base="someone/model", variant="fp16"))


def test_a_folders_variant_is_loaded_and_one_that_it_has_not_is_named(broken):
    with pytest.raises(ModelError, match=r"has no fp16 weights; leave model\.variant out"):
        load_family(Model(base=str(broken), variant="fp16"))
    for weights in broken.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert load_family(Model(base=str(broken), variant="fp16")).name == "sd1"


def test_shards_of_a_variant_are_fetched_and_of_none_are_not(broken, monkeypatch):
    requests = []

    def download(*arguments, **options):
        requests.append({name: options[name] for name in ("allow_patterns", "ignore_patterns")})
        raise OSError("enough")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    files = [f"unet/diffusion_pytorch_model{kind}-00001-of-00002.safetensors" for kind in ("", ".fp16")]
    for variant, kept in (("fp16", files[1:]), (None, files[:1])):
        with pytest.raises(ModelError):
            load_family(Model(base="someone/model", variant=variant))
        assert [*filter_repo_objects(files, **requests[-1])] == kept


@pytest.mark.parametrize(
    ("base", "size"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 512),
        ("stabilityai/stable-diffusion-2-1-base", 512),
        ("stabilityai/stable-diffusion-2-base", 512),
        ("stabilityai/stable-diffusion-2-1", 768),
        ("stabilityai/stable-diffusion-2", 768),
        ("someone/anime-768-v", 768),
        ("stabilityai/stable-diffusion-xl-base-1.0", 1024),
    ],
)
def test_a_hub_ids_native_size_is_told_by_its_name(base, size):
    assert native_size(base) == size
