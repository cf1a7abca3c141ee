"""Base models from strangers, through every door: no code of theirs is run, and nothing is read beside their folder."""

import json
import os
import pickle
import runpy
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from sdlora.api.generation import GenerationRequest
from sdlora.api.models import available_models, native_size
from sdlora.api.training import train
from sdlora.errors import ConfigError, FormatError, SdloraError
from sdlora.evaluation.fidelity import Clip
from sdlora.families.base_models import bundled_bases
from sdlora.families.detect import detect_folder
from sdlora.families.layer_weights import locate_tensors
from sdlora.families.loading import load_family
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.families.untrusted_folder import require_data_only_tokenizer
from sdlora.formats.adapter_check import require_fits
from sdlora.generation.studio import Studio
from sdlora.jobs import tool_process
from sdlora.ui.app_state import AppState
from tests.support import hostile_files
from tests.support.hostile_files import Refused, framed
from tests.support.single_file_checkpoints import fill_hub_cache, write_header
from tests.support.tiny_models import write_tiny_adapter, write_tiny_clip

Command = Callable[..., Refused]
Change = Callable[[Path, Path], object]
"""Makes a model's folder hostile, given the folder, and the file that its code would write."""
EVIL = ["evil", "Evil"]


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def index(**values: Any) -> Change:
    """``model_index.json`` with other values, and modules of those names beside it and in every part."""

    def change(folder: Path, written: Path) -> None:
        edit(folder / "model_index.json", **values)
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            hostile_files.canary(place / "evil.py", written)

    return change


def config(part: str, **values: Any) -> Change:
    """A part's configuration with other values, and modules of all names that it may name."""

    def change(folder: Path, written: Path) -> None:
        (file,) = [*(folder / part).glob("*config.json")]
        edit(file, **values)
        hostile_files.canary(folder / part / "evil.py", written)

    return change


def shadow(part: str, module: str) -> Change:
    """A module called as a library, where diffusers looks for a model's own classes first."""
    return lambda folder, written: hostile_files.canary(folder / part / f"{module}.py", written)


def weights(folder: Path, part: str = "unet") -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def pickles_only(folder: Path, written: Path) -> None:
    file = weights(folder)
    file.unlink()
    hostile_files.pickled(file.with_suffix(".bin"), written)


def renamed_pickle(folder: Path, written: Path) -> None:
    hostile_files.pickled(weights(folder), written)


def shards(*files: str) -> Change:
    """An index of shards that names those files, of which one is a pickle."""

    def change(folder: Path, written: Path) -> None:
        hostile_files.pickled(folder / "unet" / "shard.bin", written)
        hostile_files.pickled(folder / "outside.safetensors", written)
        names = {f"conv_in.{number}": file for number, file in enumerate(files)}
        values = json.dumps({"metadata": {}, "weight_map": names})
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(values)

    return change


def replaced(place: str, make: hostile_files.Maker) -> Change:
    def change(folder: Path, written: Path) -> None:
        (folder / place).unlink()
        make(folder / place)

    return change


def linked(place: str) -> Change:
    """A file, or a whole part, behind a link out of the folder."""

    def change(folder: Path, written: Path) -> None:
        outside = folder.parent / "elsewhere"
        (folder / place).rename(outside)
        (folder / place).symlink_to(outside)

    return change


def header(**entry: Any) -> Change:
    """Weights whose header says other things of a tensor than are so."""

    def change(folder: Path, written: Path) -> None:
        answer = {f"x{number}": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | entry for number in range(2)}
        weights(folder).write_bytes(framed(json.dumps(answer).encode(), bytes(16)))

    return change


def taken_down(folder: Path, written: Path) -> None:
    """A tensor of another shape than the configuration says."""
    tensors = load_file(weights(folder))
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :2].contiguous()
    save_file(tensors, weights(folder), {"format": "pt"})


