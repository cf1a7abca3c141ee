"""A comparison of runs in any state: what differs, what it says of each, and its CSV and JSON."""

import csv
import io
import json

import pytest

from sdlora.config import TrainConfig
from sdlora.evaluation.figures import Candidate, Figure
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.proposal import Proposal
from sdlora.evaluation.report import FOLDER, Evaluation, write_evaluation
from sdlora.reports.comparison import compare, comparison_csv, comparison_json, comparison_table
from sdlora.reports.run_record import COLUMNS
from sdlora.storage.run_folder import Run
from tests.support.recorded_runs import recorded_run, started, step_done, write_journal


def rows(comparison):
    return list(csv.DictReader(io.StringIO(comparison_csv(comparison))))


def test_only_settings_that_differ_are_named(record):
    found = compare([record("one", adapter__rank=4), record("two", adapter__rank=8, train__seed=3)])
    assert found.differing == ("adapter.rank", "train.seed")
    assert [row["adapter.rank"] for row in rows(found)] == ["4", "8"]
    assert [row["train.seed"] for row in rows(found)] == ["0", "3"]  # The default is filled in.


def test_methods_with_other_settings_are_compared(record):
    with pytest.warns(UserWarning, match=r"adapter\.rank of lora is left out"):
        found = compare([record("lora"), record("ia3", adapter__method="ia3")])
    assert {"adapter.method", "adapter.rank"} <= {*found.differing}
    lora, ia3 = rows(found)
    assert (lora["adapter.rank"], ia3["adapter.rank"]) == ("4", "")
    assert any("–" in line and line.startswith("ia3") for line in comparison_table(found))


def test_concepts_are_compared_one_by_one(record, configure, tmp_path):
    concepts = [{"folder": str(tmp_path / word), "trigger": word} for word in ("aaa", "bbb")]
    values = configure().model_dump(mode="json", exclude_none=True)
    values["data"] = {name: value for name, value in values["data"].items() if name not in ("trigger", "folder")}
    run = recorded_run(tmp_path / "runs", "both", TrainConfig.parse({**values, "concepts": concepts}, "test"))
    found = compare([record("one"), run])
    assert "concepts.2.trigger" in found.differing
    assert [row["concepts.2.trigger"] for row in rows(found)] == ["", "bbb"]


def test_figures_come_from_the_journal_and_the_files(record):
    figures = compare([record("one", steps=4)]).runs[0].figures
    assert figures["state"] == "finished" and figures["steps"] == figures["planned_steps"] == 4
    assert figures["images"] == 7 and figures["adapter_bytes"] == 2048
    assert figures["step_seconds"] == 2.0 and figures["seconds_per_step"] == 0.5
    assert figures["loss_ratio_train"] == 0.8 and figures["loss_ratio_held_out"] == 0.9
    assert figures["look"] is None and figures["proposed_step"] is None


def evaluation(chosen=0):
    shares = {"look": 0.9, "prompts": 0.8, "spill": 0.3, "drift": 0.2}
    figures = {name: Figure(0.5, 0.4, None, share) for name, share in shares.items()}
    candidates = (Candidate("checkpoints/000003.safetensors", 3, 0.7, figures),)
    prompts = EvaluationPrompts(("a sks cat",), ("a cat",))
    return Evaluation("one", "subject", "pocket", "p", "p", prompts, 1, candidates, Proposal(chosen, (0,)), {})


def test_the_proposal_of_an_evaluation_is_shown(record):
    run = record("one")
    write_evaluation(evaluation(), run.folder / FOLDER)
    figures = compare([run]).runs[0].figures
    assert (figures["proposed_step"], figures["proposed_scale"]) == (3, 0.7)
    assert [figures[name] for name in ("look", "prompts", "spill", "drift")] == [0.9, 0.8, 0.3, 0.2]


def test_an_evaluation_that_proposes_nothing_is_as_none(record):
    run = record("one")
    write_evaluation(evaluation(None), run.folder / FOLDER)
    found = compare([run])
    assert found.runs[0].figures["proposed_step"] is None and found.notes == ()


def test_what_cannot_be_read_is_a_note_and_the_rest_is_shown(record):
    good, bad = record("good"), record("bad", adapter__rank=9)
    write_evaluation(evaluation(), bad.folder / FOLDER)
    (bad.folder / FOLDER / "evaluation.json").write_text("{")
    bad.config_file.write_text("[[[")
    bad.journal.unlink()
    bad.journal.mkdir()
    found = compare([good, bad])
    assert len(found.runs) == 2 and found.runs[0].figures["steps"] == 4
    assert found.differing == ()  # Of the one that can be read.
    text = "\n".join(found.notes)
    assert "bad: its settings cannot be read" in text and "bad: its evaluation cannot be read" in text
    assert found.runs[1].figures["steps"] is None and found.runs[1].figures["adapter_bytes"] == 2048


def test_an_unfinished_run_and_one_that_has_not_begun(record, configure, tmp_path):
    new = Run.create(tmp_path / "runs", "new", configure())
    cut = record("cut")
    write_journal(cut, [started(9), step_done(1, 9), step_done(2, 9)])
    one, two = compare([new, cut]).runs
    assert one.figures["state"] == "new" and one.figures["steps"] is None
    assert two.figures["state"] == "interrupted"
    assert (two.figures["steps"], two.figures["planned_steps"]) == (2, 9)
    assert two.figures["loss_ratio_train"] is None


def test_one_run_named_twice_is_shown_once_with_a_note(record):
    run = record("one")
    found = compare([run, Run(run.folder), run])
    assert [each.name for each in found.runs] == ["one"]
    assert found.notes == ("2 of the runs were named more than once, and are shown once.",)


def test_runs_of_one_name_in_two_folders_are_told_apart(record, configure, tmp_path):
    other = recorded_run(tmp_path / "other" / "runs", "one", configure(adapter__rank=8))
    assert [each.name for each in compare([record("one"), other]).runs] == ["one", "one (2)"]


def test_json_has_every_figure_setting_and_curve(record):
    run = record("one", adapter__rank=4)
    with open(run.journal, "a") as journal:
        journal.write(step_done(5, 5, loss=float("nan"), seconds=float("inf")).to_json() + "\n")
    found = json.loads(comparison_json(compare([run, record("two")])))
    first = found["runs"][0]
    assert set(first["figures"]) == set(COLUMNS)
    assert first["settings"]["adapter.rank"] == 4 and first["settings"]["train.seed"] == 0
    assert [step for step, _ in first["curves"]["learning_rate"]] == [1, 2, 3, 4, 5]
    assert first["curves"]["loss_ratio_held_out"] == [[4, 0.9]]


@pytest.mark.parametrize("words", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_cell_of_a_csv_is_computed(record, words):
    found = compare([record("one", data__trigger=words), record("two")])
    assert rows(found)[0]["data.trigger"].startswith("'")


def test_many_runs_are_all_in_it(record, configure, tmp_path):
    for number in range(30):
        recorded_run(tmp_path / "runs", f"run-{number}", configure(train__seed=number))
    runs = Run.all(tmp_path)
    found = compare(runs)
    assert len(rows(found)) == 30 and found.differing == ("train.seed",)
