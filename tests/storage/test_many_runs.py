"""What is remembered of a data folder is never old: each kind of change by another process is seen at the next look."""

import os
import random
import shutil
import time

import pytest

from sdlora.api import adapter_jobs
from sdlora.api.adapters import list_adapters
from sdlora.api.training import list_runs, run_base
from sdlora.events import RunFailed, RunFinished, RunStarted, StepDone
from sdlora.filesystem import stat_cache
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.stat_cache import StatCache
from sdlora.jobs.training_queue import TrainingQueue
from sdlora.storage import library_entries, run_folder
from sdlora.storage.journal import Journal, last_event, read_events
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from tests.support.tiny_models import write_tiny_adapter

GRAIN = 0.02
"""Seconds after which the file system's clock has moved on."""
CACHES = [
    cache for module in (run_folder, library_entries, adapter_jobs) for cache in vars(module).values()
    if isinstance(cache, StatCache)
]  # fmt: skip
STARTED = RunStarted(
    step=0, steps=2, device="cpu", precision="fp32", base="pocket", images=1, modules=1, parameters=1, share=0.5
)  # fmt: skip


@pytest.fixture(autouse=True)
def everything_is_kept(monkeypatch):
    """Trust files that were changed a moment ago too: only the stat tells."""
    monkeypatch.setattr(stat_cache, "SETTLED_NS", -1)


@pytest.fixture
def library(tmp_path, configure):
    """Two runs, one of them finished with checkpoints, and two imported adapters."""
    library = Library(tmp_path)
    for name in ("one", "two"):
        Run.create(tmp_path / "runs", name, configure())
        time.sleep(GRAIN)
    run = library.run("two")
    for path in (run.checkpoint(1), run.checkpoint(2), run.adapter):
        write_tiny_adapter(path)
    journal(run, STARTED, RunFinished(step=2, adapter="adapter.safetensors", seconds=1.0))
    for name in ("mine", "yours"):
        write_tiny_adapter(library.folder / f"{name}.safetensors", ss_sd_model_name="pocket")
    look(library)
    time.sleep(GRAIN)
    return library


def journal(run, *events):
    writer = Journal(run.journal)
    for event in events:
        writer(event)
    writer.close()


def look(library):
    """Return all that lists show of a data folder."""
    queue, runs = TrainingQueue(library.data_dir), list_runs(library.data_dir)
    current = queue.current()
    entries = library.adapters()
    return {
        "runs": [(run.name, queue.state(run), run_base(run)) for run in runs],
        "current": current and current.name,
        "waiting": [run.name for run in queue.waiting()],
        "entries": [(entry.name, entry.base, entry.size, entry.summary, entry.problem) for entry in entries],
        "adapters": list_adapters(library.data_dir),
    }


def look_anew(library):
    """Look without what is remembered."""
    known = [cache._known for cache in CACHES]
    for cache in CACHES:
        cache._known = {}
    try:
        return look(library)
    finally:
        for cache, kept in zip(CACHES, known, strict=True):
            cache._known = kept


def names(library):
    return [adapter.name for adapter in list_adapters(library.data_dir)]


def states(library):
    queue = TrainingQueue(library.data_dir)
    return {run.name: queue.state(run) for run in list_runs(library.data_dir)}


def test_nothing_is_read_again_as_long_as_nothing_changes(library, monkeypatch):
    for cache in CACHES:
        monkeypatch.setattr(cache, "_lock", None)  # It is taken to keep what was read.
    assert look(library)["current"] == "two"


def test_a_new_run_is_seen_and_so_is_its_end(library, configure):
    run = Run.create(library.data_dir / "runs", "three", configure(model__base="pocket"))
    assert states(library) == {"one": "new", "two": "finished", "three": "new"}
    assert look(library)["runs"][0] == ("three", "new", "pocket")
    ends = [
        (STARTED, "interrupted"),
        (StepDone(step=1, steps=2, loss=0.1, learning_rate=1e-4, seconds=1.0, left=1.0), "interrupted"),
        (RunFailed(message="no", exit_code=5), "failed"),
        (RunFinished(step=2, adapter="adapter.safetensors", seconds=1.0), "finished"),
    ]
    for event, state in ends:
        journal(run, event)
        assert states(library)["three"] == state
        time.sleep(GRAIN)


def test_a_lock_that_is_taken_and_freed_is_seen(library):
    run = library.run("one")
    run.hold().release()
    assert states(library)["one"] == "new"
    with hold_lock(run.lock_file, "it"):
        assert states(library)["one"] == "running"
        assert TrainingQueue(library.data_dir).current().name == "one"
    assert states(library)["one"] == "new"


def test_a_run_that_is_queued_and_taken_out_is_seen(library):
    queue, other = TrainingQueue(library.data_dir), TrainingQueue(library.data_dir)
    queue.add(library.run("one"))
    assert [run.name for run in other.waiting()] == ["one"]
    time.sleep(GRAIN)
    queue.stop(library.run("one"))
    assert other.waiting() == []


