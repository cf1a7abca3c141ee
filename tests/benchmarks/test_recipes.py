"""The sweep over recipes: every row can run, none is run twice, and the page says what was found."""

import json

import pytest

from benchmarks import recipes, recipes_page
from sdlora.config import TrainConfig


@pytest.mark.parametrize("name", recipes.ROWS)
def test_every_row_changes_its_preset_to_something_that_can_be_trained(name):
    row = recipes.ROWS[name]
    before = {**recipes.BEFORE[row.kind], "train.steps": recipes.BUDGET[row.trial]}
    preset = TrainConfig.load(f"pocket-{row.kind}", before)
    changes = {**before, **{name: value for name, value in row.flags.items() if value != "@subject"}}
    assert name.startswith(f"{row.trial}: ")
    assert (TrainConfig.load(f"pocket-{row.kind}", changes) != preset) == (not name.endswith("the preset"))


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep that trains nothing: the rows and seeds that it was to train."""
    trained = []

    def train(self, row, seed, folder, counted=None):
        if counted is None:
            trained.append((row, seed))
        else:
            counted.append(3e12)
        yield folder

    class Evaluation:
        def evaluate(self, adapter):
            return {"share_of_gap": 0.5 + len(trained) / 100, "clip_t_kept": 0.9}

    monkeypatch.setattr(recipes, "Clip", lambda: None)
    monkeypatch.setattr(recipes, "Studio", lambda base: None)
    monkeypatch.setattr(recipes.Sweep, "_train", train)
    monkeypatch.setattr(recipes.Sweep, "evaluation", lambda self, trial: Evaluation())
    monkeypatch.setattr(recipes, "ROWS", {name: recipes.ROWS[name] for name in CHOSEN})
    words = ["--json", str(tmp_path / "kept.json"), "--work", str(tmp_path / "work")]
    return lambda *more: (trained.clear(), recipes.main([*words, *more]), list(trained))[2]


CHOSEN = ("style: the preset", "style: P2")


def test_a_sweep_that_was_stopped_goes_on_with_what_is_missing(sweep, tmp_path):
    assert [seed for _, seed in sweep("--seeds", "1")] == [0, 0]
    assert [(row == recipes.ROWS[CHOSEN[0]], seed) for row, seed in sweep()] == [
        (True, 1), (True, 2), (False, 1), (False, 2),
    ]  # fmt: skip
    assert sweep() == []
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [row["tflop"] for row in kept["rows"].values()] == [3.0, 3.0]
    assert {name: sorted(row["runs"]) for name, row in kept["rows"].items()} == {
        name: ["0", "1", "2"] for name in CHOSEN
    }


def test_a_row_whose_settings_changed_is_trained_anew(sweep, monkeypatch):
    sweep()
    monkeypatch.setitem(recipes.ROWS, CHOSEN[1], recipes.Row("style", {"loss.weighting": "debiased"}))
    assert [seed for _, seed in sweep()] == [0, 1, 2]


def runs(*values):
    return {str(seed): {"share_of_gap": value, "clip_t_kept": 0.9} for seed, value in enumerate(values)}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ((0.80, 0.82), "more (+0.21)"),
        ((0.40,), "less (-0.20)"),
        ((0.64,), "within the spread"),  # beyond every seed, but by less than seeds differ
        ((0.55, 0.90), "within the spread"),
    ],
)
def test_a_difference_counts_only_beyond_the_spread(own, message):
    assert recipes_page.verdict(runs(*own), runs(0.58, 0.60, 0.62), "share_of_gap") == message
    assert recipes_page.verdict(runs(*own), runs(0.60), "share_of_gap") == "no spread known"


def test_the_table_has_the_preset_first_and_then_the_best():
    rows = {"style: a": (runs(0.2), 3.0), "style: the preset": (runs(0.58, 0.62), 4.0), "style: b": (runs(0.9), 2.0)}
    settings = {"trial": "style"}
    found = {"rows": {name: {"settings": settings, "runs": each, "tflop": n} for name, (each, n) in rows.items()}}
    lines = recipes_page.table(found, "style").splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| the preset itself", "| b", "| a"]
    assert "0.60 (0.58 to 0.62)" in lines[0]
    assert lines[1].endswith("| more (+0.30) | 0.50 |")
    assert "Not measured yet" in recipes_page.table(found, "subject")


def test_the_page_shows_the_kept_results():
    found = json.loads(recipes.RESULTS.read_text(encoding="utf-8"))
    page = recipes_page.PAGE.read_text(encoding="utf-8")
    assert recipes_page.filled(page, found) == page
