"""TrainConfig: presets, TOML files, flags, and what is said of mistakes in them."""

import pytest

from sdlora.config import PRESETS, TrainConfig, adapt_to_device, all_settings, presets
from sdlora.errors import ConfigError


@pytest.mark.parametrize("path", presets(), ids=lambda path: path.stem)
def test_presets_load_by_name_and_by_path_and_are_short(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.load(path.stem)
    assert config == TrainConfig.load(path)
    assert config.data.folder.is_dir()
    assert len(path.read_text().splitlines()) <= 15


def test_the_presets_that_the_docs_name_are_there():
    names = {"pocket-style", "pocket-subject", "sd15-style", "sd15-subject", "sdxl-style", "sdxl-subject"}
    assert names <= {path.stem for path in presets()}
    assert PRESETS.is_dir()


def test_the_pocket_style_leaves_four_checkpoints_to_choose_from():
    config = TrainConfig.load("pocket-style")
    assert config.train.steps // config.checkpoint.every >= 4


@pytest.mark.parametrize("name", ["pocket-style", "pocket-subject", "sd15-style", "sd15-subject"])
def test_presets_of_one_text_encoder_train_it_and_never_faster_than_the_unet(name):
    config = TrainConfig.load(name)
    assert config.adapter.text_encoder
    assert config.train.text_encoder_stop is None
    assert 0 < config.train.text_encoder_learning_rate <= config.train.learning_rate


def test_what_no_run_could_be_built_with_is_told_when_it_is_read():
    with pytest.raises(ConfigError, match="schedulefree averages by beta1; give a number above 0"):
        TrainConfig.load("pocket-subject", {"optimizer.beta1": "0"})


def test_the_names_that_others_build_on_are_settings():
    promised = """model.base data.folder data.prompt data.resolution data.trigger prior.weight adapter.method
        adapter.targets adapter.rank adapter.alpha train.steps train.seed train.batch_size train.learning_rate
        train.text_encoder_learning_rate checkpoint.every sample.every sample.prompts prior.folder prior.count
        prior.class_prompt adapter.init"""
    assert set(promised.split()) <= {setting.name for setting in all_settings()}


def test_every_setting_has_help():
    assert [setting.name for setting in all_settings() if len(setting.help) < 10 and "method" not in setting.name] == []


def test_a_saved_config_loads_equal(tmp_path):
    config = TrainConfig.load("pocket-subject", {"adapter.rank": "8", "train.learning_rate": "3e-4"})
    config.save(tmp_path / "config.toml")
    assert TrainConfig.load(tmp_path / "config.toml") == config


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "run.toml").write_text('model.base = "base"\ndata.folder = "pictures"\nadapter.init = "a.safetensors"')
    monkeypatch.chdir("/")
    config = TrainConfig.load(tmp_path / "run.toml")
    assert config.data.folder == tmp_path / "pictures"
    assert config.model.base == str(tmp_path / "base")
    assert config.adapter.init == tmp_path / "a.safetensors"


def test_relative_paths_in_flags_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    flags = {"data.folder": "mine", "adapter.init": "a.safetensors", "model.base": "base"}
    TrainConfig.load("pocket-style", flags).save(tmp_path / "elsewhere" / "config.toml")
    monkeypatch.chdir("/")
    config = TrainConfig.load(tmp_path / "elsewhere" / "config.toml")
    assert config.data.folder == tmp_path / "mine"
    assert config.adapter.init == tmp_path / "a.safetensors"
    assert config.model.base == str(tmp_path / "base")


@pytest.mark.parametrize(("given", "other"), [("steps", "epochs"), ("epochs", "steps")])
def test_a_length_given_as_a_flag_replaces_the_presets(given, other, tmp_path):
    (tmp_path / "mine.toml").write_text(f'data.folder = "."\ntrain.{other} = 7\ntrain.batch_size = 3')
    train = TrainConfig.load(tmp_path / "mine.toml", {f"train.{given}": "5"}).train
    assert (getattr(train, given), getattr(train, other), train.batch_size) == (5, None, 3)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(tmp_path / "mine.toml", {"train.epochs": "5", "train.steps": "5"})
    assert str(caught.value).endswith("mine.toml: train: set steps or epochs, not both")


def test_a_section_that_is_no_table_is_told(tmp_path):
    with pytest.raises(ConfigError, match="train"):
        TrainConfig.parse({"train": 5}, "test", {"train.steps": "3"})


