"""``evaluation.json``: written, read back, and refused in one sentence where anyone spoilt it."""

import json
from dataclasses import asdict

import pytest

from sdlora.errors import ConfigError, FormatError
from sdlora.evaluation.figures import Candidate, Figure
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.proposal import TrainedAs, propose
from sdlora.evaluation.report import FILE, Evaluation, read_evaluation, write_evaluation
from sdlora.evaluation.table import evaluation_table, format_figure

FIGURES = {"look": Figure(0.8, 0.5, 0.9, 0.75), "prompts": Figure(0.3, 0.31, None, 0.97)}
CANDIDATES = (
    Candidate("checkpoints/000050.safetensors", 50, 0.8, FIGURES, "02.png", "03.png"),
    Candidate("checkpoints/000100.safetensors", 100, 1.0, {**FIGURES, "look": Figure(0.9, 0.5, 0.9, None)}),
)
EVALUATION = Evaluation(
    "cat", "subject", "pocket", "pocket", "pocket", EvaluationPrompts(("a sks cat",), ("a cat",)), 2, CANDIDATES,
    propose(CANDIDATES, "subject", TrainedAs()), {"steps": 20, "negative": ""},
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_evaluation(EVALUATION, tmp_path)
    return tmp_path


def test_what_is_written_is_read_back(folder):
    assert read_evaluation(folder) == EVALUATION


def test_a_folder_without_one_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="sdlora evaluate"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("kind",), "animal"), (("candidates",), None), (("candidates",), {}), (("candidates", 0, "step"), "many"),
     (("candidates", 0, "figures", "look", "value"), None), (("candidates", 0, "scale"), 1e999),
     (("candidates", 0, "copied"), 3), (("proposal", "chosen"), 2), (("proposal", "front"), [-1]),
     (("proposal", "alarms"), [["fire", "text", "remedy"]]), (("prompts",), []), (("version",), 2), (("version",), 0),
     (("settings",), [1])],
)  # fmt: skip
def test_a_spoilt_file_is_refused_in_one_sentence(folder, path, value):
    values = asdict(EVALUATION)
    part = values
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (folder / FILE).write_text(json.dumps(values))
    with pytest.raises(FormatError, match=r"evaluate the run again|version") as error:
        read_evaluation(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"x"', "[" * 10_000, "{}"])
def test_a_file_that_is_no_evaluation_is_refused(folder, text):
    (folder / FILE).write_text(text)
    with pytest.raises(FormatError) as error:
        read_evaluation(folder)
    assert "\n" not in str(error.value)


def test_the_table_has_each_share_with_its_value_and_the_bases():
    head, first, second = evaluation_table(EVALUATION)
    assert head.split()[:3] == ["step", "scale", "look"]
    assert "0.75 (0.80 | 0.50)" in first and first.endswith("03.png") and first.startswith("*")
    assert "- (0.90 | 0.50)" in second


def test_a_figure_is_written_with_its_sign_and_one_that_is_missing_as_a_dash():
    candidate = Candidate("x", 1, 1.0, {"look": Figure(0.9, None, None, -0.125)})
    assert format_figure(candidate, "look") == ("-0.12", "0.90 | -")
    assert format_figure(candidate, "spill") == ("-", "")


def leaves(value, path=()):
    """The places of all numbers in a JSON value."""
    if isinstance(value, dict | list | tuple):
        named = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for name, part in named for place in leaves(part, (*path, name))]
    return [path] if isinstance(value, int | float) else []


NUMBERS = leaves(asdict(EVALUATION))


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1e308, 10**400], ids=["nan", "inf", "large", "digits"])
@pytest.mark.parametrize("place", NUMBERS, ids=lambda place: ".".join(map(str, place)))
def test_no_number_of_the_file_may_be_one_that_cannot_be_shown_or_sent(folder, place, odd):
    values = json.loads(json.dumps(asdict(EVALUATION)))
    part = values
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = odd
    (folder / FILE).write_text(json.dumps(values))
    with pytest.raises(FormatError) as error:
        read_evaluation(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("linked", [".", FILE])
def test_a_link_out_of_the_folder_of_its_run_is_not_followed(folder, tmp_path_factory, linked):
    run = tmp_path_factory.mktemp("run")
    (run / "evaluation").symlink_to(folder) if linked == "." else (run / "evaluation").mkdir()
    if linked == FILE:
        (run / "evaluation" / FILE).symlink_to(folder / FILE)
    with pytest.raises(FormatError, match="is a link out of"):
        read_evaluation(run / "evaluation")
