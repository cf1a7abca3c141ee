"""Runs from strangers: a folder that somebody sent is data. Nothing in it is executed, and it leads nowhere."""

import json
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import gradio as gr
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sdlora import checkpoint
from sdlora.adapters.trainable import TrainablePart
from sdlora.api.training import extend_run, find_run, list_runs, prepare_run, resume_run, run_failure, train
from sdlora.config import TrainConfig
from sdlora.errors import FileError, SdloraError
from sdlora.events import Event, SampleReady
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.reading import sha256
from sdlora.jobs.training_queue import TrainingQueue
from sdlora.storage.journal import read_events
from sdlora.storage.library_entries import saved_adapters
from sdlora.storage.run_folder import Run
from sdlora.training.prepare import TrainedParts, TrainState
from sdlora.ui import library_tab, run_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import Changes
from sdlora.ui.run_html import previews, run_card
from sdlora.ui.run_measurements import measurements_html
from sdlora.ui.run_view import RunView, describe, fraction_done, loss_curve, short_status, stages
from tests.support import hostile_files
from tests.support.hostile_files import Refused
from tests.support.page_calls import build_library_tab


def refreshed(app: AppState, run: str, seen: dict[str, Any]) -> list[Any]:
    """Return what the page shows of a run."""
    with gr.Blocks():
        panel = run_panel.build(app)
    changes = Changes(seen)
    run_panel.refresh(app, panel, run, changes)
    seen.update(changes.seen)
    return list(changes.updates.values())


Command = Callable[..., Refused]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: Path) -> Path:
    """A run's folder after two steps, with a state."""
    data = tmp_path_factory.mktemp("sender")
    values = {
        "model.base": str(tiny_base), "data.folder": str(pictures), "data.trigger": "sks", "train.steps": 2,
        "train.device": "cpu", "sample.every": 0, "adapter.rank": 4,
    }  # fmt: skip
    return train(TrainConfig.parse({}, "test", values), "sent", data).folder


@pytest.fixture
def sent(finished: Path, tmp_path: Path) -> Run:
    """A copy of it where runs are kept, to be made hostile."""
    return Run(shutil.copytree(finished, tmp_path / "data" / "runs" / "sent"))


def signed(state: Path) -> None:
    """A manifest that is true of what lies there: whoever sends a state can write one."""
    names = (checkpoint.TENSORS, checkpoint.VALUES)
    (state / checkpoint.MANIFEST).write_text(json.dumps({name: sha256(state / name) for name in names}))


def state_of(run: Run) -> Path:
    return next(run.states.iterdir())


def value(**changes: Any) -> Callable[[Run, Path], None]:
    """A state with other plain values."""

    def change(run: Run, written: Path) -> None:
        file = state_of(run) / checkpoint.VALUES
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def content(name: str, make: hostile_files.Maker) -> Callable[[Run, Path], None]:
    def change(run: Run, written: Path) -> None:
        (state_of(run) / name).unlink()
        make(state_of(run) / name)

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Run, Path], None]:
    """A state with other tensors."""

    def bend(run: Run, written: Path) -> None:
        file = state_of(run) / checkpoint.TENSORS
        found = load_file(file)
        change(found)
        save_file(found, file)

    return bend


def betas(run: Run, written: Path) -> None:
    file = state_of(run) / checkpoint.VALUES
    values = json.loads(file.read_text())
    for group in values["optimizer"]["param_groups"]:
        group["betas"] = ["__import__('os')", {}]
    file.write_text(json.dumps(values))


