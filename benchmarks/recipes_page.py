"""Fill the tables of ``docs/recipes.md`` from ``results/recipes.json``: ``python -m benchmarks.recipes_page``."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.recipes import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
END = "<!-- end -->\n"
STYLE = {"share_of_gap": "way to the style (CLIP-I)", "clip_t_kept": "prompts kept (CLIP-T)"}
SUBJECT = {
    "likeness_with_trigger": '"a sks cat": should rise', "likeness_of_the_class": '"a cat": should stay low',
    "class_to_base": '"a cat" to the base\'s: should stay high',
}  # fmt: skip
MEASURES = {
    "style": STYLE,
    "style in full": STYLE,
    "subject": SUBJECT,
    "subject in full": SUBJECT,
}
"""Figures of each trial and their labels; the first decides how a row compares."""
DIGITS = 2


def table(found: Mapping[str, Any], trial: str) -> str:
    """The trial's rows, the preset first, then by their first figure."""
    rows = {name: row for name, row in found["rows"].items() if row["settings"]["trial"] == trial}
    preset = rows.pop(f"{trial}: the preset", None)
    if preset is None:
        return f"Not measured yet: `python -m benchmarks.recipes --rows {trial}`.\n"
    lead = next(iter(MEASURES[trial]))
    ordered = sorted(rows.items(), key=lambda item: -fmean(run[lead] for run in item[1]["runs"].values()))
    head = ["change to the preset", "seeds", *MEASURES[trial].values(), "against the preset", "work"]
    lines = [head, ["---"] * len(head), line("the preset itself", preset, preset, trial)]
    lines += [line(name.removeprefix(f"{trial}: "), row, preset, trial) for name, row in ordered]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def line(name: str, row: Mapping[str, Any], preset: Mapping[str, Any], trial: str) -> list[str]:
    """A row's cells: each figure's mean, and its least and greatest over the seeds."""
    runs = row["runs"]
    cells = [name, str(len(runs))]
    for measure in MEASURES[trial]:
        values = [run[measure] for run in runs.values()]
        between = f" ({min(values):.{DIGITS}f} to {max(values):.{DIGITS}f})" if len(values) > 1 else ""
        cells.append(f"{fmean(values):.{DIGITS}f}{between}")
    cells.append("" if row is preset else verdict(runs, preset["runs"], next(iter(MEASURES[trial]))))
    cells.append(f"{row['tflop'] / preset['tflop']:.2f}")
    return cells


def verdict(runs: Mapping[str, Any], preset: Mapping[str, Any], measure: str) -> str:
    """``more`` or ``less`` where every seed lies beyond every seed of the preset, and by more than the preset's own
    differ; else it is within the spread.
    """
    own, theirs = ([run[measure] for run in each.values()] for each in (runs, preset))
    if len(theirs) < 2:
        return "no spread known"
    spread = max(theirs) - min(theirs)
    if min(own) > max(theirs) and fmean(own) - fmean(theirs) > spread:
        return f"more (+{fmean(own) - fmean(theirs):.{DIGITS}f})"
    if max(own) < min(theirs) and fmean(theirs) - fmean(own) > spread:
        return f"less (-{fmean(theirs) - fmean(own):.{DIGITS}f})"
    return "within the spread"


def filled(page: str, found: Mapping[str, Any]) -> str:
    """``page`` with what stands between the marks made anew."""
    for trial in MEASURES:
        begin = f"<!-- {trial}: filled by python -m benchmarks.recipes_page -->\n"
        parts = re.split(f"{re.escape(begin)}.*?{re.escape(END)}", page, maxsplit=1, flags=re.DOTALL)
        assert len(parts) == 2, begin
        page = f"{parts[0]}{begin}\n{table(found, trial)}\n{END}{parts[1]}"
    return page


def main() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
