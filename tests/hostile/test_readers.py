"""Defects that fuzzing found, each kind by itself: a reader that gave a traceback, or a message without end."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from sdlora import checkpoint
from sdlora.api.adapters import checkpoint_in_use, preferred_weight, trigger_words
from sdlora.api.grids import keep_best
from sdlora.config import MOST_PROBLEMS, TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import ConfigError, DatasetError, FileError, FormatError, SdloraError
from sdlora.events import Event
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.paths import path_inside
from sdlora.filesystem.reading import parse_json, read_json
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formats import read_adapter
from sdlora.generation import xyz_grid
from sdlora.inference.device_requests import DeviceRequests
from sdlora.inference.generation_request import GenerationRequest
from sdlora.jobs import measurement
from sdlora.storage.run_folder import Run
from sdlora.training.trainer import TrainLoop
from tests.support import fuzz_samples, hostile_files
from tests.support.hostile_files import framed
from tests.support.images import noise_image
from tests.support.tiny_models import write_tiny_adapter

HALF = r"\ud800"


@pytest.mark.parametrize("text", [f'"{HALF}"', f'{{"{HALF}": 1}}', f'[["a{HALF.upper()}b"]]', '"\\udfff\\ud800"'])
def test_half_of_a_surrogate_pair_is_no_json(text: str, tmp_path: Path) -> None:
    """It can neither be written nor sent, and would end whoever tries."""
    text = text.replace("\\UD", "\\ud")
    for said in (text, text.encode()):
        with pytest.raises(ValueError, match="surrogates"):
            parse_json(said)
    assert parse_json('"\\ud83d\\ude00 \\\\ud800"') == "\U0001f600 \\ud800"
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match="is no JSON"):
        read_json(tmp_path / "a.json")
    header = f'{{"__metadata__": {{"a": {text}}}}}'
    (tmp_path / "a.safetensors").write_bytes(framed(header.encode()))
    with pytest.raises(FormatError, match="is no JSON"):
        read_safetensors_header(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="surrogates"):
        Event.from_json(f'{{"kind": "Notice", "message": "{HALF}"}}')


@pytest.mark.parametrize(
    "said", ["x" * 50_000, "a b " * 20_000, "\u202eevil", "a\x1b[2Jb", "\ud800", "a\u2028b\x0bc", "é" * 601]
)
def test_a_message_that_quotes_a_stranger_is_printable_and_bounded(said: str) -> None:
    message = str(SdloraError(f"{said}: cannot be read; choose another"))
    assert len(message) <= 600 and message.isprintable()
    assert message.endswith("cannot be read; choose another")
    assert str(SdloraError(f"first\n  {said}")).count("\n") == 1
    assert str(ConfigError("short: as it is")) == "short: as it is"


def test_a_preset_of_thousands_of_wrong_settings_names_the_first_of_them(tmp_path: Path) -> None:
    names = "".join(f"stepz{number} = 1\n" for number in range(20_000))
    (tmp_path / "a.toml").write_text(f"[data]\nfolder = 'x'\n[train]\n{names}")
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(tmp_path / "a.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) == MOST_PROBLEMS + 1
    assert lines[-1].endswith(f"and {20_000 - MOST_PROBLEMS} more like these")


def test_a_type_of_any_text_in_a_header_is_one_line(tmp_path: Path) -> None:
    for kind in ("a\r\nb", "\u202eevil", "\x1b[2J"):
        entry = {"dtype": kind, "shape": [2, 8], "data_offsets": [0, 64]}
        name = f"{hostile_files.STEM}.lora_down.weight"
        (tmp_path / "a.safetensors").write_bytes(framed(json.dumps({name: entry}).encode(), bytes(64)))
        with pytest.raises(FormatError) as caught:
            read_adapter(tmp_path / "a.safetensors")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [5, None, [1], {"a": 1}])
def test_metadata_of_another_type_is_none(value: object, tmp_path: Path, configure) -> None:
    run = Run.create(tmp_path / "runs", "mine", configure())
    write_tiny_adapter(run.adapter)
    length = int.from_bytes(run.adapter.read_bytes()[:8], "little")
    header = json.loads(run.adapter.read_bytes()[8 : 8 + length])
    body = run.adapter.read_bytes()[8 + length :]
    names = ("modelspec.trigger_phrase", "ss_tag_frequency", "ss_steps", "modelspec.lora_default_weight")
    for metadata in (dict.fromkeys(names, value), value):
        run.adapter.write_bytes(framed(json.dumps({**header, "__metadata__": metadata}).encode(), body))
        assert (trigger_words(run.adapter), preferred_weight(run.adapter)) == ("", 1.0)
        assert checkpoint_in_use(run) is None


def test_an_estimate_of_other_types_is_measured_anew(tmp_path: Path, configure, monkeypatch) -> None:
    fuzz_samples.measurement(tmp_path, fuzz_samples.random.Random(1))
    whole = json.loads((tmp_path / "estimate.json").read_text())
    monkeypatch.setattr(measurement, "measurement_file", lambda config, data_dir: tmp_path / "estimate.json")
    assert measurement.cached_measurement(configure(), tmp_path).rungs[0]["needs"] == 10**9
    wrong = [
        {"load": []},
        {"resolution": 2**53},
        {"latent_factor": 0},
        {"memory": "much"},
        {"rungs": 5},
        {"rungs": [{}]},
        {"rungs": [[1]]},
        {"told": 5},
        {"chosen": [1]},
    ]
    for changes in wrong:
        (tmp_path / "estimate.json").write_text(json.dumps(whole | changes))
        assert measurement.cached_measurement(configure(), tmp_path) is None, changes
    (tmp_path / "estimate.json").write_text("[" * 100_000)
    assert measurement.cached_measurement(configure(), tmp_path) is None


@pytest.mark.parametrize("change", [{"base_settings": {"a": 1}}, {"base_settings": {"prediction_type": 5}},
                                    {"engine": {"a": "b"}}, {"steps": "many"}, {"cfg": None}])  # fmt: skip
def test_a_request_with_settings_that_are_none_is_answered_and_costs_its_training_nothing(tmp_path, change) -> None:
    with pytest.raises(ConfigError):
        GenerationRequest.checked(prompt="a house", **change)
    requests = DeviceRequests(tmp_path / "cpu.lock")
    requests.folder.mkdir()
    (requests.folder / "1.asked").write_text(json.dumps({"prompt": "a house", **change}))
    lock = hold_lock(requests.folder / "1.lock", "it")
    assert requests.take() is None
    assert "could not be read" in (requests.folder / "1.answers").read_text()
    lock.release()


def grid_of(tmp_path: Path) -> Path:
    fuzz_samples.grid(tmp_path, fuzz_samples.random.Random(1))
    return tmp_path / "g"


@pytest.mark.parametrize(
    "make", [hostile_files.content(b"<html>"), hostile_files.picture_bomb, hostile_files.text_bomb]
)
def test_a_cell_of_a_grid_that_is_no_picture_is_told(tmp_path: Path, make: hostile_files.Maker) -> None:
    folder = grid_of(tmp_path)
    cell = xyz_grid.read_grid(folder).cells[0].file
    (folder / cell).unlink()
    make(folder / cell)
    with pytest.raises(DatasetError, match=re.escape(cell)):
        xyz_grid.save_contact_sheet(folder)
    with pytest.raises(DatasetError, match=re.escape(cell)):
        keep_best(tmp_path / "data", folder, cell, "best")
    assert not list(tmp_path.glob("data/adapters/*.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [{"axes": [{"kind": "none", "values": ["1"]}]}, {"axes": [{"kind": "seed", "values": [{}]}]}, {"axes": 5},
     {"adapters": []}, {"base": 5}, {"subject": None}, {"cells": 5}],
)  # fmt: skip
def test_a_grid_of_other_types_is_none(tmp_path: Path, changes) -> None:
    file = grid_of(tmp_path) / xyz_grid.DECLARATION
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(FileError, match="holds no grid that can be read"):
        xyz_grid.read_grid(file.parent)


def test_a_grid_that_names_an_adapter_it_does_not_have_keeps_none(tmp_path: Path) -> None:
    file = grid_of(tmp_path) / xyz_grid.DECLARATION
    file.write_text(json.dumps(json.loads(file.read_text()) | {"adapters": {"b": "b.safetensors"}}))
    with pytest.raises(ConfigError, match="without an adapter"):
        keep_best(tmp_path / "data", file.parent, xyz_grid.read_grid(file.parent).cells[0].file, "best")


def test_a_step_to_undo_whose_names_can_be_none_is_told(tmp_path: Path) -> None:
    project = Project(tmp_path, "mine")
    project.folder.mkdir(parents=True)
    noise_image().save(project.folder / "001.png")
    project.set_info(ProjectInfo())
    step = project.history.steps_folder / "000001" / "step.json"
    step.parent.mkdir(parents=True)
    for name in ("x" * 5000, "a\0b", "../../x", "x/" * 3000):
        step.parent.mkdir(exist_ok=True)
        step.write_text(json.dumps({"what": "removed", "files": [name], "captions": [[name, "a", "b"]]}))
        with pytest.raises(FileError, match=r"cannot be a file's name|lies outside"):
            project.undo()
        with pytest.raises(FileError):
            path_inside(project.folder, name)


@pytest.mark.parametrize("name", ["~", "~/secret", "x/~", "..", "x/..", "../../secret"])
def test_a_step_to_undo_moves_nothing_from_elsewhere(tmp_path: Path, name: str, monkeypatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    project = Project(tmp_path / "data", "mine")
    step = project.history.steps_folder / "000001" / "step.json"
    step.parent.mkdir(parents=True)
    step.write_text(json.dumps({"what": "removed", "files": [name], "captions": []}))
    try:
        project.undo()
    except FileError as error:
        assert len(str(error).splitlines()) == 1
    assert (home / "secret").read_text() == "secret"
    assert [path for path in project.folder.rglob("*") if path.is_file() and path.name != "step.json"] == []


def resumed(values: dict[str, object], tensors: dict[str, torch.Tensor], start: int = 2) -> None:
    """Put an optimizer's state back, and do the first step."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([parameter])
    checkpoint.unpack_optimizer(optimizer, tensors, values)
    parameter.sum().backward()
    loop = SimpleNamespace(trained=SimpleNamespace(optimizer=optimizer), state=SimpleNamespace(start=start))
    TrainLoop._step_optimizer(loop, start)  # type: ignore[arg-type]


