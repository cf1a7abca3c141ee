"""The command ``sdlora report``: what it prints and writes, and how it ends."""

import csv
import json

import pytest

from sdlora.cli.main import main
from tests.support.recorded_runs import plain_config, recorded_run


@pytest.fixture
def runs(tmp_path):
    """A data folder with two runs."""
    for rank in (4, 8):
        recorded_run(tmp_path / "runs", f"rank-{rank}", plain_config(tmp_path / "pictures", adapter__rank=rank))
    return tmp_path


def report(data_dir, *arguments):
    return main(["report", *map(str, arguments), "--data-dir", str(data_dir)])


def test_without_files_it_prints_tables(runs, capsys):
    assert report(runs, "rank-4", "rank-8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["run", "state"] and lines[1].split()[:3] == ["rank-4", "finished", "4"]
    assert [line.split() for line in lines[4:]] == [["run", "adapter.rank"], ["rank-4", "4"], ["rank-8", "8"]]


def test_it_writes_each_file_that_is_asked_for(runs, capsys):
    files = [runs / f"out.{suffix}" for suffix in ("html", "csv", "json")]
    flags = [part for flag, file in zip(("--output", "--csv", "--json"), files, strict=True) for part in (flag, file)]
    assert report(runs, "rank-4", runs / "runs" / "rank-8", *flags) == 0
    assert capsys.readouterr().out.splitlines() == list(map(str, files))
    assert files[0].read_text(encoding="utf-8").count("<svg") > 4
    with open(files[1], newline="", encoding="utf-8") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["rank-4", "rank-8"]
    assert json.loads(files[2].read_text(encoding="utf-8"))["differing_settings"] == ["adapter.rank"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("gone",), "gone: there is no such run"), ((), "required: RUN"), (("rank-4", "--output", "a.txt"), ".html"),
     (("rank-4", "--csv", "a.html"), ".csv"), (("rank-4", "--jsn", "a.json"), "--json")],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(runs, capsys, arguments, message):
    assert report(runs, *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_an_existing_file_is_never_replaced(runs, capsys):
    (runs / "a.html").write_text("mine")
    assert report(runs, "rank-4", "--csv", runs / "a.csv", "--output", runs / "a.html") == 2
    assert "exists already" in capsys.readouterr().err
    assert (runs / "a.html").read_text() == "mine" and not (runs / "a.csv").exists()
