"""A comparison of runs: their records side by side, the settings that differ, and its CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdlora.events import OnProgress, unwatched
from sdlora.formatting import one_line, printable_line
from sdlora.reports.run_curves import RunCurves
from sdlora.reports.run_record import COLUMNS, RunRecord, figure_text, read_record, setting_text
from sdlora.storage.run_folder import Run

VERSION = 1
"""Version of the JSON."""
LONGEST_CELL = 60
"""Characters of a cell of the table of text."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a text that spreadsheets compute."""
ABSENT = "–"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[RunRecord, ...]
    """Records with unique names, in the order that was asked for."""
    differing: tuple[str, ...]
    """Dotted names of the settings that differ between them."""
    notes: tuple[str, ...]
    """Sentences on all that is left out or could not be read."""

    @property
    def taken(self) -> list[str]:
        """Names of the figures that at least one run has."""
        return [name for name in COLUMNS if any(run.figures[name] is not None for run in self.runs)]


def compare(
    runs: Sequence[Run],
    curves_of: Callable[[Run], RunCurves] = lambda run: RunCurves(run.journal),
    on_progress: OnProgress = unwatched,
) -> Comparison:
    """Return the comparison of ``runs``; one that is named twice is in it once.

    ``curves_of`` returns what has been read of a run's journal before. What cannot be read of a run is a note.
    """
    unique = list({run.folder: run for run in runs}.values())
    records = []
    for number, run in enumerate(unique):
        on_progress(number, len(unique))
        records.append(read_record(run, curves_of(run)))
    on_progress(len(unique), len(unique))
    named = _with_unique_names(records)
    repeated = len(runs) - len(unique)
    notes = [f"{repeated} of the runs were named more than once, and are shown once."] if repeated else []
    notes += [problem for record in named for problem in record.problems]
    return Comparison(tuple(named), tuple(differing_settings(named)), tuple(notes))


def differing_settings(records: Iterable[RunRecord]) -> list[str]:
    """Return the names of the settings whose values differ, or that not all runs have, in the order of declaration."""
    known = [record.settings for record in records if record.settings is not None]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [
        name
        for name in names
        if len({json.dumps(settings[name], sort_keys=True) if name in settings else None for settings in known}) > 1
    ]


def setting_cell(record: RunRecord, name: str) -> str:
    """Return the value of a setting as text; a dash if the run does not have it."""
    settings = record.settings or {}
    return setting_text(settings[name]) if name in settings else ABSENT


def comparison_table(comparison: Comparison) -> list[str]:
    """Return the lines of two tables with a row a run: figures, and settings that differ; then the notes."""
    figures, settings = comparison.taken, comparison.differing
    rows = [["run", *(COLUMNS[name].title for name in figures)]]
    rows += [[run.name, *(figure_text(name, run.figures[name]) for name in figures)] for run in comparison.runs]
    lines = _aligned(rows)
    if settings:
        rows = [["run", *settings]]
        rows += [[run.name, *(setting_cell(run, name) for name in settings)] for run in comparison.runs]
        lines += ["", *_aligned(rows)]
    elif len(comparison.runs) > 1:
        lines += ["", "No setting differs."]
    return [*lines, *map(printable_line, comparison.notes)]


def comparison_csv(comparison: Comparison) -> str:
    """Return a CSV with a row a run: its name and folder, every figure, and the settings that differ."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "folder", *COLUMNS, *comparison.differing])
    for run in comparison.runs:
        settings = run.settings or {}
        values = [run.name, str(run.folder), *(run.figures[name] for name in COLUMNS)]
        values += [settings.get(name) for name in comparison.differing]
        writer.writerow([_csv_cell(value) for value in values])
    return text.getvalue()


def comparison_json(comparison: Comparison) -> str:
    """Return a JSON object with all figures, settings and curves (``[step, value]``, thinned)."""
    found = {
        "version": VERSION,
        "differing_settings": comparison.differing,
        "notes": comparison.notes,
        "runs": [_as_json(run) for run in comparison.runs],
    }
    return json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _as_json(run: RunRecord) -> Mapping[str, Any]:
    return {
        "name": run.name, "folder": str(run.folder), "figures": run.figures, "settings": run.settings,
        "curves": run.curves,
    }  # fmt: skip


def _csv_cell(value: Any) -> Any:
    """Return a value as a CSV holds it. Text that a spreadsheet would compute begins with an apostrophe."""
    if value is None:
        return ""
    text = value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if isinstance(text, str) and text.startswith(FORMULA) else text


def _with_unique_names(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the records, each under a unique name: runs of two data folders may share one."""
    found: list[RunRecord] = []
    taken: set[str] = set()
    for record in records:
        name, number = record.name, 1
        while name in taken:
            number += 1
            name = f"{record.name} ({number})"
        taken.add(name)
        found.append(replace(record, name=name))
    return found


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[one_line(cell, LONGEST_CELL) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
