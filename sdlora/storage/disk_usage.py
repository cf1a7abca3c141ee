"""Disk usage of a data folder by kind, and what of it can be freed.

A finished adapter, an imported one, a project and a generated image are listed, and never freed from here.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sdlora.data.projects import stray_captions
from sdlora.errors import BusyError, ConfigError
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.reading import files_below, find_matching, size_of
from sdlora.filesystem.writing import TEMPORARY, file_errors, remove_whole
from sdlora.formatting import format_bytes
from sdlora.section import Section
from sdlora.storage.device_lock import device_busy
from sdlora.storage.library_entries import SUFFIX, left_beside
from sdlora.storage.run_folder import Run
from sdlora.storage.trash import DAY, Trash

STALE_DAYS = 1.0
"""Age in days after which a temporary file belongs to nothing that still runs."""
UNFINISHED = (f"{TEMPORARY}*", ".merging-*")
"""Name patterns of unfinished files and folders."""
WORKED_IN = ("making", "page")
"""Folders of ``cache`` with the output of tools at work, and with uploads."""
CACHES = ("latents", "text", "making", "page", "covers", "estimates")


@dataclass(frozen=True)
class DiskUsage:
    """Disk usage of one kind of files."""

    name: str
    size: int
    """Size in bytes."""
    what: str
    paths: tuple[Path, ...]
    freed: bool
    """True if ``free`` can delete it."""


class FreeSettings(Section):
    """Choice of what to delete for good."""

    free: tuple[str, ...] = ()
    """Delete this row of the list for good, such as cache or states; may be given often. Finished adapters stay."""

    older_than: float = Field(default=0, ge=0)
    """Leave alone what is younger than this number of days."""


@dataclass(frozen=True)
class _Kind:
    what: str
    find: Callable[[Path, float], Iterator[Path]]
    """Function that lists the files in a data folder that are older than a number of days."""


def disk_usage(data_dir: Path, older_than_days: float = 0) -> list[DiskUsage]:
    """List the usage of ``data_dir``: everything that can be freed and is old enough, then everything that stays.

    Raises FileError if it cannot be read.
    """
    with file_errors(data_dir, "read"):
        found = [_measure(name, kind, data_dir, older_than_days, freed=True) for name, kind in FREED.items()]
        return [*found, *(_measure(name, kind, data_dir, older_than_days, freed=False) for name, kind in KEPT.items())]


def free_space(data_dir: Path, names: Collection[str], older_than_days: float = 0) -> int:
    """Delete for good what ``disk_usage`` lists under ``names`` if it is that old, and return the number of bytes.

    Files of a run that is being trained stay. Raises ConfigError for a name that is none or stays, and for an
    age below 0, BusyError where a training may read from the caches that are to go.
    """
    if wrong := [name for name in names if name not in FREED]:
        raise ConfigError(f"{wrong[0]}: cannot be freed; take {', '.join(FREED)}")
    if not older_than_days >= 0:
        raise ConfigError(f"older than {older_than_days} days: give a number of days, 0 or more")
    if READ_BY_RUNS & {*names} and (device_busy(data_dir) or any(run.is_locked() for run in Run.all(data_dir))):
        raise BusyError("a training may read from the caches now; free them when none runs")
    freed = 0
    with exclusive(data_dir / "trash"):  # Nothing goes while it is being restored.
        for usage in disk_usage(data_dir, older_than_days):
            if usage.name in names:
                freed += sum(_delete(path) for path in usage.paths if not _may_be_in_use(path, data_dir))
    return freed


def _measure(name: str, kind: _Kind, data_dir: Path, older_than_days: float, freed: bool) -> DiskUsage:
    paths = tuple(kind.find(data_dir, older_than_days))
    return DiskUsage(name, sum(map(size_of, paths)), kind.what, paths, freed)


def _delete(path: Path) -> int:
    """Delete a file or folder, a run's under its lock so that no resume reads it, and return its bytes."""
    run = next((Run(folder) for folder in path.parents if folder.parent.name == "runs"), None)
    try:
        with run.alone() if run is not None and run.config_file.is_file() else nullcontext():
            if run is not None and run.is_queued:  # Since it was listed: Train longer goes on from its state.
                return 0
            before = size_of(path)
            with suppress(OSError):
                remove_whole(path)
            return before - (size_of(path) if path.exists() else 0)
    except (BusyError, ConfigError):  # Being trained, or moved to the trash, at this moment.
        return 0


def _may_be_in_use(path: Path, data_dir: Path) -> bool:
    """Return whether a tool may be writing ``path``, or a visitor be about to import it."""
    in_use = any(path.is_relative_to(data_dir / "cache" / name) for name in WORKED_IN)
    return in_use and not _is_old(path, STALE_DAYS)


def _finished(data_dir: Path, days: float) -> Iterator[Run]:
    """Yield the runs that finished that long ago, and have their adapter."""
    for run in Run.all(data_dir):
        if run.adapter.is_file() and _is_old(run.adapter, days) and not run.is_queued and run.state == "finished":
            yield run


