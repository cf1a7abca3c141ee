"""The library: what is listed, taken in, refused, deleted and brought back. Header-only files: no torch is needed."""

import base64
import errno
import json
import os
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from sdlora.api import adapter_jobs
from sdlora.api.adapter_jobs import import_adapters
from sdlora.api.adapters import find_adapter, list_adapters
from sdlora.api.training import duplicate_run, list_runs, prepare_run
from sdlora.data.projects import Project
from sdlora.errors import BusyError, ConfigError, FileError
from sdlora.events import Result
from sdlora.filesystem.locks import hold_lock
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.jobs import tool_process
from sdlora.storage.disk_usage import free_space
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from sdlora.storage.trash import Trash
from tests.support.tiny_models import write_tiny_adapter as adapter


def png(colour: str) -> bytes:
    content = BytesIO()
    Image.new("RGB", (40, 30), colour).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "data ü '")


@pytest.fixture
def run(library, configure):
    """A run with two checkpoints and a finished adapter, as after a training."""
    run = prepare_run(configure(), "mine", library.data_dir)
    for path in (run.checkpoint(2), run.checkpoint(4), run.adapter):
        adapter(path, **{"modelspec.trigger_phrase": "sks", "ss_sd_model_name": "tiny"})
    for step in (0, 4):
        run.sample(step, 0).write_bytes(png("red"))
    run.adapter.with_suffix(".json").write_text("{}")
    return run


@pytest.fixture
def unchecked(monkeypatch):
    """Self-tests that find every file fine: what they find is tested with the checks."""
    monkeypatch.setattr(
        adapter_jobs, "check_adapters", lambda files, base="": iter([AdapterCheck(base=base)] * len(files))
    )


def names(library, search=""):
    return [entry.name for entry in library.adapters(search)]


def test_adapters_are_those_of_runs_and_those_in_the_folder(library, run):
    adapter(library.folder / "found.safetensors", ss_sd_model_name="pocket")
    by_name = {entry.name: entry for entry in library.adapters()}
    assert list(by_name) == ["mine", "found"]
    assert by_name["mine"].path == run.adapter
    assert by_name["mine"].base == run.config.model.base
    assert (by_name["found"].base, by_name["found"].summary.rank) == ("pocket", "2")
    offered = [file.name for file in list_adapters(library.data_dir)]
    assert offered == ["mine", "mine-000004", "mine-000002", "found"]
    assert find_adapter("found", library.data_dir) == library.folder / "found.safetensors"


def test_a_base_that_is_not_known_here_is_left_open(library):
    adapter(library.folder / "found.safetensors", ss_sd_model_name="somebody's-mix")
    assert [entry.base for entry in library.adapters()] == [""]


def test_the_search_looks_at_names_and_trigger_words(library):
    adapter(library.folder / "glass.safetensors", **{"modelspec.trigger_phrase": "ohwx style"})
    adapter(library.folder / "stone.safetensors")
    assert names(library, "OHWX") == ["glass"]
    assert names(library, "sto") == ["stone"]
    assert names(library, "glass style") == ["glass"]
    assert names(library, "glass sto") == []


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04junk junk", b"\x09\0\0\0\0\0\0\0{nonsense", b"\x02\0\0\0\0\0\0\0{}"]
)
def test_a_broken_file_has_an_entry_that_says_so_and_is_not_drawn_with(content, library):
    library.folder.mkdir(parents=True)
    (library.folder / "bad.safetensors").write_bytes(content)
    adapter(library.folder / "good.safetensors")
    by_name = {entry.name: entry for entry in library.adapters()}
    assert by_name["bad"].problem
    assert str(library.folder) not in by_name["bad"].problem
    offered = [file.name for file in list_adapters(library.data_dir)]
    assert offered == ["good"]


def test_links_and_folders_are_named_and_not_followed(library, tmp_path):
    target = adapter(tmp_path / "elsewhere.safetensors")
    library.folder.mkdir(parents=True)
    (library.folder / "link.safetensors").symlink_to(target)
    (library.folder / "folder.safetensors").mkdir()
    assert {entry.name: "is a link or a folder" in entry.problem for entry in library.adapters()} == {
        "link": True,
        "folder": True,
    }


def test_a_run_with_a_damaged_config_is_told_and_the_others_stay(library, run):
    adapter(library.folder / "good.safetensors")
    run.config_file.write_text("[train\n")
    by_name = {entry.name: entry for entry in library.adapters()}
    assert "is not TOML" in by_name["mine"].problem
    assert by_name["good"].problem == ""


def test_a_file_called_as_a_run_gets_a_name_of_its_own(library, run):
    adapter(library.folder / "mine.safetensors")
    assert names(library) == ["mine", "mine-2"]
    assert library.file("mine-2") == library.folder / "mine.safetensors"


