"""Reports: any runs side by side, as a page, CSV and JSON."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from sdlora.api.editing import new_path
from sdlora.filesystem.paths import existing_path
from sdlora.filesystem.writing import write_exclusive
from sdlora.reports.comparison import Comparison as Comparison
from sdlora.reports.comparison import compare as compare_runs
from sdlora.reports.comparison import comparison_csv as comparison_csv
from sdlora.reports.comparison import comparison_json as comparison_json
from sdlora.reports.comparison import comparison_table as comparison_table
from sdlora.reports.html_report import STYLE as STYLE
from sdlora.reports.html_report import comparison_html as comparison_html
from sdlora.reports.html_report import report_html as report_html
from sdlora.reports.run_curves import RunCurves
from sdlora.storage.run_folder import Run

REMEMBERED = 256
"""Runs whose curves a process that compares often keeps in memory."""


class ComparedRuns:
    """Comparisons by a process that lives long: of each journal only what is new is read."""

    def __init__(self) -> None:
        self._curves: OrderedDict[tuple[Path, int], RunCurves] = OrderedDict()
        self._lock = threading.Lock()

    def compare(self, runs: Sequence[Run]) -> Comparison:
        """Return the comparison of ``runs``, as ``compare_runs`` does."""
        with self._lock:
            return compare_runs(runs, self._curves_of)

    def _curves_of(self, run: Run) -> RunCurves:
        """Return the curves of ``run``. A new run with the name of a deleted one is another run."""
        folder = existing_path(run.folder)
        key = run.folder, folder.stat().st_ino if folder else 0
        curves = self._curves.setdefault(key, RunCurves(run.journal))
        self._curves.move_to_end(key)
        while len(self._curves) > REMEMBERED:
            self._curves.popitem(last=False)
        return curves


def report_paths(html: Path | None, csv: Path | None = None, json: Path | None = None) -> dict[str, Path]:
    """Return the given paths by their suffix, each checked before anything is read.

    Raises ConfigError for one that exists or has another suffix, FileError for one that cannot be written.
    """
    given = {".html": html, ".csv": csv, ".json": json}
    return {suffix: new_path(path, suffix) for suffix, path in given.items() if path is not None}


def write_report(comparison: Comparison, paths: dict[str, Path]) -> list[Path]:
    """Write the comparison to each of ``paths``, by suffix, and return them. Raises FileError if one exists by then."""
    texts = {".html": report_html, ".csv": comparison_csv, ".json": comparison_json}
    for suffix, path in paths.items():
        write_exclusive(path, texts[suffix](comparison))
    return list(paths.values())
