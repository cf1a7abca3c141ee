"""Several concepts in a config: read from TOML and flags, saved as they were given, and refused with a remedy."""

from pathlib import Path

import pytest

from sdlora.cli import options
from sdlora.cli.main import _parser
from sdlora.config import TrainConfig
from sdlora.errors import ConfigError

TWO = """
model.base = "pocket"
data.flip = true
prior.weight = 0.5
[[concepts]]
folder = "cats"
trigger = "sks"
class_name = "cat"
[[concepts]]
folder = "dogs"
trigger = "ohwx"
class_folder = "all-dogs"
flip = false
weight = 2
"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TWO)
    return path


def test_concepts_are_read_with_paths_relative_to_their_file(two: Path) -> None:
    cat, dog = TrainConfig.load(two).all_concepts
    assert (cat.folder, cat.flip, cat.weight, cat.prior_weight) == (two.parent / "cats", True, 1, 0.5)
    assert (dog.folder, dog.flip, dog.weight, dog.class_folder) == (
        two.parent / "dogs", False, 2, two.parent / "all-dogs",
    )  # fmt: skip
    assert TrainConfig.load(two).data.folder == cat.folder


def test_a_saved_config_keeps_what_each_concept_leaves_to_the_run(two: Path, tmp_path: Path) -> None:
    config = TrainConfig.load(two)
    config.save(tmp_path / "saved" / "config.toml")
    assert TrainConfig.load(tmp_path / "saved" / "config.toml") == config
    other = TrainConfig.load(tmp_path / "saved" / "config.toml", {"data.flip": "false", "prior.weight": "1"})
    assert [(one.flip, one.prior_weight) for one in other.all_concepts] == [(False, 1), (False, 1)]


def test_a_config_of_one_concept_is_saved_without_a_list(tmp_path: Path) -> None:
    TrainConfig.load("pocket-subject").save(tmp_path / "config.toml")
    assert "concepts" not in (tmp_path / "config.toml").read_text()


def given(command: list[str]) -> TrainConfig:
    parser, _ = _parser(command)
    return TrainConfig.load("pocket-subject", options.overrides(parser.parse_args(command)))


def test_flags_give_concepts_in_place_of_a_presets_pictures_and_words(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "pocket-subject", "--concept", "folder=a", "trigger=abc", "class_name=cat"]
    config = given([*command, "--concept", "folder=b", "trigger=ohwx", "class_name=dog", "weight=2"])
    cat, dog = config.all_concepts
    assert (cat.folder, dog.folder, dog.weight) == (tmp_path / "a", tmp_path / "b", 2)
    assert (config.data.trigger, config.data.class_name) == ("", "")
    assert config.sample.prompts == ("a abc cat on sand", "a cat on sand", "a ohwx dog on sand", "a dog on sand")


ONE, OTHER = {"folder": "a", "trigger": "sks"}, {"folder": "b", "trigger": "ohwx"}


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ([], "concepts is empty; describe each in a table [[concepts]], or remove the line"),
        ([ONE] * 65, "65 concepts are more than the 64"),
        ([ONE, {**OTHER, "triger": "x"}], "concept 2: there is no setting triger; did you mean trigger?"),
        ([ONE, {"trigger": "ohwx"}], "concept 2: folder is not set; add it"),
        ([ONE, {**OTHER, "weight": 0}], "concept 2: weight = 0: input should be greater than 0"),
        ([ONE, {**OTHER, "repeats": 1001}], "concept 2: repeats = 1001"),
        (
            [ONE, {**OTHER, "trigger": "SKS "}],
            "concepts 1 and 2 have the same trigger, sks; give each a word of its own",
        ),
        ([ONE, {**OTHER, "folder": "a/b"}], "the folders of concepts 1 and 2 share"),
        ([ONE, {**OTHER, "folder": "b/../a"}], "the folders of concepts 1 and 2 share"),
        ([ONE, {**OTHER, "class_folder": "a"}], "concept 2 (ohwx): class_folder is the folder of concept 1"),
        (
            [ONE, {**OTHER, "resolution": 64}],
            "concept 2 (ohwx): resolution holds for the whole run; set data.resolution",
        ),
        ([ONE, 3], "concept 2"),
        (3, "concepts = 3"),
        ("a", "concepts = 'a'"),
    ],
)
def test_a_mistake_is_one_sentence_with_a_remedy(concepts: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.parse({"concepts": concepts}, "mine.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.toml: ") and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.folder", "x"), ("data.trigger", "x"), ("data.class_name", "x"), ("data.prompt", "x"),
        ("data.preserve_untriggered", "0.2"), ("prior.folder", "x"), ("prior.class_prompt", "x"),
    ],
)  # fmt: skip
def test_words_of_one_concept_do_not_stand_beside_a_list(name: str, value: str, two: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} is for a run of one concept; move it into a table"):
        TrainConfig.load(two, {name: value})


def test_a_concept_may_preserve_what_its_trigger_does_not_call(two: Path) -> None:
    own = [{"folder": "a", "trigger": "sks", "preserve_untriggered": 0.2}, {"folder": "b"}]
    assert [one.preserve_untriggered for one in TrainConfig.load(two, {"concepts": own}).all_concepts] == [0.2, 0]


@pytest.mark.parametrize("words", [["folder"], ["colour=red"], ["=x"]])
def test_a_flag_that_is_no_setting_of_a_concept_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--concept: "):
        given(["train", "pocket-subject", "--concept", *words])


def test_a_dotted_name_means_no_concept(two: Path) -> None:
    with pytest.raises(ConfigError, match=r"concepts.flip: a concept has no dotted name"):
        TrainConfig.load(two, {"concepts.flip": "true"})
