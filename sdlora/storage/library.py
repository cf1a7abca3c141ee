"""Library of adapters and runs: list, import, bundle, delete and restore them.

Adapters are those of runs, and imported ones: ``DATA_DIR/adapters/NAME.safetensors``, with ``NAME.check.json`` beside
them, which says what they were checked against.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.data.projects import Project
from sdlora.errors import BusyError, ConfigError, SdloraError
from sdlora.families.settings import base_settings
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.paths import existing_path, safe_name, trimmed_name
from sdlora.filesystem.reading import sha256
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.filesystem.stat_cache import StatCache
from sdlora.filesystem.writing import file_errors, write_atomic, write_new
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.formats.inspection import trigger_words
from sdlora.formats.metadata import build_a1111_card, sd_version
from sdlora.storage import bundle
from sdlora.storage.library_entries import (
    REPORT,
    SUFFIX,
    LibraryEntry,
    cover_image,
    imported_files,
    left_beside,
    list_entries,
    run_of,
    saved_adapters,
)
from sdlora.storage.run_folder import Run
from sdlora.storage.trash import Trash, TrashItem


class ImportResult(NamedTuple):
    """Result of an import: the name of the stored file, "" if it was refused, and its self-test."""

    file: str
    name: str
    check: AdapterCheck


class Library:
    """The adapters and runs of a data folder."""

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir.resolve()
        self.folder = self.data_dir / "adapters"
        self.trash = Trash(self.data_dir)

    def adapters(self, search: str = "", runs: Sequence[Run] | None = None) -> list[LibraryEntry]:
        """List the adapters that match ``search``: those of runs, then imported ones, each newest first.

        ``runs`` are all runs, if they were just listed.
        """
        entries = list_entries(self.data_dir, Run.all(self.data_dir) if runs is None else runs)
        return [entry for entry in entries if entry.matches(search)]

    def find(self, name: str) -> LibraryEntry:
        """Return the adapter called ``name``. Raises ConfigError if there is none."""
        entry = next((entry for entry in self.adapters() if entry.name in (name, trimmed_name(name))), None)
        if entry is None:
            raise ConfigError(f"{name}: there is no such adapter any more")
        return entry

    def run(self, name: str) -> Run:
        """Return the run called ``name``. Raises ConfigError if there is none, FileError for a path elsewhere."""
        return Run.named(self.data_dir / "runs", name)

    def file(self, name: str, checkpoint: str = "") -> Path:
        """Return the file of adapter ``name``, or of one of its run's ``checkpoint`` files. Raises ConfigError."""
        entry = self.find(name)
        if not checkpoint:
            return entry.path
        path = next((path for path in self.checkpoints(name) if path.name == checkpoint), None)
        if path is None:
            raise ConfigError(f"{name}: has no checkpoint {checkpoint} any more")
        return path

    def checkpoints(self, name: str) -> list[Path]:
        """Return the checkpoints of the run behind adapter ``name``, newest first; an imported one has none."""
        entry = self.find(name)
        run = entry.run
        return run.regular_files(run.checkpoints, f"*{SUFFIX}")[::-1] if run is not None else []

    def image(self, entry: LibraryEntry) -> Path | None:
        """Return the adapter's image: the one in its file, or its run's last preview. It may still be unreadable."""
        return cover_image(entry, self.data_dir / "cache")

    def choose_name(self, name: str, fallback: str) -> str:
        """Return ``name`` as a valid file name for a new adapter; if it is empty, an unused one made from ``fallback``.

        Raises ConfigError if the name is taken.
        """
        if not name.strip():
            return self._unused_name(safe_name(fallback, fallback="adapter"))
        name = safe_name(name, fallback="adapter")
        if self._taken(name):
            raise ConfigError(f"{name}: is in the library already; choose another name")
        return name

    def move_in(self, file: Path, name: str, base: str) -> str:
        """Move ``file``, made here for ``base``, into the library with A1111's card, and return its name.

        Raises FileError if the disk refuses.
        """
        with exclusive(self.folder):
            metadata = read_metadata(file)
            path = self._unused_path(name)
            with ExitStack() as undo:
                for suffix in (REPORT, ".json"):
                    undo.callback(path.with_suffix(suffix).unlink, missing_ok=True)
                words = ", ".join(trigger_words(metadata))
                write_atomic(path.with_suffix(REPORT), json.dumps({"base": base}, ensure_ascii=False))
                write_atomic(path.with_suffix(".json"), build_a1111_card(sd_version(metadata), words))
                path = write_new(path, partial(_link_over, file))  # Last: this makes it one of the library's.
                undo.pop_all()
            with suppress(OSError):
                file.unlink()
            return path.stem

    def bundle(self, name: str, output: Path) -> Path:
        """Write a zip of a run's adapter with its settings, previews and captions. Raises ConfigError, FileError."""
        entry = self.find(name)
        if entry.kind != "run":
            raise ConfigError(f"{name}: was imported; only a run's adapter has settings to go with it")
        return bundle.write_bundle(run_of(entry.path), entry.path, output)

    def delete_adapter(self, name: str) -> TrashItem:
        """Move an adapter to the trash. A run's settings, images and resumable state stay.

        Raises BusyError while the run runs, ConfigError if there is no such adapter, FileError.
        """
        self.trash.recover()  # Else what is deleted now could be half there already.
        entry = self.find(name)
        if entry.kind == "imported":
            with exclusive(self.folder):
                beside = [entry.path.with_suffix(suffix) for suffix in (REPORT, ".json", ".png")]
                paths = [entry.path, *(path for path in beside if path.is_file())]
                return self.trash.put(paths, name, f"the adapter {name}")
        with _idle(run_of(entry.path)) as run:
            card = run.adapter.with_suffix(".json")
            steps = len(run.regular_files(run.checkpoints, f"*{SUFFIX}"))
            what = f"the adapter {name}" + (f" with its {steps} checkpoint{'s' if steps > 1 else ''}" if steps else "")
            return self.trash.put([*saved_adapters(run), *([card] if card.is_file() else [])], name, what)

    def delete_checkpoint(self, name: str, checkpoint: str) -> TrashItem:
        """Move one checkpoint of a run to the trash. Raises as ``delete_adapter`` does."""
        self.trash.recover()
        path = self.file(name, checkpoint)
        with _idle(run_of(path)):
            return self.trash.put([path], f"{name}-{path.stem}", f"checkpoint {path.stem} of {name}")

    def delete_run(self, name: str) -> TrashItem:
        """Move a whole run to the trash. Raises BusyError while it runs or waits, ConfigError, FileError."""
        self.trash.recover()
        with exclusive(self.data_dir / "runs"), _idle(self.run(name)) as run:
            return self.trash.put([run.folder], name, f"the run {name}")

    def delete_project(self, name: str) -> TrashItem:
        """Move a project to the trash. Raises BusyError while a run on it runs or waits, ConfigError, FileError."""
        self.trash.recover()
        project = Project(self.data_dir, name)
        if not project.folder.is_dir():
            raise ConfigError(f"{project.name}: has nothing in it yet")
        for run in Run.all(self.data_dir):
            if (run.is_locked() or run.is_queued) and any(c.folder == project.folder for c in run.config.all_concepts):
                raise BusyError(f"{project.name}: {run.name} trains on it, or will; stop it first")
        with exclusive(project.folder):
            return self.trash.put([project.folder], project.name, f"the project {project.name}")

    def undo(self, item: str) -> TrashItem:
        """Restore the folder ``item`` of the trash. Raises FileError if it is gone."""
        found = self.trash.find(item)
        self.trash.restore(found)
        return found

    def _taken(self, name: str) -> bool:
        return (self.folder / f"{name}{SUFFIX}").exists() or (self.data_dir / "runs" / name).exists()

    def _unused_name(self, stem: str) -> str:
        """Return ``stem``, with a number if that is taken."""
        name, number = stem, 1
        while self._taken(name):
            number += 1
            name = f"{stem}-{number}"
        return name

    def _unused_path(self, stem: str) -> Path:
        """Return the path of a new adapter, beside which nothing is left of one that was never finished."""
        path = self.folder / f"{self._unused_name(stem)}{SUFFIX}"
        for left in left_beside(self.folder, path.stem):
            left.unlink()
        return path

    def copy_in(self, file: Path, base: str, check: AdapterCheck) -> str:
        """Copy ``file`` in under an unused name, with its ``check`` against ``base``, and return the name.

        A file with the same bytes is not stored twice. Raises FileError if the disk refuses.
        """
        with file_errors(file, "read"):
            size, digest = file.stat().st_size, sha256(file)
        with exclusive(self.folder):
            as_large = (old for old in imported_files(self.folder) if old.stat().st_size == size)
            same = next((old for old in as_large if _digests.get(partial(sha256, old), str(old)) == digest), None)
            path = same or self._unused_path(safe_name(file.stem, fallback="adapter"))
            write_atomic(path.with_suffix(REPORT), json.dumps({**asdict(check), "base": base}, ensure_ascii=False))
            return (same or write_new(path, lambda temporary: _copy(file, temporary))).stem


def trained_base_settings(adapters: Iterable[Path], base: str) -> dict[str, Any]:
    """Return the settings of ``base`` (``GenerationRequest.base_settings``) in the run of the first of ``adapters``.

    The first is one that was trained on ``base`` here; empty if there is none.
    """
    for run in map(run_of, adapters):
        with suppress(SdloraError):
            if existing_path(run.config_file) and run.config.model.base == base:
                return base_settings(run.config.model)
    return {}


@contextmanager
def _idle(run: Run) -> Iterator[Run]:
    """Hold ``run``, so that no process starts on it meanwhile. Raises BusyError if one has, or the run waits."""
    try:
        lock = run.hold()
    except BusyError:
        raise BusyError(f"{run.name} is being trained; stop it first, then delete it") from None
    try:
        if run.is_queued:
            raise BusyError(f"{run.name} waits in the queue; take it out first, then delete it")
        if os.name == "nt":  # Nothing that is open can be moved there.
            lock.release()
        yield run
    finally:
        lock.release()


_digests: StatCache[str] = StatCache()
"""SHA-256 of the library's files."""


def _link_over(source: Path, target: Path) -> None:
    """Give a file a second name, in place of another file; where that cannot be, it is copied."""
    try:
        target.unlink()
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
