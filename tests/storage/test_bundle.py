"""A run packed up to hand on: whole enough to train again, and silent about this machine."""

import tomllib
import zipfile

import pytest
from PIL import Image

from sdlora.api.training import prepare_run
from sdlora.config import TrainConfig
from sdlora.errors import ConfigError
from sdlora.storage.library import Library
from tests.support.tiny_models import write_tiny_adapter as adapter


@pytest.fixture
def packed(tmp_path, configure):
    """The zip file of a run, and the run."""
    library = Library(tmp_path / "data")
    run = prepare_run(configure(sample__prompts=["a red house"]), "mine", library.data_dir)
    adapter(run.adapter)
    run.adapter.with_suffix(".json").write_text("{}")
    Image.new("RGB", (8, 8)).save(run.sample(4, 0))
    return library.bundle("mine", tmp_path / "mine.zip"), run


def test_a_bundle_holds_adapter_settings_previews_and_captions(packed, pictures):
    with zipfile.ZipFile(packed[0]) as pack:
        names = pack.namelist()
        assert pack.read("mine/mine.safetensors") == packed[1].adapter.read_bytes()
        assert pack.read("mine/pictures/3.txt") == (pictures / "3.txt").read_bytes()
    captions = [f"mine/pictures/{number}.txt" for number in range(6)]
    assert names == [
        "mine/mine.safetensors", "mine/mine.json", "mine/config.toml", "mine/samples/000004-0.png", *captions,
    ]  # fmt: skip


def test_a_bundle_has_all_captions_though_a_picture_has_been_damaged_since(tmp_path, configure):
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("good", "bad", "third"):
        Image.new("RGB", (64, 64), "red").save(folder / f"{name}.png")
    (folder / "good.txt").write_text("a red house")
    (folder / "bad.caption").write_text("a blue house")
    library = Library(tmp_path / "data")
    adapter(prepare_run(configure(data__folder=str(folder)), "other", library.data_dir).adapter)
    (folder / "bad.png").write_bytes(b"no image")
    with zipfile.ZipFile(library.bundle("other", tmp_path / "other.zip")) as pack:
        captions = {name: pack.read(name) for name in pack.namelist() if "/pictures/" in name}
    assert captions == {"other/pictures/good.txt": b"a red house", "other/pictures/bad.caption": b"a blue house"}


def test_a_bundle_names_no_folder_of_this_machine(packed, pictures, tiny_base, tmp_path):
    with zipfile.ZipFile(packed[0]) as pack:
        content = b"".join(pack.read(name) for name in pack.namelist())
    for folder in (tmp_path, pictures.parent, tiny_base.parent):
        assert str(folder).encode() not in content


def test_a_bundles_config_trains_the_same_where_the_pictures_are_put(packed, tiny_base, tmp_path):
    with zipfile.ZipFile(packed[0]) as pack:
        pack.extractall(tmp_path / "out")
    config = tmp_path / "out" / "mine" / "config.toml"
    assert tomllib.loads(config.read_text())["data"]["folder"] == "pictures"
    loaded = TrainConfig.load(config, {"model.base": str(tiny_base)})
    assert loaded.data.folder == config.parent / "pictures"
    ours, theirs = (one.model_dump(exclude={"data": {"folder"}}) for one in (loaded, packed[1].config))
    assert ours == theirs


def test_an_imported_adapter_has_no_settings_to_pack(tmp_path):
    library = Library(tmp_path / "data")
    adapter(library.folder / "found.safetensors")
    with pytest.raises(ConfigError, match="found: was imported"):
        library.bundle("found", tmp_path / "x.zip")