def test_headers_are_read_again_only_when_a_file_has_changed(library, monkeypatch):
    monkeypatch.setattr("sdlora.filesystem.stat_cache.SETTLED_NS", -1)
    path = adapter(library.folder / "one.safetensors", **{"modelspec.trigger_phrase": "before"})
    assert library.adapters()[0].summary.triggers == ("before",)
    read = []
    monkeypatch.setattr("sdlora.storage.library_entries.read_header_summary", lambda path: read.append(path))
    library.adapters()
    assert read == []
    adapter(path, **{"modelspec.trigger_phrase": "afterwards"})
    library.adapters()
    assert read == [path]


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(library, run, monkeypatch):
    monkeypatch.setattr("sdlora.filesystem.stat_cache.SETTLED_NS", -1)
    adapter(library.folder / "one.safetensors")
    with monkeypatch.context() as moment:
        moment.setattr("builtins.open", _too_many_open_files)
        moment.setattr(Path, "read_text", _too_many_open_files)
        assert {entry.name: "Too many open files" in entry.problem for entry in library.adapters()} == {
            "mine": True, "one": True,
        }  # fmt: skip
    assert [entry.problem for entry in library.adapters()] == ["", ""]


def _too_many_open_files(*arguments, **options):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_file_that_was_checked_is_taken_in_though_the_checking_process_is_killed_then(library, tmp_path, monkeypatch):
    one, other = (adapter(tmp_path / f"{name}.safetensors", ss_output_name=name) for name in ("one", "other"))

    def killed(checked):
        def job(*arguments, **request):
            yield from (Result(value=asdict(AdapterCheck(base=""))) for _ in range(checked))
            raise FileError("the process ended (exit code -9); try again")

        return job

    monkeypatch.setattr(tool_process, "ToolJob", killed(2))
    assert [result.name for result in import_adapters(library, [one, other])] == ["one", "other"]
    monkeypatch.setattr(tool_process, "ToolJob", killed(1))
    results = import_adapters(library, [adapter(tmp_path / "third.safetensors", ss_output_name="third"), one])
    assert next(results).name == "third"
    with pytest.raises(FileError, match="try again"):
        next(results)


def test_an_adapter_looks_like_the_picture_in_its_file_or_its_last_preview(library, run):
    assert library.image(library.find("mine")) == run.sample(4, 0)
    cover = json.dumps([base64.b64encode(png("blue")).decode()])
    adapter(library.folder / "own.safetensors", ssmd_cover_images=cover)
    assert library.image(library.find("own")).read_bytes() == png("blue")
    free_space(library.data_dir, ["cache"])
    assert library.image(library.find("own")).read_bytes() == png("blue")
    adapter(library.folder / "spec.safetensors", **{"modelspec.thumbnail": "data:image/png;base64,iVBORw=="})
    assert library.image(library.find("spec")).read_bytes() == b"\x89PNG"
    for odd in ("no json", "[", "[1]", '["%%%"]'):
        adapter(library.folder / "odd.safetensors", ssmd_cover_images=odd)
        assert library.image(library.find("odd")) is None


def test_a_file_taken_in_gets_a_free_name_and_keeps_the_base_it_was_checked_against(library, run, tmp_path, unchecked):
    drops = [adapter(tmp_path / str(n) / "mine.safetensors", note=str(n)) for n in range(2)]
    assert [taken.name for taken in import_adapters(library, drops, "pocket")] == ["mine-2", "mine-3"]
    assert (library.folder / "mine-3.safetensors").read_bytes() == drops[1].read_bytes()
    assert library.find("mine-2").base == "pocket"
    again = list(import_adapters(library, drops[:1], "pocket"))
    assert [taken.name for taken in again] == ["mine-2"]  # The same bytes are not kept twice.
    assert len(library.adapters()) == 3


def test_a_refused_file_is_not_kept(library, tmp_path, monkeypatch):
    monkeypatch.setattr(
        adapter_jobs, "check_adapters", lambda files, base="": iter([AdapterCheck("This adapter is for SDXL.")])
    )
    taken = list(import_adapters(library, [adapter(tmp_path / "x.safetensors")], "pocket"))
    assert [(one.file, one.name) for one in taken] == [("x.safetensors", "")]
    assert not library.folder.exists()


def test_names_of_dropped_files_stay_in_the_folder(library, tmp_path, unchecked):
    odd = adapter(tmp_path / "..<b>, :x.safetensors")
    (taken,) = import_adapters(library, [odd], "")
    assert (library.folder / f"{taken.name}.safetensors").is_file()
    assert not set(taken.name) & set('<>:, /\\"')


