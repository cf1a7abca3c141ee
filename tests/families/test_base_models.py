"""The models folders: what lies there has a name, a family and a size, or a reason why it is no base."""

import os
import shutil

import pytest

from sdlora.api.models import base_choices
from sdlora.api.training import prepare_run
from sdlora.cli.main import main
from sdlora.config import TrainConfig
from sdlora.errors import ModelError
from sdlora.families import base_models as catalogs
from sdlora.families.base_models import find_model, list_models, locate_base, model_folders
from tests.support.single_file_checkpoints import full_size_shapes, write_header
from tests.support.tiny_models import write_tiny_adapter


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A data folder with an empty models folder, used unless told otherwise."""
    (tmp_path / "data" / "models").mkdir(parents=True)
    monkeypatch.setenv("SDLORA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("SDLORA_MODELS", raising=False)
    return tmp_path / "data"


@pytest.fixture
def models(data_dir, tiny_base):
    """A models folder with a file of each family, a diffusers folder, and what is no base."""
    place = data_dir / "models"
    (place / "xl").mkdir()
    write_header(place / "photo.safetensors", full_size_shapes("sd1"))
    write_header(place / "drawn.safetensors", full_size_shapes("sd2"))
    write_header(place / "xl" / "paint.safetensors", full_size_shapes("sdxl"))
    shutil.copytree(tiny_base, place / "mine")
    write_tiny_adapter(place / "adapter.safetensors")
    (place / "old.ckpt").write_bytes(b"x")
    (place / "cut.safetensors").write_bytes(b"x" * 40)
    (place / "notes.txt").write_text("x")
    return place


def test_what_lies_there_is_told_from_headers_and_configs(models, tiny_base):
    found = {model.name: model for model in list_models(model_folders())}
    usable = {name: (model.family, model.native_size) for name, model in found.items() if not model.problem}
    assert usable == {"photo": ("sd1", 512), "drawn": ("sd2", 768), "xl/paint": ("sdxl", 1024), "mine": ("sd1", 64)}
    assert found["photo"].bytes == (models / "photo.safetensors").stat().st_size
    assert found["mine"].bytes == sum(file.stat().st_size for file in tiny_base.glob("*/*.safetensors"))
    assert found["xl/paint"].path == models / "xl" / "paint.safetensors"


def test_what_is_no_base_is_there_with_its_reason(models):
    problems = {model.name: model.problem for model in list_models(model_folders()) if model.problem}
    assert {*problems} == {"adapter", "old.ckpt", "cut"}
    assert "is it an adapter?" in problems["adapter"]
    assert "can run code" in problems["old.ckpt"]
    assert "cut short" in problems["cut"]


def test_an_unfinished_file_and_a_foreign_family_have_reasons(data_dir):
    shapes = full_size_shapes("sd1")
    unet = {name: shape for name, shape in shapes.items() if name.startswith("model.diffusion_model.")}
    write_header(data_dir / "models" / "unet.safetensors", unet)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    write_header(data_dir / "models" / "inpaint.safetensors", shapes | {first: [320, 9, 3, 3]})
    problems = {model.name: model.problem for model in list_models(model_folders())}
    assert "the part vae, text_encoder is missing" in problems["unet"]
    assert "family inpainting, which is not served yet" in problems["inpaint"]


@pytest.mark.parametrize("name", ["photo", "photo.safetensors", "xl/paint", "mine"])
def test_a_name_is_a_base(models, name):
    ending = "" if name == "mine" or name.endswith(".safetensors") else ".safetensors"
    assert locate_base(name).location == str(models / f"{name}{ending}")
    assert locate_base(name).kind == ("folder" if name == "mine" else "file")


def test_bundled_names_and_paths_go_before_names_and_these_before_hub_ids(models, tmp_path, monkeypatch):
    write_header(models / "pocket.safetensors", full_size_shapes("sd1"))
    assert locate_base("pocket").location.endswith("pocket") and locate_base("pocket").kind == "folder"
    assert (locate_base("xl/paint").kind, locate_base("xl/other").kind) == ("file", "hub")
    (tmp_path / "here" / "photo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelError, match=r"photo: is no base model: it has no model_index\.json"):
        locate_base("photo")
    (tmp_path / "here" / "photo" / "model_index.json").touch()
    assert locate_base("photo").location == "photo"


@pytest.mark.parametrize(
    "name", ["../data/models/photo", "deep/er/photo", "xl", ".", "adapterz", "~root/x", "a\0b", "a" * 300]
)
def test_other_names_are_none(models, name):
    assert find_model(name, model_folders()) is None


def test_a_near_name_is_suggested(models):
    with pytest.raises(ModelError, match="did you mean photo"):
        locate_base("phoot")


def test_folders_of_the_variable_go_first(models, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_header(tmp_path / name / "photo.safetensors", full_size_shapes("sdxl"))
    absent = str(tmp_path / "absent")
    monkeypatch.setenv("SDLORA_MODELS", os.pathsep.join([absent, str(tmp_path / "one"), str(tmp_path / "two")]))
    assert model_folders() == [tmp_path / "one", tmp_path / "two", models]
    assert locate_base("photo").location == str(tmp_path / "one" / "photo.safetensors")
    names = [model.name for model in list_models(model_folders()) if not model.problem]
    assert sorted(names) == ["drawn", "mine", "photo", "xl/paint"]


def test_links_that_lead_out_are_not_followed(models, tmp_path):
    write_header(tmp_path / "far.safetensors", full_size_shapes("sd1"))
    (models / "far.safetensors").symlink_to(tmp_path / "far.safetensors")
    (models / "near.safetensors").symlink_to(models / "photo.safetensors")
    (tmp_path / "elsewhere").mkdir()
    write_header(tmp_path / "elsewhere" / "hidden.safetensors", full_size_shapes("sd1"))
    (models / "elsewhere").symlink_to(tmp_path / "elsewhere")
    found = {model.name: model.problem for model in list_models(model_folders())}
    assert "leads out of the models folder" in found["far"]
    assert found["near"] == ""
    assert not any("hidden" in name for name in found)
    assert find_model("far", model_folders()) is None and find_model("elsewhere/hidden", model_folders()) is None


def test_folders_are_looked_into_two_levels_deep_and_not_for_ever(models, monkeypatch):
    (models / "a" / "b").mkdir(parents=True)
    write_header(models / "a" / "b" / "deep.safetensors", full_size_shapes("sd1"))
    assert "a/b/deep" not in {model.name for model in list_models(model_folders())}
    monkeypatch.setattr(catalogs, "MOST", 3)
    assert len(list_models(model_folders())) <= 3


def test_a_folder_and_a_file_of_one_name_are_both_had(models, tiny_base):
    write_header(models / "mine.safetensors", full_size_shapes("sd1"))
    found = {model.name: model.native_size for model in list_models(model_folders())}
    assert (found["mine"], found["mine.safetensors"]) == (64, 512)
    assert {locate_base("mine").kind, locate_base("mine.safetensors").kind} == {"folder", "file"}


def test_a_file_that_changes_is_read_anew(data_dir):
    path = data_dir / "models" / "photo.safetensors"
    write_header(path, full_size_shapes("sd1"))
    assert [model.family for model in list_models(model_folders())] == ["sd1"]
    write_header(path, full_size_shapes("sdxl"))
    os.utime(path, ns=(1, 1))
    assert [model.family for model in list_models(model_folders())] == ["sdxl"]


def test_the_command_lists_bases_and_says_what_is_none(models, data_dir, capsys):
    assert main(["models", "--data-dir", str(data_dir)]) == 0
    output = capsys.readouterr()
    rows = [line.split() for line in output.out.partition("\n\n")[0].splitlines()]
    assert [row[:3] for row in rows] == [
        ["pocket", "sd1", "128"], ["drawn", "sd2", "768"], ["mine", "sd1", "64"], ["photo", "sd1", "512"],
        ["xl/paint", "sdxl", "1024"],
    ]  # fmt: skip
    assert rows[3][-1] == str(models / "photo.safetensors")
    assert "old.ckpt: can run code" in output.err and "adapter: holds no diffusion model" in output.err


def test_choices_have_names_and_paths(models, data_dir):
    assert base_choices(data_dir) == [
        ("pocket", "pocket"), ("drawn", str(models / "drawn.safetensors")), ("mine", str(models / "mine")),
        ("photo", str(models / "photo.safetensors")), ("xl/paint", str(models / "xl" / "paint.safetensors")),
    ]  # fmt: skip


def test_a_run_keeps_the_path_that_a_name_meant(models, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("SDLORA_DATA_DIR", str(tmp_path / "elsewhere"))
    values = {"model.base": "mine", "data.folder": str(pictures), "data.trigger": "sks", "train.device": "cpu"}
    run = prepare_run(TrainConfig.parse({}, "test", values), "one", models.parent)
    assert run.config.model.base == str(models / "mine")
    with pytest.raises(ModelError, match="there is no 'mine'"):
        prepare_run(TrainConfig.parse({}, "test", values), "one", tmp_path / "elsewhere")


def test_a_vocabularys_folder_is_made_absolute(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.parse({}, "test", {"data.folder": str(pictures), "model.tokenizer": "words"})
    assert config.model.tokenizer == tmp_path / "words"
    config.save(tmp_path / "config.toml")
    assert TrainConfig.load(tmp_path / "config.toml").model.tokenizer == tmp_path / "words"