def saved() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 2))])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    tensors, values = checkpoint.pack_optimizer(optimizer)
    return tensors, json.loads(json.dumps(values))


def test_a_state_that_its_optimizer_cannot_go_on_from_is_told_at_the_first_step() -> None:
    tensors, values = saved()
    resumed(values, tensors)
    for name in ("exp_avg", "exp_avg_sq"):
        tensors, values = saved()
        del values["state"]["0"][name]
        with pytest.raises(FileError, match="the state of step 2 is not one of this run"):
            resumed(values, tensors)
    for setting, value in (("eps", 1e308), ("weight_decay", float("nan")), ("capturable", True), ("amsgrad", "x")):
        tensors, values = saved()
        values["param_groups"][0][setting] = value
        with pytest.raises(ValueError, match=setting):
            resumed(values, tensors)
    tensors, values = saved()
    values["param_groups"][0]["betas"] = [0.9, 2.0]
    with pytest.raises(FileError, match="not one of this run"):
        resumed(values, tensors)


def test_an_error_of_the_optimizer_that_is_no_fault_of_a_state_stays(tmp_path: Path) -> None:
    def fail(message: str) -> None:
        raise RuntimeError(message)

    for message, start, step in (
        ("CUDA error: launch failed", 2, 2),
        ("not enough memory", 2, 2),
        ("other", 0, 0),
        ("x", 2, 3),
    ):
        optimizer = SimpleNamespace(step=lambda message=message: fail(message))
        loop = SimpleNamespace(trained=SimpleNamespace(optimizer=optimizer), state=SimpleNamespace(start=start))
        with pytest.raises(RuntimeError, match=message.split(":")[0]):
            TrainLoop._step_optimizer(loop, step)  # type: ignore[arg-type]


def test_infinite_settings_of_an_optimizer_that_are_its_own_come_back(tmp_path: Path) -> None:
    """Prodigy's ``growth_rate`` is infinite by default."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    optimizer.param_groups[0]["growth_rate"] = float("inf")
    tensors, values = checkpoint.pack_optimizer(optimizer)
    checkpoint.unpack_optimizer(optimizer, tensors, json.loads(json.dumps(values)))
    assert optimizer.param_groups[0]["growth_rate"] == float("inf")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