def test_what_is_deleted_goes_and_what_is_restored_comes_back(library):
    before = look(library)
    for delete, name in ((library.delete_run, "two"), (library.delete_adapter, "mine"), (library.delete_run, "one")):
        item = delete(name)
        assert name not in [*states(library), *names(library)]
        time.sleep(GRAIN)
        library.undo(item.folder.name)
        time.sleep(GRAIN)
        assert look(library) == before
    library.delete_checkpoint("two", "000002.safetensors")
    assert names(library) == ["two", "two-000001", "yours", "mine"]


def test_an_adapter_that_is_put_there_by_hand_is_seen(library, tmp_path):
    write_tiny_adapter(library.folder / "third.safetensors")
    assert "third" in names(library)
    time.sleep(GRAIN)
    (library.folder / "third.check.json").write_text('{"base": "one of mine"}')
    assert library.find("third").base == "one of mine"
    time.sleep(GRAIN)
    (library.folder / "third.check.json").write_text('{"base": "one of your"}')
    assert library.find("third").base == "one of your"


@pytest.mark.parametrize("in_place", [True, False], ids=["written over", "moved over"])
def test_a_file_with_the_same_size_and_the_same_date_is_another_one(library, tmp_path, in_place):
    path = library.folder / "mine.safetensors"
    old = path.stat()
    other = write_tiny_adapter(tmp_path / "other.safetensors", ss_sd_model_name="tocket")
    assert other.stat().st_size == old.st_size
    if in_place:
        path.write_bytes(other.read_bytes())
    else:
        other.rename(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert library.find("mine").summary.base == "tocket"


def test_settings_that_are_changed_by_hand_are_seen(library, configure):
    run = library.run("one")
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace(run.config.model.base, "pocket"))
    assert run.config.model.base == run_base(run) == "pocket"
    time.sleep(GRAIN)
    run.config_file.write_text("nonsense")
    assert (run_base(run), states(library)["one"]) == ("", "new")


def test_a_change_within_a_clock_s_grain_of_the_look_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(stat_cache, "SETTLED_NS", 2_000_000_000)
    path, cache = tmp_path / "file", StatCache()
    for number in range(200):
        path.write_text(f"{number:3}")
        assert cache.get(path.read_text, str(path)) == f"{number:3}"


def test_no_more_than_so_many_values_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(stat_cache, "MOST", 3)
    cache = StatCache()
    for number in range(9):
        (tmp_path / str(number)).touch()
        cache.get(lambda: 1, str(tmp_path / str(number)))
    assert [*cache._known] == [str(tmp_path / str(number)) for number in (6, 7, 8)]


def change(library, draw):
    """Change something at random, as a person with a file manager or another process would."""
    runs, files = [*(library.data_dir / "runs").iterdir()], [*library.folder.glob("*.safetensors")]
    run = Run(draw.choice(runs))
    match draw.randrange(10):
        case 0:
            shutil.copytree(run.folder, run.folder.with_name(f"copy-{draw.random()}"))
        case 1 if len(runs) > 2:
            shutil.rmtree(run.folder)
        case 2:
            run.folder.rename(run.folder.with_name(f"moved-{draw.random()}"))
        case 3:
            journal(run, draw.choice([STARTED, RunFailed(message="no", exit_code=5)]))
        case 4:
            run.journal.write_bytes(run.journal.read_bytes()[:-9] if run.journal.exists() else b"")
        case 5:
            write_tiny_adapter(draw.choice([run.adapter, run.checkpoint(draw.randrange(3))]), note=str(draw.random()))
        case 6:
            write_tiny_adapter(library.folder / f"{draw.randrange(5)}.safetensors", ss_sd_model_name="pocket")
        case 7 if files:
            draw.choice(files).unlink()
        case 8:
            run.queued_file.unlink() if run.queued_file.exists() else run.queued_file.write_text(str(draw.random()))
        case 9:
            run.config_file.write_text(run.config_file.read_text().replace("steps = 2", "steps = 3"))


def test_after_any_changes_a_look_equals_one_that_reads_all_anew(library):
    draw = random.Random(0)
    for _ in range(80):
        change(library, draw)
        assert look(library) == look_anew(library)
        time.sleep(GRAIN)


def test_the_last_event_is_that_of_the_whole_journal(tmp_path):
    path, draw = tmp_path / "journal.jsonl", random.Random(0)
    for _ in range(50):
        lines = [
            draw.choice([
                STARTED.to_json() + "\n", RunFailed(message="é" * draw.randrange(5000), exit_code=5).to_json() + "\n",
                "\n", "torn", '{"kind": "Unknown"}\n', "\xff\n" * draw.randrange(3000),
            ])
            for _ in range(draw.randrange(6))
        ]  # fmt: skip
        path.write_text("".join(lines))
        assert last_event(path) == next(iter([*read_events(path)][-1:]), None)
