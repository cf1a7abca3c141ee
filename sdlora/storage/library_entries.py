"""Adapters as the library lists them: those of runs, and imported files.

Lists read headers alone, each once as long as its file is the same.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError, FileError, SdloraError
from sdlora.families.base_models import BUNDLED
from sdlora.filesystem.paths import safe_name
from sdlora.filesystem.reading import find_matching, read_json, recency
from sdlora.filesystem.stat_cache import StatCache
from sdlora.filesystem.writing import write_atomic
from sdlora.formats.header_summary import HeaderSummary, read_cover_image, read_header_summary
from sdlora.storage.run_folder import Run

SUFFIX, REPORT = ".safetensors", ".check.json"


@dataclass(frozen=True)
class LibraryEntry:
    """An adapter of the library: its name in prompts, its file, and the summary of its header or its problem."""

    name: str
    path: Path
    kind: Literal["run", "imported"]
    base: str
    """Base model to generate with, "" if unknown."""
    size: int
    """Size in bytes."""
    changed: float
    """Seconds since the epoch."""
    summary: HeaderSummary | None
    problem: str = ""
    may_pass: bool = field(default=False, compare=False)
    """True if the system could not read it just now; else its content is the problem."""
    run: Run | None = field(default=None, compare=False)
    """Run that trained it; None for an imported one."""
    checkpoints: tuple[tuple[str, Path], ...] = ()
    """Names, RUN-STEP, and files of that run's checkpoints, newest first."""

    def matches(self, search: str) -> bool:
        """Return whether every word of ``search`` is in its name or trigger words."""
        if not search:
            return True
        text = " ".join([self.name, *(self.summary.triggers if self.summary else ())]).casefold()
        return all(word in text for word in search.casefold().split())


def list_entries(data_dir: Path, runs: Sequence[Run]) -> Iterator[LibraryEntry]:
    """Yield the adapters of ``runs``, in their order, then the imported files, newest first; broken ones too."""
    bases = list(map(base_of, runs))
    trained = [entry for run, base in zip(runs, bases, strict=True) if (entry := _of_run(run, *base))]
    names = dict.fromkeys([*BUNDLED, *(base for base, _ in bases)])
    known = {Path(base).name.removesuffix(SUFFIX): base for base in names}
    imported = [_imported(path, known) for path in imported_files(data_dir / "adapters")]
    imported.sort(key=lambda entry: recency(int(entry.changed * 1e9)), reverse=True)
    yield from _with_unique_names([*trained, *imported])


def imported_files(folder: Path) -> tuple[Path, ...]:
    """Return the adapter files in the folder of imported ones; links and folders of such a name too."""

    def read() -> tuple[Path, ...]:
        return tuple(path for path in find_matching(folder, f"*{SUFFIX}") if not path.name.startswith("."))

    return _imported_files.get(read, str(folder))