def test_flags_win_over_the_file_and_are_read_from_their_text():
    flags = {"adapter.rank": "8", "data.flip": "true", "sample.prompts": ["a", "b"], "train.steps": "7"}
    config = TrainConfig.load("pocket-style", flags)
    assert (config.adapter.rank, config.data.flip, config.sample.prompts, config.train.steps) == (
        8,
        True,
        ("a", "b"),
        7,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter.rnak = 3", "adapter.rank"),
        ("trian.steps = 3", "train"),
        ("adapter.rank = -1", "greater than or equal to 1"),
        ("train.steps = 0", "greater than or equal to 1"),
        ("train.learning_rate = nan", "train.learning_rate"),
        ("train.steps = 5\ntrain.epochs = 2", "not both"),
        ('adapter.targets = "cros-attention"', "cross-attention"),
        ('sample.sampler = "DPM+"', "DPM++"),
        ('prior.sampler = "DDMI"', "DDIM"),
        ("version = 99", "update sdlora"),
        ("adapter = 3", "adapter"),
        ("a = [" + "[" * 100_000, "TOML"),
        ("data.folder = ", "TOML"),
    ],
)
def test_a_mistake_is_told_with_its_file_its_place_and_a_remedy(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text if "data.folder" in text else f'data.folder = "x"\n{text}')
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(path)
    assert "mine.toml" in str(caught.value)
    assert message in str(caught.value)


def test_a_sampler_is_kept_as_the_table_spells_it():
    config = TrainConfig.load("pocket-style", {"prior.sampler": "dpm++ 2m karras", "sample.sampler": "euler A"})
    assert (config.prior.sampler, config.sample.sampler) == ("DPM++ 2M Karras", "Euler a")


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean pocket-style"):
        TrainConfig.load("pocket-stile")


def test_a_message_names_the_file_only_for_what_stands_there(tmp_path):
    preset = tmp_path / "own.toml"
    preset.write_text('[data]\nfolder = "."\n[train]\nbatch_size = -1\n')
    with pytest.raises(ConfigError) as raised:
        TrainConfig.load(preset, {"train.steps": "many", "adapter.method": "lorax"})
    lines = str(raised.value).splitlines()
    assert sorted(line.split(" = ")[0] for line in lines) == sorted(
        ["adapter.method", "train.steps", f"{preset}: train.batch_size"]
    )


def test_a_config_without_pictures_says_which_flag_to_give(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ConfigError, match=r"--data\.folder"):
        TrainConfig.load(tmp_path / "empty.toml")


def test_the_reference_page_is_made_from_the_declarations():
    from tools.make_reference import PAGE, reference

    assert PAGE.read_text(encoding="utf-8") == reference(), "run: python -m tools.make_reference"


def test_a_config_fits_a_device_and_little_memory_with_as_many_pictures_a_step():
    config = TrainConfig.load("pocket-style", {"train.batch_size": 4, "train.gradient_accumulation": 3})
    assert adapt_to_device(config) == config
    assert adapt_to_device(config, "cuda:1").train.device == "cuda:1"
    chosen = TrainConfig.load("pocket-style", {"train.device": "cpu"})
    assert adapt_to_device(chosen, "cuda:1").train.device == "cpu"  # What a person set goes before a flag.
    small = adapt_to_device(config, low_memory=True).train
    assert (small.batch_size, small.gradient_accumulation, small.gradient_checkpointing) == (1, 12, True)
    assert config.train.batch_size == 4


def test_another_method_given_in_place_of_a_files_leaves_out_what_it_does_not_have():
    with pytest.warns(UserWarning, match="adapter.rank of lora is left out: ia3 has none"):
        TrainConfig.parse({"data": {"folder": "x"}, "adapter": {"rank": 8}}, "x", {"adapter.method": "ia3"})
    config = TrainConfig.load("pocket-style", {"adapter.method": "ia3"})
    known = TrainConfig.load("pocket-style")
    assert config.adapter.method == "ia3" and not hasattr(config.adapter, "rank")
    assert config.adapter.targets == known.adapter.targets
    lokr = TrainConfig.load("pocket-style", {"adapter.method": "lokr", "adapter.factor": "8"})
    assert (lokr.adapter.rank, lokr.adapter.factor) == (known.adapter.rank, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter.method": "ia3", "adapter.rank": "4"}, "the method ia3 has no setting adapter.rank"),
        ({"adapter.factor": "4"}, "the method lora has no setting adapter.factor"),
        ({"adapter.method": "lorra"}, "adapter.method = 'lorra' is no method; did you mean lora"),
        ({"adapter.rnk": "4"}, "there is no setting adapter.rnk; did you mean adapter.rank"),
    ],
)
def test_a_setting_that_a_method_lacks_is_told_by_name(settings, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        TrainConfig.load("pocket-style", settings)
