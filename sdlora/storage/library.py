"""All adapters and runs that there are: listed, taken in, handed on, deleted and brought back.

Adapters are those of runs, and imported ones: ``DATA_DIR/adapters/NAME.safetensors``, with ``NAME.check.json`` beside
them, which says what they were checked against. Lists read headers alone, each once as long as its file is the same.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sdlora.data.projects import Project
from sdlora.errors import BusyError, ConfigError, SdloraError
from sdlora.families.base_models import BUNDLED
from sdlora.families.settings import base_settings
from sdlora.filesystem.paths import existing_path, path_inside, safe_name
from sdlora.filesystem.reading import read_json, sha256
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.filesystem.writing import write_atomic
from sdlora.formats.adapter_check import AdapterCheck
from sdlora.formats.header_summary import HeaderSummary, read_cover_image, read_header_summary
from sdlora.formats.inspection import trigger_words
from sdlora.formats.metadata import build_a1111_card, sd_version
from sdlora.storage import bundle
from sdlora.storage.run_folder import Run
from sdlora.storage.trash import Trash, TrashItem

SUFFIX, REPORT = ".safetensors", ".check.json"
REMEMBERED = 4096
"""Headers and configs kept in memory."""


@dataclass(frozen=True)
class LibraryEntry:
    """An adapter: its name in prompts, its file, and what its header tells; or what is wrong with it."""

    name: str
    path: Path
    kind: Literal["run", "imported"]
    base: str
    """The base to draw with, "" if it is not known here."""
    size: int
    """Size in bytes."""
    changed: float
    """Seconds since the epoch."""
    card: HeaderSummary | None
    problem: str = ""

    @property
    def run(self) -> Run | None:
        """The run that trained it; None for an imported one."""
        return _run_of(self.path) if self.kind == "run" else None

    def answers(self, search: str) -> bool:
        """Return whether every word of ``search`` is in its name or trigger words."""
        text = " ".join([self.name, *(self.card.triggers if self.card else ())]).casefold()
        return all(word in text for word in search.casefold().split())


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
        self._lock = threading.Lock()

    def adapters(self, search: str = "") -> list[LibraryEntry]:
        """The adapters of runs, the newest run first, then the imported ones, the newest first; broken ones too."""
        runs = [(run, *_config(*file_version(run.config_file))) for run in Run.all(self.data_dir)]
        found = [_of_run(run, base, problem) for run, base, problem in runs if saved_adapters(run)]
        known = {Path(base).name.removesuffix(SUFFIX): base for base in [*BUNDLED, *(base for _, base, _ in runs)]}
        imported = [_imported(path, known) for path in self._files()]
        found += sorted(imported, key=lambda entry: entry.changed, reverse=True)
        return [entry for entry in _with_unique_names(found) if entry.answers(search)]

    def find(self, name: str) -> LibraryEntry:
        """The adapter called ``name``. Raises ConfigError if there is none."""
        entry = next((entry for entry in self.adapters() if entry.name == name), None)
        if entry is None:
            raise ConfigError(f"{name}: there is no such adapter any more")
        return entry

    def run(self, name: str) -> Run:
        """The run called ``name``. Raises ConfigError if there is none, FileError for a name that leads elsewhere."""
        return Run.named(self.data_dir / "runs", name)

    def file(self, name: str, checkpoint: str = "") -> Path:
        """The file of adapter ``name``, or of one of its run's ``checkpoint`` files. Raises ConfigError."""
        entry = self.find(name)
        if not checkpoint:
            return entry.path
        path = next((path for path in self.checkpoints(name) if path.name == checkpoint), None)
        if path is None:
            raise ConfigError(f"{name}: has no checkpoint {checkpoint} any more")
        return path

    def checkpoints(self, name: str) -> list[Path]:
        """The checkpoints of the run behind adapter ``name``, the newest first; an imported one has none."""
        entry = self.find(name)
        run = entry.run
        return run.regular_files(run.checkpoints, f"*{SUFFIX}")[::-1] if run is not None else []

    def picture(self, entry: LibraryEntry) -> Path | None:
        """Return the adapter's image: the one in its file, or its run's last preview. It may still be unreadable."""
        if (
            entry.card
            and entry.card.illustrated
            and (cover := _cover(*file_version(entry.path), self.data_dir / "cache"))
        ):
            return cover
        return last_preview(_run_of(entry.path)) if entry.kind == "run" else None

    def name_for(self, wish: str, otherwise: str) -> str:
        """Choose the name of a new adapter: ``wish`` as a valid file name; without one, a free name from ``otherwise``.
        Raises ConfigError if the wished name is taken.
        """
        if not wish.strip():
            return self._free(safe_name(otherwise, fallback="adapter"))
        name = safe_name(wish, fallback="adapter")
        if self._taken(name):
            raise ConfigError(f"{name}: is in the library already; choose another name")
        return name

    def adopt(self, file: Path, name: str, base: str) -> str:
        """Move ``file``, which was made here for ``base``, into the library with a card; returns the name it got.

        Raises FileError if the disk refuses.
        """
        with self._lock:
            place = self.folder / f"{self._free(name)}{SUFFIX}"
            metadata = read_metadata(file)
            write_atomic(place, lambda temporary: os.replace(file, temporary))
            words = ", ".join(trigger_words(metadata))
            write_atomic(place.with_suffix(".json"), build_a1111_card(sd_version(metadata), words))
            write_atomic(place.with_suffix(REPORT), json.dumps({"base": base}, ensure_ascii=False))
            return place.stem

    def bundle(self, name: str, output: Path) -> Path:
        """A zip file of a run's adapter with its settings, previews and captions. Raises ConfigError, FileError."""
        entry = self.find(name)
        if entry.kind != "run":
            raise ConfigError(f"{name}: was imported; only a run's adapter has settings to go with it")
        return bundle.write_bundle(_run_of(entry.path), entry.path, output)

    def delete_adapter(self, name: str) -> TrashItem:
        """Move an adapter to the trash. Of a run its settings, pictures and resumable state stay.

        Raises BusyError while the run runs, ConfigError if there is no such adapter, FileError.
        """
        entry = self.find(name)
        if entry.kind == "imported":
            beside = [entry.path.with_suffix(suffix) for suffix in (REPORT, ".json", ".png")]
            paths = [entry.path, *(path for path in beside if path.is_file())]
            return self.trash.put(paths, name, f"the adapter {name}")
        run = _require_idle(_run_of(entry.path))
        card = run.adapter.with_suffix(".json")
        steps = len(run.regular_files(run.checkpoints, f"*{SUFFIX}"))
        what = f"the adapter {name}" + (f" with its {steps} checkpoint{'s' if steps > 1 else ''}" if steps else "")
        return self.trash.put([*saved_adapters(run), *([card] if card.is_file() else [])], name, what)

    def delete_checkpoint(self, name: str, checkpoint: str) -> TrashItem:
        """Move one checkpoint of a run to the trash. Raises as ``delete_adapter`` does."""
        path = self.file(name, checkpoint)
        _require_idle(_run_of(path))
        return self.trash.put([path], f"{name}-{path.stem}", f"checkpoint {path.stem} of {name}")

    def delete_run(self, name: str) -> TrashItem:
        """Move a whole run to the trash. Raises BusyError while it runs or waits, ConfigError, FileError."""
        run = _require_idle(self.run(name))
        return self.trash.put([path_inside(self.data_dir / "runs", run.folder)], name, f"the run {name}")

    def delete_project(self, name: str) -> TrashItem:
        """Move a project to the trash. Raises BusyError while a run over it runs or waits, ConfigError, FileError."""
        project = Project(self.data_dir, name)
        if not project.folder.is_dir():
            raise ConfigError(f"{project.name}: has nothing in it yet")
        for run in Run.all(self.data_dir):
            if (run.is_locked() or run.queued_file.exists()) and run.config.data.folder == project.folder:
                raise BusyError(f"{project.name}: {run.name} trains on it, or will; stop it first")
        return self.trash.put([project.folder], project.name, f"the project {project.name}")

    def undo(self, item: str) -> TrashItem:
        """Bring back what lies in the trash in the folder called ``item``. Raises FileError if it is gone."""
        found = self.trash.find(item)
        self.trash.restore(found)
        return found

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")]

    def _taken(self, name: str) -> bool:
        return (self.folder / f"{name}{SUFFIX}").exists() or (self.data_dir / "runs" / name).exists()

    def _free(self, stem: str) -> str:
        """``stem``, with a number where that is taken."""
        name, number = stem, 1
        while self._taken(name):
            number += 1
            name = f"{stem}-{number}"
        return name

    def keep(self, file: Path, base: str, check: AdapterCheck) -> str:
        """Copy ``file`` in under a free name, with what its ``check`` against ``base`` found; returns the name.

        A file with the same bytes is not kept twice. Raises FileError if the disk refuses.
        """
        with self._lock:
            same = next((old for old in self._files() if _same(file, old)), None)
            if same is None:
                same = self.folder / f"{self._free(safe_name(file.stem, fallback='adapter'))}{SUFFIX}"
                write_atomic(same, lambda place: _copy(file, place))
            write_atomic(same.with_suffix(REPORT), json.dumps({**asdict(check), "base": base}, ensure_ascii=False))
            return same.stem