def left_beside(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield what a process that was killed has left of adapters: a report is written before its adapter."""
    for report in folder.glob(f"{pattern}{REPORT}"):
        adapter = report.with_name(report.name.removesuffix(REPORT) + SUFFIX)
        if not adapter.exists():
            yield from (path for path in (*map(adapter.with_suffix, (".json", ".png")), report) if path.is_file())


def cover_image(entry: LibraryEntry, cache: Path) -> Path | None:
    """Return the image of an adapter: the one in its file, or its run's last preview. It may still be unreadable."""
    if entry.summary and entry.summary.illustrated:
        cover = _covers.get(partial(_write_cover, entry.path, cache), str(entry.path), given=cache)
        if cover and not cover.is_file():  # Caches may be freed at any time.
            cover = _write_cover(entry.path, cache)
        if cover:
            return cover
    return last_preview(run_of(entry.path)) if entry.kind == "run" else None


def saved_adapters(run: Run) -> tuple[Path, ...]:
    """Return the adapter files of a run: the finished one, then checkpoints, newest first."""

    def read() -> tuple[Path, ...]:
        finished = run.regular_files(run.folder, run.adapter.name)
        return *finished, *reversed(run.regular_files(run.checkpoints, f"*{SUFFIX}"))

    return _saved.get(read, str(run.folder), str(run.checkpoints))


def base_of(run: Run) -> tuple[str, str]:
    """Return a run's base model, and the problem of its config, "" if there is none."""

    def read() -> tuple[str, str]:
        try:
            return TrainConfig.load(run.config_file).model.base, ""
        except ConfigError as error:
            if isinstance(error.__cause__, OSError):  # It may pass.
                raise
            return "", str(error)

    try:
        return _bases.get(read, str(run.config_file))
    except ConfigError as error:
        return "", str(error)


def last_preview(run: Run) -> Path | None:
    """Return the last preview of the run's first prompt."""
    return max(run.regular_files(run.samples, "*-0.png"), default=None)


def run_of(path: Path) -> Run:
    """Return the run that the adapter file ``path`` belongs to."""
    return Run(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def _of_run(run: Run, base: str, problem: str) -> LibraryEntry | None:
    """Return the entry of a run's adapter; None if it has saved none."""
    saved = saved_adapters(run)
    if not saved:
        return None

    def read() -> LibraryEntry:
        entry = _entry(run.name, saved[0], "run", base)
        steps = tuple((f"{run.name}-{path.stem}", path) for path in saved if path.stem.isdecimal())
        return replace(entry, problem=problem or entry.problem, run=run, checkpoints=steps)

    return _of_runs.get(read, str(saved[0]), given=(saved, base, problem), keep=_is_final)


def _imported(path: Path, known: dict[str, str]) -> LibraryEntry:
    """Return the entry of an imported file; a link or a folder is an entry with a problem."""

    def read() -> LibraryEntry:
        if path.is_symlink() or not path.is_file():
            problem = "is a link or a folder; copy the file itself here"
            return LibraryEntry(path.stem, path, "imported", "", 0, 0.0, None, problem)
        entry = _entry(safe_name(path.stem, fallback="adapter"), path, "imported", "")
        base_name = Path(entry.summary.base).name.removesuffix(SUFFIX) if entry.summary else ""
        return replace(entry, base=_checked_against(path) or known.get(base_name, ""))

    file = str(path)
    return _of_files.get(read, file, file.removesuffix(SUFFIX) + REPORT, given=known, keep=_is_final)


def _entry(name: str, path: Path, kind: Literal["run", "imported"], base: str) -> LibraryEntry:
    summary, problem, may_pass = None, "", False
    try:
        summary = read_header_summary(path)
    except SdloraError as error:
        problem, may_pass = str(error).replace(f"{path}: ", ""), isinstance(error, FileError)
    _, changed, size = _version(path)
    return LibraryEntry(name, path, kind, base, size, changed / 1e9, summary, problem, may_pass)


def _is_final(entry: LibraryEntry) -> bool:
    return not entry.may_pass


def _with_unique_names(entries: Iterable[LibraryEntry]) -> Iterator[LibraryEntry]:
    """Yield ``entries``, each under a unique name: an imported file may have the name of a run."""
    taken: set[str] = set()
    for entry in entries:
        name, number = entry.name, 1
        while name in taken:
            number += 1
            name = f"{entry.name}-{number}"
        taken.add(name)
        yield entry if name == entry.name else replace(entry, name=name)


def _checked_against(path: Path) -> str:
    try:
        base = read_json(path.with_suffix(REPORT))["base"]
        return base if isinstance(base, str) else ""
    except (SdloraError, KeyError, TypeError):
        return ""  # No report, or one that somebody wrote: the header may tell.


def _version(path: Path) -> tuple[Path, int, int]:
    """Return ``path`` with its modification time and size; zeros if there is no such file."""
    try:
        status = path.stat()
        return path, status.st_mtime_ns, status.st_size
    except OSError:
        return path, 0, 0


def _write_cover(path: Path, cache: Path) -> Path | None:
    """Return the image in a file's header, as a file in ``cache``; None if there is none."""
    try:
        content = read_cover_image(path)
    except SdloraError:
        return None
    cover = cache / "covers" / hashlib.sha256(content).hexdigest()[:32]
    if content and not cover.is_file():
        write_atomic(cover, content)
    return cover if content else None


_bases: StatCache[tuple[str, str]] = StatCache()
_saved: StatCache[tuple[Path, ...]] = StatCache()
_imported_files: StatCache[tuple[Path, ...]] = StatCache()
_of_runs: StatCache[LibraryEntry] = StatCache()
_of_files: StatCache[LibraryEntry] = StatCache()
_covers: StatCache[Path | None] = StatCache()
