"""Adapters as the library lists them: those of runs, and imported files.

Lists read headers alone, each once as long as its file is the same.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sdlora.errors import SdloraError
from sdlora.families.base_models import BUNDLED
from sdlora.filesystem.paths import existing_path, safe_name
from sdlora.filesystem.reading import read_json
from sdlora.filesystem.writing import write_atomic
from sdlora.formats.header_summary import HeaderSummary, read_cover_image, read_header_summary
from sdlora.storage.run_folder import Run

SUFFIX, REPORT = ".safetensors", ".check.json"
REMEMBERED = 4096
"""Headers and configs kept in memory."""


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

    @property
    def run(self) -> Run | None:
        """Run that trained it; None for an imported one."""
        return run_of(self.path) if self.kind == "run" else None

    def matches(self, search: str) -> bool:
        """Return whether every word of ``search`` is in its name or trigger words."""
        text = " ".join([self.name, *(self.summary.triggers if self.summary else ())]).casefold()
        return all(word in text for word in search.casefold().split())


def list_entries(data_dir: Path, imported: Iterable[Path]) -> Iterator[LibraryEntry]:
    """Yield the adapters of runs, newest run first, then the ``imported`` files, newest first; broken ones too."""
    runs = [(run, *_config(*file_version(run.config_file))) for run in Run.all(data_dir)]
    found = [_of_run(run, base, problem) for run, base, problem in runs if saved_adapters(run)]
    known = {Path(base).name.removesuffix(SUFFIX): base for base in [*BUNDLED, *(base for _, base, _ in runs)]}
    files = [_imported(path, known) for path in imported]
    yield from _with_unique_names([*found, *sorted(files, key=lambda entry: entry.changed, reverse=True)])


def cover_image(entry: LibraryEntry, cache: Path) -> Path | None:
    """Return the image of an adapter: the one in its file, or its run's last preview. It may still be unreadable."""
    if entry.summary and entry.summary.illustrated and (cover := _cover(*file_version(entry.path), cache)):
        return cover
    return last_preview(run_of(entry.path)) if entry.kind == "run" else None


def saved_adapters(run: Run) -> list[Path]:
    """Return the adapter files of a run: the finished one, then checkpoints, newest first."""
    return [
        *run.regular_files(run.folder, run.adapter.name),
        *reversed(run.regular_files(run.checkpoints, f"*{SUFFIX}")),
    ]


def last_preview(run: Run) -> Path | None:
    """Return the last preview of the run's first prompt."""
    return max(run.regular_files(run.samples, "*-0.png"), default=None)


def run_of(path: Path) -> Run:
    """Return the run that the adapter file ``path`` belongs to."""
    return Run(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def _of_run(run: Run, base: str, problem: str) -> LibraryEntry:
    return _entry(run.name, saved_adapters(run)[0], "run", base, problem)


def _imported(path: Path, known: dict[str, str]) -> LibraryEntry:
    """Return the entry of an imported file; a link or a folder is an entry with a problem."""
    if path.is_symlink() or not path.is_file():
        return LibraryEntry(
            path.stem, path, "imported", "", 0, 0.0, None, "is a link or a folder; copy the file itself here"
        )
    entry = _entry(safe_name(path.stem, fallback="adapter"), path, "imported", "", "")
    base_name = Path(entry.summary.base).name.removesuffix(SUFFIX) if entry.summary else ""
    return replace(entry, base=_checked_against(path) or known.get(base_name, ""))


def _entry(name: str, path: Path, kind: Literal["run", "imported"], base: str, problem: str) -> LibraryEntry:
    summary, header_problem = _summary(*file_version(path))
    existing = existing_path(path)
    stat = existing.stat() if existing else None
    size, changed = (stat.st_size, stat.st_mtime) if stat else (0, 0.0)
    return LibraryEntry(
        name, path, kind, base, size, changed, summary, problem or header_problem.replace(f"{path}: ", "")
    )


def _with_unique_names(entries: Iterable[LibraryEntry]) -> Iterator[LibraryEntry]:
    """Yield ``entries``, each under a unique name: an imported file may have the name of a run."""
    taken: set[str] = set()
    for entry in entries:
        name, number = entry.name, 1
        while name in taken:
            number += 1
            name = f"{entry.name}-{number}"
        taken.add(name)
        yield replace(entry, name=name)


def _checked_against(path: Path) -> str:
    try:
        base = read_json(path.with_suffix(REPORT))["base"]
        return base if isinstance(base, str) else ""
    except (SdloraError, KeyError, TypeError):
        return ""  # No report, or one that somebody wrote: the header may tell.


def file_version(path: Path) -> tuple[Path, int, int]:
    """Return ``path`` with its modification time and size; zeros if there is no such file."""
    try:
        status = path.stat()
        return path, status.st_mtime_ns, status.st_size
    except OSError:
        return path, 0, 0


@lru_cache(REMEMBERED)
def _summary(path: Path, modified: int, size: int) -> tuple[HeaderSummary | None, str]:
    """Return the summary of a file's header, and its problem, "" if there is none."""
    try:
        return read_header_summary(path), ""
    except SdloraError as error:
        return None, str(error)


@lru_cache(REMEMBERED)
def _cover(path: Path, modified: int, size: int, cache: Path) -> Path | None:
    """Return the image in a file's header, as a file in ``cache``; None if there is none."""
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
    """Return a run's base model, and the problem of its config, "" if there is none."""
    try:
        return Run(path.parent).config.model.base, ""
    except SdloraError as error:
        return "", str(error)
