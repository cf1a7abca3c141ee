"""``DATA_DIR/runs`` as a link to a larger disk: caches, locks and the trash stay in the data folder."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from sdlora.api.training import find_run, prepare_run
from sdlora.errors import FileError
from sdlora.filesystem.writing import move_new
from sdlora.storage.device_lock import device_lock
from sdlora.storage.disk_usage import disk_usage
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from sdlora.storage.trash import Trash
from tests.support.tiny_models import write_tiny_adapter

MEMORY = Path("/dev/shm")


@pytest.fixture(params=["same disk", "other disk"])
def disk(request, tmp_path):
    """The folder that the link leads to."""
    if request.param == "same disk":
        yield tmp_path / "large"
    elif not MEMORY.is_dir() or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    else:
        with tempfile.TemporaryDirectory(dir=MEMORY) as name:
            yield Path(name)


@pytest.fixture
def library(tmp_path, disk):
    data_dir = tmp_path / "data"
    for room in ("runs", "adapters"):
        (disk / room).mkdir(parents=True)
        data_dir.mkdir(exist_ok=True)
        (data_dir / room).symlink_to(disk / room)
    return Library(data_dir)


@pytest.fixture
def run(library, configure):
    run = prepare_run(configure(), "mine", library.data_dir)
    for path in (run.checkpoint(2), run.adapter):
        write_tiny_adapter(path)
    run.lock_file.touch()
    (run.folder / "link").symlink_to("config.toml")
    return run


def contents(folder):
    return {
        path.relative_to(folder): path.is_symlink() or path.is_dir() or path.read_bytes() for path in folder.rglob("*")
    }


def test_a_run_has_its_data_folder_by_whatever_path_it_is_found(library, run, disk, monkeypatch):
    monkeypatch.chdir(disk / "runs" / "mine")
    found = [
        run, library.run("mine"), Run.all(library.data_dir)[0], find_run(".", library.data_dir),
        find_run(str(disk / "runs" / "mine"), library.data_dir), find_run("mine", library.data_dir),
    ]  # fmt: skip
    assert {each.folder for each in found} == {library.data_dir / "runs" / "mine"}
    assert device_lock(found[-1].data_dir, torch.device("cpu")).parent == library.data_dir / "locks"


def test_a_training_has_its_cache_and_its_device_s_lock_in_the_data_folder(library, disk, configure, fork_server):
    run, log = prepare_run(configure(), "mine", library.data_dir), library.data_dir / "log"
    process = fork_server.start("sdlora.jobs.training_worker", [str(run.folder)], log)
    assert (process.wait(), run.state) == (0, "finished"), log.read_text()
    assert (disk / "runs" / "mine" / "adapter.safetensors").is_file()
    assert {path.name for path in library.data_dir.iterdir()} >= {"runs", "cache", "locks"}
    assert {path.name for path in disk.iterdir()} == {"runs", "adapters"}


def test_a_run_is_deleted_and_restored(library, run, disk):
    before = contents(disk / "runs")
    item = library.delete_run("mine")
    assert (contents(disk / "runs"), item.origins) == ({}, ("runs/mine",))
    library.undo(item.folder.name)
    assert contents(disk / "runs") == before
    assert Run.all(library.data_dir)[0].folder == run.folder


def test_a_made_adapter_is_moved_into_a_linked_folder(library, disk, tmp_path):
    made = write_tiny_adapter(tmp_path / "made.safetensors", note="made")
    content = made.read_bytes()
    assert library.move_in(made, "made", "pocket") == "made"
    assert (disk / "adapters" / "made.safetensors").read_bytes() == content


def test_an_adapter_of_a_linked_folder_is_deleted_and_restored_beside_a_new_one(library, disk):
    path = write_tiny_adapter(library.folder / "own.safetensors", note="old")
    old = path.read_bytes()
    item = library.delete_adapter("own")
    write_tiny_adapter(path, note="new")
    library.undo(item.folder.name)
    assert (library.folder / "own-2.safetensors").read_bytes() == old
    assert {path.name for path in (disk / "adapters").iterdir()} == {"own.safetensors", "own-2.safetensors"}


def test_what_lies_in_a_linked_folder_is_counted(library, run):
    sizes = {usage.name: usage.size for usage in disk_usage(library.data_dir)}
    assert sizes["adapters"] == run.adapter.stat().st_size
    assert sizes["runs"] > 0


@pytest.mark.parametrize("origin", ["../x", "/etc/x", "runs/../../x", "runs/out/x", "", ".", "..", "a\0b/c"])
def test_an_item_from_elsewhere_restores_nothing_outside(library, run, tmp_path, origin):
    (library.data_dir / "runs" / "out").symlink_to(tmp_path)
    item = library.delete_run("mine")
    with pytest.raises(FileError, match=r"outside|cannot be"):
        Trash(library.data_dir).restore(item.__class__(item.folder, "x", "x", 0.0, (origin,)))
    assert (item.folder / "0" / "config.toml").is_file()


def test_a_copy_that_fails_leaves_the_source_and_nothing_else(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("a", "b"):
        (source / name).write_text(name)

    def fail(old, new, *args, **options):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(old, new, **options):
        if Path(old).name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(old, new, **options)

    copy = shutil.copy2
    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises((OSError, shutil.Error)):
        move_new(source, target / "source")
    assert (sorted(path.name for path in source.iterdir()), [*target.iterdir()]) == (["a", "b"], [])


@pytest.mark.parametrize("name", ["run", "adapter"])
def test_what_was_copied_to_another_disk_by_a_killed_process_is_there_once(library, run, disk, name):
    adapter = write_tiny_adapter(library.folder / "own.safetensors")
    before = contents(disk)
    item = library.delete_run("mine") if name == "run" else library.delete_adapter("own")
    origin = run.folder if name == "run" else adapter
    part = item.folder / "0"
    if name == "run":
        shutil.copytree(part, origin, symlinks=True)
    else:
        shutil.copy2(part, origin)
    Trash(library.data_dir).recover()
    assert (contents(disk), item.folder.exists()) == (before, False)


def test_a_new_file_of_the_old_one_s_size_and_time_is_no_copy(library):
    path = write_tiny_adapter(library.folder / "own.safetensors")
    item = library.delete_adapter("own")
    part = item.folder / "0"
    path.write_bytes(part.read_bytes()[::-1])
    os.utime(path, ns=(part.stat().st_atime_ns, part.stat().st_mtime_ns))
    Trash(library.data_dir).recover()
    assert part.is_file()
    library.undo(item.folder.name)
    assert {each.name for each in library.folder.iterdir()} >= {"own.safetensors", "own-2.safetensors"}