def _is_old(path: Path, days: float) -> bool:
    with suppress(OSError):
        return max(0.0, time.time() - path.lstat().st_mtime) >= days * DAY
    return False


def _old_files(*folders: str) -> Callable[[Path, float], Iterator[Path]]:
    def find(data_dir: Path, days: float) -> Iterator[Path]:
        for folder in (data_dir / name for name in folders):
            if not folder.is_symlink():
                yield from (path for path in files_below(folder) if _is_old(path, days))

    return find


def _states(data_dir: Path, days: float) -> Iterator[Path]:
    for run in _finished(data_dir, days):
        yield from (path for path in find_matching(run.states, "*") if path.is_dir())


def _steps(data_dir: Path, days: float) -> Iterator[Path]:
    for run in _finished(data_dir, days):
        yield from find_matching(run.checkpoints, f"*{SUFFIX}")


def _compared(data_dir: Path, days: float) -> Iterator[Path]:
    """List the folders with the images that evaluations compared; results and contact sheets stay."""
    for pattern in ("runs/*/evaluation/images", "evaluations/*/images"):
        for folder in find_matching(data_dir, pattern):
            if not folder.is_symlink() and not folder.parent.is_symlink() and _is_old(folder, days):
                yield folder


def _trash(data_dir: Path, days: float) -> Iterator[Path]:
    for item in Trash(data_dir).items():
        if item.age >= days * DAY:
            yield item.folder


def _leftovers(data_dir: Path, days: float) -> Iterator[Path]:
    linked = [path for path in find_matching(data_dir, "*") if path.is_symlink() and path.is_dir()]
    for folder in (data_dir, *linked):
        for root, folders, files in os.walk(folder):
            found = (Path(root, name) for name in (*folders, *files))
            yield from (path for path in found if _is_temporary(path) and _is_old(path, max(days, STALE_DAYS)))
    projects = (path for path in find_matching(data_dir / "projects", "[!.]*/") if not path.is_symlink())
    strays = (*left_beside(data_dir / "adapters"), *(path for folder in projects for path in stray_captions(folder)))
    yield from (path for path in strays if _is_old(path, max(days, STALE_DAYS)))


def _is_temporary(path: Path) -> bool:
    return any(path.match(pattern) for pattern in UNFINISHED)


def _entries_matching(*patterns: str) -> Callable[[Path, float], Iterator[Path]]:
    def find(data_dir: Path, days: float) -> Iterator[Path]:
        yield from (
            path for pattern in patterns for path in find_matching(data_dir, pattern) if not _is_temporary(path)
        )

    return find


def _rest_of_runs(data_dir: Path, days: float) -> Iterator[Path]:
    """List the rest of the folders of runs and evaluations, without kinds that have their own row."""
    counted = {*_states(data_dir, days), *_steps(data_dir, days), *(run.adapter for run in Run.all(data_dir))}
    counted |= {*_compared(data_dir, days)}
    holders = {path.parent for path in counted}
    for path in find_matching(data_dir / "runs", "*/*"):
        inner = find_matching(path, "*") if path in holders and path.is_dir() else [path]
        yield from (each for each in inner if each not in counted and not _is_temporary(each))
    found = find_matching(data_dir / "evaluations", "*/*")
    yield from (path for path in found if path not in counted and not _is_temporary(path))


FREED: Mapping[str, _Kind] = {
    "cache": _Kind(
        "latents, text outputs, measurements, copies for the page; all of it is made anew when it is needed",
        _old_files(*(f"cache/{name}" for name in CACHES)),
    ),
    "class-pictures": _Kind(
        "pictures for prior preservation; the next training draws them anew", _old_files("cache/class-images")
    ),
    "states": _Kind("of finished runs: what Train longer goes on from", _states),
    "checkpoints": _Kind("of finished runs: adapters of steps on the way; the finished one stays", _steps),
    "evaluations": _Kind(
        "pictures that evaluations compared; what they found stays, and the next one draws them anew", _compared
    ),
    "trash": _Kind("what was deleted, and could come back", _trash),
    "leftovers": _Kind("files that a killed process left half written", _leftovers),
}
KEPT: Mapping[str, _Kind] = {
    "adapters": _Kind(
        "finished ones, and those imported", _entries_matching("runs/*/adapter.safetensors", "adapters/*")
    ),
    "runs": _Kind("settings, logs, previews and results of evaluations; what unfinished runs need", _rest_of_runs),
    "projects": _Kind("pictures and captions to train on", _entries_matching("projects/*")),
    "pictures": _Kind("drawn on the page", _entries_matching("creations/*")),
}
READ_BY_RUNS = {"cache", "class-pictures", "evaluations"}


def usage_table(usages: Sequence[DiskUsage]) -> list[str]:
    """Return the lines of a table for a terminal."""
    width = max(len(usage.name) for usage in usages)
    return [f"{usage.name:{width}}  {format_bytes(usage.size):>9}  {usage.what}" for usage in usages]