STATES: dict[str, tuple[Callable[[Run, Path], object], str]] = {
    "a step of its own": (value(step="2"), "is damaged"),
    "no optimizer": (value(optimizer=None), "not one of this run"),
    "an optimizer of words": (value(optimizer={"state": "x", "param_groups": "y"}), "not one of this run"),
    "tensors that are not there": (
        value(optimizer={"state": {"0": {"exp_avg": {"__tensor__": "x"}}}, "param_groups": []}), "not one of this run"
    ),
    "settings of words": (betas, "not one of this run"),
    "a start that is no time": (value(started={"a": []}), "not one of this run"),
    "values that are a list": (content(checkpoint.VALUES, hostile_files.content(b"[1]")), "is damaged"),
    "values nested deeply": (content(checkpoint.VALUES, hostile_files.deep_json), "is damaged"),
    "values of 20 MB": (content(checkpoint.VALUES, hostile_files.content(b" " * 20_000_000)), "is damaged"),
    "tensors that are a pickle": (
        lambda run, written: hostile_files.pickled(state_of(run) / checkpoint.TENSORS, written), "is damaged"
    ),
    "a bomb of a header": (content(checkpoint.TENSORS, hostile_files.header_bomb), "is damaged"),
    "no tensors": (tensors(lambda found: found.clear()), "not one of this run"),
    "weights of another shape": (
        tensors(lambda found: found.update({"adapter.0": torch.zeros(1)})), "tensor 0 has the shape"
    ),
    "moments of another shape": (
        tensors(lambda found: found.update({"optimizer.0.exp_avg": torch.zeros(3, 3)})), "exp_avg of parameter 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_a_hostile_state_is_one_sentence_and_nothing_runs(finished: Path, sent: Run, tmp_path: Path, case: str) -> None:
    change, reason = STATES[case]
    change(sent, tmp_path / "canary")
    signed(state_of(sent))
    try:
        found = checkpoint.newest_state(sent.states)
        assert found is not None
        restore(found, finished)
    except FileError as error:
        assert reason in str(error) and len(str(error).splitlines()) == 1
    else:
        pytest.fail("it was taken")
    assert not (tmp_path / "canary").exists()


def restore(state: checkpoint.State, run: Path) -> None:
    """Resume from a state, with parameters of the shapes of the run in the folder ``run``."""

    class Gang:
        restore_scaler = staticmethod(lambda state: None)

    own = checkpoint.newest_state(run / "state")
    assert own is not None
    count = sum(name.startswith("adapter.") for name in own.tensors)
    parameters = [torch.nn.Parameter(torch.zeros_like(own.tensors[f"adapter.{number}"])) for number in range(count)]
    groups = [[parameters[number] for number in group["params"]] for group in own.values["optimizer"]["param_groups"]]
    parts = [TrainablePart("unet", str(number), parameter, 1e-3) for number, parameter in enumerate(parameters)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    trainable: Any = SimpleNamespace(load_extra_state=dict)
    trained = TrainedParts(trainable, parts, optimizer, [1e-3] * len(groups), ["unet"] * len(groups))
    ready = TrainState(None, None, (), None, None, trained, Gang(), 2, 64, None)  # type: ignore[arg-type]
    ready._order = dict  # type: ignore[method-assign]
    ready.restore(state)


def test_the_runs_own_state_is_taken(finished: Path, sent: Run) -> None:
    found = checkpoint.newest_state(sent.states)
    assert found is not None
    restore(found, finished)


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.VALUES, checkpoint.MANIFEST])
@pytest.mark.parametrize(
    "make", [hostile_files.pipe, hostile_files.device, hostile_files.folder], ids=lambda make: make.__name__
)
def test_a_state_of_no_files_does_not_verify_and_is_not_waited_for(
    sent: Run, name: str, make: hostile_files.Maker
) -> None:
    (state_of(sent) / name).unlink()
    make(state_of(sent) / name)
    assert not checkpoint.is_verified(state_of(sent))
    assert checkpoint.newest_state(sent.states) is None


def below(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def linked(name: str, folder: bool = False) -> Callable[[Run, Path], None]:
    """A file, or a folder, of the run that is a link to one elsewhere."""

    def change(run: Run, elsewhere: Path) -> None:
        place = run.folder / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(elsewhere / "folder" if folder else elsewhere / "file")

    return change


MINE = "a secret of the reader's own"
FOLDERS: dict[str, Callable[[Run, Path], object]] = {
    "the log": linked("run.log"), "the journal": linked("journal.jsonl"), "the lock": linked("run.lock"),
    "a picture": linked("samples/000001-0.png"), "a checkpoint": linked("checkpoints/000001.safetensors"),
    "the adapter": linked("adapter.safetensors"), "the states": linked("state", folder=True),
    "the pictures": linked("samples", folder=True), "the checkpoints": linked("checkpoints", folder=True),
    "one state": linked("state/000001", folder=True), "the request to stop": linked("stop"),
    "the tracker's folder": linked("wandb", folder=True),
    "a pipe as log": lambda run, elsewhere: (run.log.unlink(), hostile_files.pipe(run.log)),
    "a pipe as journal": lambda run, elsewhere: (run.journal.unlink(), hostile_files.pipe(run.journal)),
}  # fmt: skip


def test_weights_and_biases_may_link_to_its_own_logs(sent: Run, tmp_path: Path) -> None:
    """Version 0.31 does so: a run that was logged there could not be resumed or evaluated."""
    logs = sent.folder / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "elsewhere.log")
    sent.require_inside()


@pytest.mark.parametrize("case", FOLDERS)
def test_a_run_that_leads_out_of_its_folder_is_not_resumed_and_changes_nothing(
    command: Command, app: AppState, sent: Run, tmp_path: Path, case: str
) -> None:
    """Its log could be written, and its older states deleted, anywhere."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "folder" / "000001").mkdir(parents=True)
    (elsewhere / "folder" / "000001" / "mine").write_text(MINE)
    (elsewhere / "file").write_text(f"{MINE}\n" * 3)
    FOLDERS[case](sent, elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    ended = command("resume", "sent", "--data-dir", tmp_path / "data")
    assert ended.code == 5
    assert "is a link out of" in ended.sentence or "is no regular file" in ended.sentence
    with pytest.raises(FileError):
        resume_run(find_run("sent", tmp_path / "data"))
    output = unescape(" ".join(map(str, library_tab._act(app, *build_library_tab(app), "resume", "sent").values())))
    assert "put the file itself" in output or "no regular" in output
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before
    for shown in (
        refreshed(app, "sent", {}),
        run_panel._read_log(app, "sent"),
        library_tab._lists(app, ""),
    ):
        assert MINE not in str(shown)
    assert not any(path.is_symlink() for path in saved_adapters(sent))


def test_a_bundle_of_a_run_holds_no_file_behind_a_link(app: AppState, sent: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(MINE)
    linked("samples/000001-0.png")(sent, tmp_path)
    linked("adapter.json")(sent, tmp_path)
    with ZipFile(app.library.bundle("sent", tmp_path / "sent.zip")) as bundle:
        assert "sent/config.toml" in bundle.namelist()
        assert not any(MINE.encode() in bundle.read(name) for name in bundle.namelist())


def test_a_lock_that_is_a_link_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(FileError, match="is a link"):
        hold_lock(tmp_path / "run.lock", "the run")
    assert (tmp_path / "mine").read_text() == "mine"


def test_pickles_in_a_run_are_never_opened(sent: Run, tmp_path: Path) -> None:
    for place in (sent.folder, state_of(sent), sent.checkpoints):
        for name in ("optimizer.bin", "scheduler.pt", "random_states_0.pkl", "custom_checkpoint_0.pkl"):
            hostile_files.pickled(place / name, tmp_path / "canary")
    hostile_files.canary(sent.folder / "sdlora.py", tmp_path / "canary")
    training = extend_run(sent, 3)
    assert training.wait() == 0
    assert not (tmp_path / "canary").exists()


CONFIGS = {
    "nested deeply": hostile_files.deep_toml,
    "nested in names": hostile_files.dotted_toml,
    "a newer version": hostile_files.content(b"version = 99"),
    "no TOML": hostile_files.content(b"<html>"),
    "an unknown key": hostile_files.content(b"data.folder = 'x'\nadapter.rnak = 3"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_run_with_a_hostile_config_is_refused_and_the_lists_stay(
    command: Command, app: AppState, sent: Run, tmp_path: Path, case: str
) -> None:
    sent.config_file.unlink()
    CONFIGS[case](sent.config_file)
    ended = command("resume", "sent", "--train.steps", "9", "--data-dir", tmp_path / "data")
    assert ended.code == 2 and "config.toml" in ended.sentence
    with pytest.raises(SdloraError):
        extend_run(sent, 9)
    assert "config.toml" in library_tab._lists(app, "")[1]
    assert [run.name for run in list_runs(app.data_dir)] == ["sent"]


def test_a_config_that_points_at_other_paths_is_refused_by_what_is_there(sent: Run, tmp_path: Path) -> None:
    """Its folder of pictures, its base and its adapter are read as any are: no file of another kind is taken."""
    (tmp_path / "secret.png").write_text("secret")
    for name, there, reason in (
        ("data.folder", tmp_path / "nowhere", "does not exist"),
        ("data.folder", tmp_path, r"secret\.png: is no picture"),
        ("model.base", tmp_path / "secret.png", "is no base model"),
    ):
        TrainConfig.load(sent.config_file, {name: str(there)}).save(tmp_path / "other.toml")
        with pytest.raises(SdloraError, match=reason):
            prepare_run(TrainConfig.load(tmp_path / "other.toml"), "x", tmp_path / "data")


def line(kind: str, **values: Any) -> str:
    return json.dumps({"kind": kind, **values})


STEP = {"step": 1, "steps": 9, "loss": 1, "learning_rate": 1, "seconds": 1, "left": 1}
SAMPLE = {"step": 1, "index": 0, "prompt": "x"}
LINES = {
    "nested deeply": "[" * 100_000,
    "a step that is a word": line("StepDone", **STEP | {"step": "x"}),
    "a step beyond all": line("RunStopped", step=10**30),
    "no message": line("RunFailed", message=None, exit_code=1),
    "a kind that is a list": '{"kind": []}',
    "time that never ends": line("StepDone", **STEP | {"loss": float("nan"), "left": float("inf")}),
    "a phase of HTML": line("Progress", phase="<img src=x onerror=alert(1)>", done=5, total=-1),
    "a picture elsewhere": line("SampleReady", **SAMPLE, path="../../../../etc/passwd"),
    "a picture at a path": line("SampleReady", **SAMPLE, path="/etc/passwd"),
    "a picture of NUL": line("SampleReady", **SAMPLE, path="a\0"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_hostile_journal_is_passed_over_line_by_line(app: AppState, sent: Run, case: str) -> None:
    with open(sent.journal, "a") as journal:
        journal.write(LINES[case] + "\n")
    seen: dict[str, Any] = {}
    shown = " ".join(map(str, refreshed(app, "sent", seen)))
    assert "<img src=x" not in shown and "root:" not in shown
    assert all(below(sent.samples, preview.path) for preview in app.run_view(sent).previews.values())
    assert library_tab._lists(app, "")[1].count("class='tile'") == 1
    assert TrainingQueue(app.data_dir).state(sent)


def test_a_preview_behind_a_link_is_not_shown(sent: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    sent.samples.mkdir(exist_ok=True)
    (sent.samples / "000001-0.png").symlink_to(tmp_path / "secret")
    with open(sent.journal, "a") as journal:
        journal.write(SampleReady(step=1, index=0, prompt="x", path="samples/000001-0.png").to_json() + "\n")
    assert RunView(sent).refresh().previews == {}


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.lists(st.integers())
fields = st.dictionaries(
    st.sampled_from(["step", "steps", "loss", "left", "seconds", "memory", "phase", "done", "total", "message", "path",
                     "prompt", "index", "exit_code", "adapter", "time", "device", "precision", "base", "images",
                     "modules", "parameters", "share", "learning_rate"]), values
)  # fmt: skip
numbers = st.integers(-9, 9) | st.floats() | st.integers()


@settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True
)
@given(
    lines=st.lists(
        st.tuples(st.sampled_from([*Event.KINDS]), fields, numbers, numbers, st.text(max_size=8)), max_size=6
    ),
    noise=st.binary(max_size=30),
)
def test_a_journal_of_any_lines_is_told_in_words(lines: list[Any], noise: bytes, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir(exist_ok=True)
    kinds = {int: 0, float: 0.0, str: ""}
    with open(run.journal, "wb") as journal:
        for kind, given_fields, one, other, text in lines:
            whole = {name: {int: one, float: other, str: text}.get(of, kinds.get(of)) for name, of in known(kind)}
            for overrides in (whole, given_fields):
                journal.write(json.dumps({**overrides, "kind": kind}).encode() + b"\n")
        journal.write(noise + b"\n")
    list(read_events(run.journal))
    view = RunView(run).refresh()
    for state in ("running", "finished", "stopped", "failed", "interrupted", "queued"):
        for show in (describe, short_status, stages, fraction_done):
            shown = show(view, state)
            assert shown is None or str(shown)
        assert run_card("x", view, state)
    loss_curve(view.losses)
    assert "<script" not in measurements_html(view.measured) and isinstance(view.measured.curve(), list)
    previews([preview for _, preview in sorted(view.previews.items())])


def known(kind: str) -> list[tuple[str, Any]]:
    from dataclasses import fields as of

    return [(field.name, field.type) for field in of(Event.KINDS[kind])]


def test_a_resume_from_a_hostile_state_fails_with_its_exit_code_and_one_sentence(sent: Run) -> None:
    tensors(lambda found: found.update({"adapter.0": torch.zeros(1)}))(sent, sent.folder)
    signed(state_of(sent))
    training = extend_run(sent, 3)
    code = training.wait()
    assert code == FileError.exit_code
    text = str(run_failure(training, code))
    assert "the state of step 2 is not one of this run (ValueError: tensor 0 has the shape (1,)); remove it" in text
