"""The synthetic data folder is one as trainings and imports leave it: every run ended, every adapter sound."""

from benchmarks import data_folder
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run


def test_every_run_is_finished_and_every_adapter_sound(tmp_path):
    data_folder.fill(tmp_path, 3, 4)
    assert {run.state for run in Run.all(tmp_path)} == {"finished"}
    entries = Library(tmp_path).adapters()
    assert {entry.problem for entry in entries} == {""}
    assert [(entry.kind, entry.base, entry.summary.rank) for entry in entries] == [
        *[("run", "pocket", "4")] * 3,
        *[("imported", "pocket", "4")] * 4,
    ]
    assert [len(run.events()) for run in Run.all(tmp_path)] == [101] * 3


def test_the_table_names_each_figure_with_its_bar():
    times = {"cold": 2.0, "cold_processor": 1.0, "warm": 0.2, "warm_processor": 0.1}
    lines = data_folder.table({"seconds": {"look": times}, "idle_share": 0.005})
    assert lines[1].split() == ["look", "2.000", "1.000", "0.200", "0.100", "0.1"]
    assert lines[2].split() == ["idle", "0.50", "%", "1%"]