def test_a_deleted_adapter_comes_back_as_it_was(library, run):
    run.hold().release()  # Its file stays.
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    item = library.delete_adapter("mine")
    assert "2 checkpoints" in item.what
    assert names(library) == []
    assert run.config_file.is_file() and run.sample(4, 0).is_file()
    library.undo(item.folder.name)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    assert library.trash.items() == []


def test_an_imported_adapter_goes_with_its_report(library, tmp_path, unchecked):
    (taken,) = import_adapters(library, [adapter(tmp_path / "x.safetensors")], "pocket")
    item = library.delete_adapter(taken.name)
    assert list(library.folder.iterdir()) == []
    library.undo(item.folder.name)
    assert library.find("x").base == "pocket"


def test_a_checkpoint_alone_can_be_deleted(library, run):
    item = library.delete_checkpoint("mine", "000002.safetensors")
    assert [path.name for path in library.checkpoints("mine")] == ["000004.safetensors"]
    library.undo(item.folder.name)
    assert run.checkpoint(2).is_file()
    for name in ("../../config.toml", "000009.safetensors"):
        with pytest.raises(ConfigError, match="no checkpoint"):
            library.delete_checkpoint("mine", name)


def test_a_deleted_run_comes_back_beside_what_took_its_name(library, run, configure):
    item = library.delete_run("mine")
    assert list_runs(library.data_dir) == []
    prepare_run(configure(), "mine", library.data_dir)
    library.undo(item.folder.name)
    assert sorted(found.name for found in list_runs(library.data_dir)) == ["mine", "mine-2"]
    assert Run(library.data_dir / "runs" / "mine-2").adapter.is_file()


def test_what_runs_or_waits_is_not_deleted(library, run):
    with hold_lock(run.lock_file, "mine"):
        for delete in (library.delete_run, library.delete_adapter):
            with pytest.raises(BusyError, match="mine is being trained; stop it first"):
                delete("mine")
    (run.folder / "queued").write_text("1")
    with pytest.raises(BusyError, match="mine waits in the queue"):
        library.delete_run("mine")
    assert run.adapter.is_file()


def test_only_runs_can_be_deleted_by_a_runs_name(library, run):
    outside = library.data_dir / "elsewhere"
    outside.mkdir()
    (outside / "config.toml").write_bytes(run.config_file.read_bytes())
    with pytest.raises(FileError, match="lies outside"):
        library.delete_run("../elsewhere")
    assert outside.is_dir()


def test_the_trash_is_emptied_for_good(library, run):
    item = library.delete_checkpoint("mine", "000004.safetensors")
    assert item.size > 0
    assert library.trash.empty() == 1
    with pytest.raises(FileError, match="not in the trash any more"):
        library.undo(item.folder.name)


def test_a_strangers_item_cannot_be_put_outside_the_data_folder(tmp_path):
    trash = Trash(tmp_path / "data")
    folder = trash.folder / "x"
    folder.mkdir(parents=True)
    (folder / "0").write_text("x")
    (folder / "item.json").write_text(
        json.dumps({"name": "x", "what": "x", "deleted": 0, "origins": ["../../outside"]})
    )
    (trash.folder / "y").mkdir()
    (trash.folder / "y" / "item.json").write_text("[")
    (item,) = trash.items()
    with pytest.raises(FileError, match="lies outside"):
        trash.restore(item)


def test_duplicating_a_run_gives_a_new_one_with_its_settings(library, run):
    other = duplicate_run(run)
    assert other.name == "mine-2"
    assert other.config == run.config
    assert not other.adapter.exists()


def test_a_deleted_project_comes_back_whole_and_never_over_another(library):
    folder = Project(library.data_dir, "my style").folder
    for number in range(2):
        folder.mkdir(parents=True)
        (folder / "001.txt").write_text(f"caption {number}")
        if number == 0:
            item = library.delete_project("my style")
            assert not folder.exists()
    (back,) = library.trash.restore(item)
    assert (back.name, (back / "001.txt").read_text()) == ("my-style-2", "caption 0")
    assert (folder / "001.txt").read_text() == "caption 1"
    with pytest.raises(ConfigError, match="nothing in it"):
        library.delete_project("never")


def test_a_project_that_waits_to_be_trained_on_is_not_deleted(library, run, configure):
    project = Project(library.data_dir, "my style")
    project.folder.mkdir(parents=True)
    waiting = Run.create(library.data_dir / "runs", "waits", configure(data__folder=str(project.folder)))
    waiting.queued_file.touch()
    with pytest.raises(BusyError, match="waits trains on it, or will"):
        library.delete_project("my style")
    assert project.folder.is_dir()