UNET = "unet/diffusion_pytorch_model.safetensors"
CODE: dict[str, tuple[Change, str]] = {
    "a pipeline of its own": (index(_class_name=EVIL), "a pipeline of its own, whose code is never run"),
    "a class of its own": (index(unet=EVIL), "names evil.Evil for the part unet; of code only UNet2D"),
    "a text encoder of its own": (index(text_encoder=EVIL), "for the part text_encoder; of code only CLIPTextModel"),
    "a scheduler of its own": (index(scheduler=EVIL), "for the part scheduler; of code only diffusers' own"),
    "another part of its own": (index(extra=EVIL), "for the part extra"),
    "a part elsewhere": (index(**{"../../x": EVIL}), "for the part ../../x"),
    "a class of Python's": (index(vae=["os", "system"]), "names os.system for the part vae"),
    "another class of the library": (index(text_encoder=["transformers", "AutoModel"]), "transformers.AutoModel"),
    "a class that is none": (index(unet=["diffusers", {"a": []}]), "for the part unet"),
    "one name": (index(unet=["evil"]), "for the part unet"),
    "diffusers.py beside the weights": (shadow("unet", "diffusers"), "never the model's own"),
    "transformers.py beside the tokenizer": (shadow("tokenizer", "transformers"), "never the model's own"),
    "a UNet's auto_map": (config("unet", auto_map={"AutoModel": "evil.Evil"}), "auto_map asks for code"),
    "a text encoder's auto_map": (config("text_encoder", auto_map={"AutoModel": "evil.Evil"}), "auto_map asks"),
    "a tokenizer's auto_map": (config("tokenizer", auto_map={"AutoTokenizer": ["evil.Evil", None]}), "auto_map asks"),
    "a pipeline in a config": (config("scheduler", custom_pipelines={"x": {"impl": "evil.Evil"}}), "custom_pipelines"),
    "a kernel of the hub": (config("text_encoder", attn_implementation="evil/kernel"), "attn_implementation asks"),
    "quantized": (config("unet", quantization_config={"quant_method": "modelopt"}), "quantization_config asks"),
    "an adapter that leads away": (
        lambda folder, written: (folder / "text_encoder" / "adapter_config.json").write_text("{}"),
        "would lead to other ones",
    ),
    "pickles only": (pickles_only, "the part unet holds only .bin files; convert them to .safetensors"),
    "a pickle renamed": (renamed_pickle, "is not a safetensors file"),
    "a shard that is a pickle": (shards("shard.bin"), "names 'shard.bin', which is no .safetensors file beside it"),
    "a shard elsewhere": (shards("../outside.safetensors"), "which is no .safetensors file beside it"),
}
BROKEN: dict[str, tuple[Change, str]] = {
    "weights behind a link": (linked(UNET), "is a link out of .*; put the file itself there"),
    "a config behind a link": (linked("vae/config.json"), "is a link out of"),
    "a part behind a link": (linked("tokenizer"), "is a link out of"),
    "the index behind a link": (linked("model_index.json"), "is a link out of"),
    "no end of an index": (
        replaced("model_index.json", hostile_files.device),
        "cannot be read .is no file.|is a link out",
    ),
    "a pipe as index": (replaced("model_index.json", hostile_files.pipe), "is no regular file|is no file"),
    "a pipe as config": (replaced("vae/config.json", hostile_files.pipe), "is no regular file"),
    "a pipe as vocabulary": (replaced("tokenizer/tokenizer_config.json", hostile_files.pipe), "is no regular file"),
    "a pipe as weights": (replaced(UNET, hostile_files.pipe), "is no regular file"),
    "weights without end": (replaced(UNET, hostile_files.device), "is a link out of"),
    "an index nested deeply": (replaced("model_index.json", hostile_files.deep_json), "is no JSON"),
    "a config nested deeply": (replaced("unet/config.json", hostile_files.deep_json), "is no JSON"),
    "a config of megabytes": (
        replaced("vae/config.json", lambda path: path.write_bytes(b" " * (5 << 20))), "has 5.00 MiB, too much"
    ),
    "a config that is a list": (replaced("unet/config.json", lambda path: path.write_text("[]")), "no JSON object"),
    "layers without end": (config("unet", layers_per_block=10**9), "layers_per_block = .* more than any model has"),
    "levels without end": (config("unet", block_out_channels=[32] * 5000), "block_out_channels = inf is more"),
    "a text of a billion layers": (config("text_encoder", num_hidden_layers=10**9), "num_hidden_layers = "),
    "hidden in another config": (config("text_encoder", text_config={"hidden_size": 1e300}), "hidden_size = "),
    "channels that are words": (config("unet", block_out_channels="many"), "cannot be loaded"),
    "a schedule that is a word": (config("scheduler", beta_start="low"), "cannot be loaded"),
    "overlapping tensors": (header(), "cannot be loaded"),
    "a shape beyond the file": (header(shape=[1 << 40]), "cannot be loaded"),
    "a type that is none": (header(dtype="F3"), "cannot be loaded"),
    "another shape": (taken_down, "cannot be loaded"),
    "a header of 64 MB": (replaced(UNET, hostile_files.large_header), "its header of 64.0 MiB is over"),
    "a page for weights": (replaced(UNET, hostile_files.content(b"<html></html>")), "is not a safetensors file"),
}  # fmt: skip
HOSTILE = CODE | BROKEN


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be made hostile."""
    return shutil.copytree(tiny_base, tmp_path / "base")


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_model_is_refused_by_python_and_its_code_never_runs(base: Path, tmp_path: Path, case: str) -> None:
    change, reason = HOSTILE[case]
    change(base, tmp_path / "canary")
    with pytest.raises((ConfigError, FormatError), match=reason) as refused:
        load_family(Model(base=str(base)))
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("case", HOSTILE)
def test_no_other_way_into_a_hostile_model_runs_its_code_or_fails_without_a_sentence(
    base: Path, tmp_path: Path, case: str
) -> None:
    """The layers alone, single tensors, an adapter's self-test, and the list of models."""
    change, _ = HOSTILE[case]
    change(base, tmp_path / "canary")
    adapter = write_tiny_adapter(tmp_path / "a.safetensors")
    ways: list[Callable[[], object]] = [
        lambda: detect_folder(base), lambda: build_meta_model(str(base)), lambda: require_fits(adapter, str(base)),
        lambda: locate_tensors(str(base), ["unet.conv_in"])["unet.conv_in"].read(),
        lambda: native_size(str(base)),
    ]  # fmt: skip
    for way in ways:
        try:
            way()
        except SdloraError as error:
            assert len(str(error).splitlines()) == 1
    (tmp_path / "models").mkdir()
    base.rename(tmp_path / "models" / "base")
    assert len(available_models(tmp_path)) >= len(bundled_bases())
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("case", [*CODE, "weights behind a link", "a pipe as config", "an index nested deeply"])
def test_a_hostile_model_is_refused_by_the_commands(command: Command, base: Path, tmp_path: Path, case: str) -> None:
    change, reason = HOSTILE[case]
    change(base, tmp_path / "canary")
    ended = command("generate", "--base", base, "--prompt", "x", "--device", "cpu", "--output", tmp_path / "a.png")
    assert ended.code in (2, 3)
    assert reason.split("; ")[0] in ended.sentence or "link out" in ended.sentence or "is no" in ended.sentence
    with pytest.raises(SdloraError):
        Studio(str(base), device="cpu")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_a_pickled_model_is_refused_under_any_name(command: Command, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    hostile_files.pickled(path, tmp_path / "canary")
    ended = command("generate", "--base", path, "--prompt", "x", "--device", "cpu", "--output", tmp_path / "a.png")
    assert ended.code in (2, 3)
    assert "safetensors" in ended.sentence
    assert not (tmp_path / "canary").exists()


@pytest.fixture
def ended(app: AppState) -> Iterator[Callable[[Path], str]]:
    """Return the page's last message about an image generated with a base."""

    def draw(base: Path) -> str:
        ticket = app.generate(GenerationRequest(prompt="x", steps=1, base=str(base)), [])
        until = time.monotonic() + 120
        while not ticket.ended and time.monotonic() < until:
            time.sleep(0.1)
            ticket = app.inference.status(ticket.number) or ticket
        assert ticket.state == "failed"
        return ticket.message

    yield draw


def test_a_hostile_model_is_one_sentence_on_the_page(
    tiny_base: Path, tmp_path: Path, ended: Callable[[Path], str]
) -> None:
    for number, case in enumerate(["a class of its own", "diffusers.py beside the weights", "a pickle renamed",
                                   "weights behind a link", "overlapping tensors"]):  # fmt: skip
        base = shutil.copytree(tiny_base, tmp_path / str(number) / "base")
        change, reason = HOSTILE[case]
        change(base, tmp_path / "canary")
        text = ended(base)
        assert reason.split(" .*")[0] in text, case
        assert "\n" not in text
    assert not (tmp_path / "canary").exists()


def test_a_training_on_a_hostile_model_fails_with_its_reason(
    configure: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    index(unet=EVIL)(base, tmp_path / "canary")
    with pytest.raises(SdloraError, match=r"names evil\.Evil for the part unet") as failed:
        train(configure(model__base=str(base)), "x", tmp_path / "data")
    assert failed.value.exit_code == 2
    assert not (tmp_path / "canary").exists()


def test_the_canary_sings_where_it_is_run(tmp_path: Path) -> None:
    hostile_files.canary(tmp_path / "evil.py", tmp_path / "imported")
    hostile_files.pickled(tmp_path / "evil.bin", tmp_path / "unpickled")
    runpy.run_path(str(tmp_path / "evil.py"))
    pickle.loads((tmp_path / "evil.bin").read_bytes())  # noqa: S301 - our own
    assert (tmp_path / "imported").exists() and (tmp_path / "unpickled").exists()


def test_scripts_beside_a_model_that_nothing_names_are_left_alone(base: Path, tmp_path: Path) -> None:
    for place in (base, base / "unet", base / "tokenizer"):
        hostile_files.canary(place / "handler.py", tmp_path / "canary")
    assert load_family(Model(base=str(base))).name == "sd1"
    assert not (tmp_path / "canary").exists()


def test_no_module_of_the_working_folder_is_taken_for_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stands in a stranger's folder and has an adapter checked must not run what lies there."""
    adapter = write_tiny_adapter(tmp_path / "a.safetensors")
    for name in ("torch", "numpy", "sdlora", "json", "safetensors"):
        hostile_files.canary(tmp_path / f"{name}.py", tmp_path / "canary")
    monkeypatch.chdir(tmp_path)
    (checked,) = tool_process.check_adapters([adapter])
    assert checked.refusal == "" and checked.layers == 1
    assert not (tmp_path / "canary").exists()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, without a hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("case", CODE)
def test_a_hostile_repository_of_the_hub_is_refused_and_its_code_never_runs(
    base: Path, offline: Path, tmp_path: Path, case: str
) -> None:
    change, reason = CODE[case]
    change(base, tmp_path / "canary")
    fill_hub_cache(offline, "someone/model", base)
    with pytest.raises((ConfigError, FormatError), match=reason):
        load_family(Model(base="someone/model"))
    assert not (tmp_path / "canary").exists()


def blobs(offline: Path, base: Path) -> Path:
    """A repository as the hub's library lays it out: every file a link to its content. Returns the snapshot."""
    fill_hub_cache(offline, "someone/model", base)
    (snapshot,) = (offline / "models--someone--model" / "snapshots").iterdir()
    store = snapshot.parent.parent / "blobs"
    store.mkdir()
    for number, file in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        file.rename(store / str(number))
        file.symlink_to(os.path.relpath(store / str(number), file.parent))
    return snapshot


def test_links_within_one_hub_cache_are_a_models_normal_form(base: Path, offline: Path) -> None:
    snapshot = blobs(offline, base)
    assert load_family(Model(base="someone/model")).name == "sd1"
    assert load_family(Model(base=str(snapshot))).name == "sd1"
    assert detect_folder(snapshot) == "sd1"


def test_a_link_out_of_a_repository_in_the_hubs_cache_is_refused(base: Path, offline: Path, tmp_path: Path) -> None:
    snapshot = blobs(offline, base)
    other = tmp_path / "hub" / "models--someone--other"
    other.mkdir()
    file = weights(snapshot)
    shutil.copy(file, other / "weights.safetensors")
    file.unlink()
    file.symlink_to(other / "weights.safetensors")
    with pytest.raises(ConfigError, match=f"{file.name}: is a link out of"):
        load_family(Model(base="someone/model"))


def test_a_link_to_the_folder_itself_is_the_owners_own(base: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(base)
    assert load_family(Model(base=str(tmp_path / "link"))).name == "sd1"


@pytest.mark.parametrize(
    ("name", "make"), [("vocab.json", hostile_files.device), ("tokenizer_config.json", hostile_files.pipe)]
)
def test_a_hostile_vocabulary_is_refused_and_not_waited_for(
    tiny_base: Path, tmp_path: Path, name: str, make: hostile_files.Maker
) -> None:
    words = shutil.copytree(tiny_base / "tokenizer", tmp_path / "words")
    (words / name).unlink(missing_ok=True)
    make(words / name)
    with pytest.raises(ConfigError, match=r"is no regular file|is a link out of"):
        require_data_only_tokenizer(words)


def test_a_hostile_clip_is_refused_and_its_pickle_is_never_opened(tmp_path: Path) -> None:
    clip = write_tiny_clip(tmp_path / "clip")
    weights(tmp_path, "clip").unlink()
    hostile_files.pickled(clip / "pytorch_model.bin", tmp_path / "canary")
    with pytest.raises(ConfigError, match="is no folder with a CLIP model"):
        Clip(clip)
    assert not (tmp_path / "canary").exists()


def test_a_single_file_that_lies_of_its_tensors_is_one_sentence(tmp_path: Path) -> None:
    names = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x",
             "cond_stage_model.transformer.text_model.x"]  # fmt: skip
    path = write_header(tmp_path / "m.safetensors", {name: [320, 4, 3, 3] for name in names})
    words = Path(__file__).parents[2] / "sdlora" / "pocket" / "tokenizer"
    with pytest.raises(ConfigError) as refused:
        load_family(Model(base=str(path), tokenizer=words))
    assert len(str(refused.value).splitlines()) == 1