def saved_adapters(run: Run) -> list[Path]:
    """The adapter files of a run, the best first: the finished one, then checkpoints from the newest on."""
    return [
        *run.regular_files(run.folder, run.adapter.name),
        *reversed(run.regular_files(run.checkpoints, f"*{SUFFIX}")),
    ]


def last_preview(run: Run) -> Path | None:
    """The last picture that the run drew of its first prompt."""
    return max(run.regular_files(run.samples, "*-0.png"), default=None)


def trained_base_settings(adapters: Iterable[Path], base: str) -> dict[str, Any]:
    """Return the overrides of ``base`` (``GenerationRequest.base_settings``) from the run of the first of ``adapters``
    that was trained on it here; empty if there is none.
    """
    for run in map(_run_of, adapters):
        with suppress(SdloraError):
            if existing_path(run.config_file) and run.config.model.base == base:
                return base_settings(run.config.model)
    return {}


def _run_of(path: Path) -> Run:
    """The run that the adapter file ``path`` belongs to."""
    return Run(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def _require_idle(run: Run) -> Run:
    if run.is_locked():
        raise BusyError(f"{run.name} is being trained; stop it first, then delete it")
    if run.queued_file.exists():
        raise BusyError(f"{run.name} waits in the queue; take it out first, then delete it")
    return run


def _of_run(run: Run, base: str, problem: str) -> LibraryEntry:
    return _entry(run.name, saved_adapters(run)[0], "run", base, problem)


def _imported(path: Path, known: dict[str, str]) -> LibraryEntry:
    """An imported file; a link, or what is no file at all, is none that can be used."""
    if path.is_symlink() or not path.is_file():
        return LibraryEntry(
            path.stem, path, "imported", "", 0, 0.0, None, "is a link or a folder; copy the file itself here"
        )
    entry = _entry(safe_name(path.stem, fallback="adapter"), path, "imported", "", "")
    called = Path(entry.card.base).name.removesuffix(SUFFIX) if entry.card else ""
    return LibraryEntry(**{**vars(entry), "base": _checked_against(path) or known.get(called, "")})


def _entry(name: str, path: Path, kind: Literal["run", "imported"], base: str, problem: str) -> LibraryEntry:
    card, complaint = _card(*file_version(path))
    status = existing_path(path)
    facts = status.stat() if status else None
    size, changed = (facts.st_size, facts.st_mtime) if facts else (0, 0.0)
    return LibraryEntry(name, path, kind, base, size, changed, card, problem or complaint.replace(f"{path}: ", ""))


def _with_unique_names(entries: Sequence[LibraryEntry]) -> Iterator[LibraryEntry]:
    """The entries, each under a name of its own: a file may be called as a run is."""
    taken: set[str] = set()
    for entry in entries:
        name, number = entry.name, 1
        while name in taken:
            number += 1
            name = f"{entry.name}-{number}"
        taken.add(name)
        yield LibraryEntry(**{**vars(entry), "name": name})


def _checked_against(path: Path) -> str:
    try:
        base = read_json(path.with_suffix(REPORT))["base"]
        return base if isinstance(base, str) else ""
    except (SdloraError, KeyError, TypeError):
        return ""  # No report, or one that somebody wrote: the header may tell.


def file_version(path: Path) -> tuple[Path, int, int]:
    """A file, and marks that change when it does; zeros where it is gone."""
    try:
        status = path.stat()
        return path, status.st_mtime_ns, status.st_size
    except OSError:
        return path, 0, 0


@lru_cache(REMEMBERED)
def _card(path: Path, modified: int, size: int) -> tuple[HeaderSummary | None, str]:
    """A file's card, or what is wrong with it."""
    try:
        return read_header_summary(path), ""
    except SdloraError as error:
        return None, str(error)


@lru_cache(REMEMBERED)
def _cover(path: Path, modified: int, size: int, cache: Path) -> Path | None:
    """The picture in a file's header, as a file of its own; None if there is none."""
    try:
        content = read_cover_image(path)
    except SdloraError:
        return None
    cover = cache / "covers" / hashlib.sha256(content).hexdigest()[:32]
    if content and not cover.is_file():
        write_atomic(cover, content)
    return cover if content else None


@lru_cache(REMEMBERED)
def _config(path: Path, modified: int, size: int) -> tuple[str, str]:
    """A run's base model, and what is wrong with its config."""
    try:
        return Run(path.parent).config.model.base, ""
    except SdloraError as error:
        return "", str(error)


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
