"""One run as a comparison shows it: its settings, figures, curves and pictures, whatever state its folder is in."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sdlora.config import TrainConfig
from sdlora.data.concept_values import CONCEPTS
from sdlora.errors import SdloraError
from sdlora.evaluation.report import FILE, FOLDER, SHEET, read_evaluation
from sdlora.filesystem.reading import size_of
from sdlora.formatting import format_bytes, format_duration, one_line
from sdlora.reports.run_curves import RunCurves
from sdlora.storage.library_entries import saved_adapters
from sdlora.storage.run_folder import Run

MOST_PREVIEWS = 6
"""Last previews of a run that are shown."""
SHARES = ("look", "prompts", "spill", "drift")
"""Measures of an evaluation that a comparison shows."""
Number = int | float
T = TypeVar("T")


class Column(NamedTuple):
    """Title of a figure, and what it is."""

    title: str
    meaning: str = ""


COLUMNS: Mapping[str, Column] = {
    "state": Column("state"),
    "steps": Column("steps", "steps done"),
    "planned_steps": Column("planned", "steps that the run was to do"),
    "images": Column("pictures", "pictures that are trained on"),
    "step_seconds": Column("time of steps", "seconds of all its steps; previews, saving and measuring are not counted"),
    "seconds_per_step": Column("per step", "mean seconds of a step"),
    "adapter_bytes": Column("adapter file", "size of the adapter's file"),
    "loss": Column("loss", "last loss, smoothed; its noise hides small differences"),
    "loss_ratio_train": Column("ratio, trained", "last loss on fixed noise over the base's: 1 is as the base"),
    "loss_ratio_held_out": Column("ratio, held out", "the same of pictures that are not trained on"),
    "proposed_step": Column("take step", "checkpoint that the evaluation proposes"),
    "proposed_scale": Column("scale", "scale that it proposes"),
    "look": Column("look", "of the proposed: 0 the base, 1 as the training pictures"),
    "prompts": Column("prompts kept", "of the proposed: 1 as the base"),
    "spill": Column("spill", "of the proposed, without the trigger: 0 the base, 1 as the training pictures"),
    "drift": Column("drift", "of the proposed, other things: 0 the base's pictures"),
}
"""Figures of a run, by their names in CSV and JSON."""


class ReportPicture(NamedTuple):
    """A picture of a run, and what it shows."""

    path: Path
    title: str


@dataclass(frozen=True)
class RunRecord:
    """One run in a comparison."""

    name: str
    folder: Path
    settings: Mapping[str, Any] | None
    """Every setting by its dotted name, as JSON has it; None if they cannot be read."""
    figures: Mapping[str, Number | str | None]
    """Values of ``COLUMNS``; None where there is none."""
    curves: Mapping[str, list[tuple[int, float]]]
    sheet: ReportPicture | None
    """Contact sheet of the newest evaluation."""
    previews: tuple[ReportPicture, ...]
    """Previews of the last step that has some."""
    problems: tuple[str, ...]
    """Sentences on all that could not be read."""


def read_record(run: Run, curves: RunCurves) -> RunRecord:
    """Return what can be read of ``run``; ``curves`` are brought up to date. What cannot be read is a problem in it."""
    problems: list[str] = []
    nothing: dict[str, Any] = {}

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except SdloraError as error:
            problems.append(f"{run.name}: {what} cannot be read ({one_line(error, 200)})")
            return otherwise

    settings = attempt("its settings", lambda: settings_of(run.config), nothing)
    attempt("its journal", curves.refresh, curves)
    points = {name: curve.points for name, curve in curves.curves.items()}
    figures = attempt("its files", lambda: _figures(run, curves, points), nothing)
    proposed = attempt("its evaluation", lambda: _proposed(run), nothing)
    return RunRecord(
        name=run.name,
        folder=run.folder,
        settings=settings or None,
        figures={**dict.fromkeys(COLUMNS), **figures, **proposed},
        curves=points,
        sheet=attempt("its sheet", lambda: _sheet(run), None),
        previews=attempt("its previews", lambda: tuple(_previews(run, curves.prompts)), ()),
        problems=tuple(problems),
    )


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Return every setting of ``config`` by its dotted name, as JSON has it.

    Those of its method alone, and of each concept as ``concepts.1.folder`` where it lists some.
    """
    values = config.model_dump(mode="json")
    flat = {
        f"{section}.{name}": value
        for section, fields in values.items()
        if isinstance(fields, dict)
        for name, value in fields.items()
    }
    for number, concept in enumerate(config.all_concepts if config.concepts else (), 1):
        dumped = concept.model_dump(mode="json")
        flat |= {f"{CONCEPTS}.{number}.{name}": value for name, value in dumped.items()}
    return flat


def _figures(run: Run, curves: RunCurves, points: Mapping[str, list[tuple[int, float]]]) -> dict[str, Any]:
    last = {name: points[name][-1][1] for name in ("loss", "loss_ratio_train", "loss_ratio_held_out") if points[name]}
    saved = saved_adapters(run)
    begun = curves.started is not None or curves.counted_steps > 0
    found: dict[str, Any] = {
        "state": "queued" if run.is_queued and not run.is_locked() else run.state,
        "steps": curves.step if begun else None,
        "planned_steps": curves.steps or None,
        "images": curves.started.images if curves.started else None,
        "adapter_bytes": size_of(saved[0]) if saved else None,
        **last,
    }
    if curves.counted_steps:
        found["step_seconds"] = curves.step_seconds
        found["seconds_per_step"] = curves.step_seconds / curves.counted_steps
    return found


def _proposed(run: Run) -> dict[str, Any]:
    """Return the figures of what the newest evaluation proposes; empty if there is none. Raises FormatError."""
    if not run.regular_files(run.folder / FOLDER, FILE):
        return {}
    evaluation = read_evaluation(run.folder / FOLDER)
    if evaluation.proposal.chosen is None:
        return {}
    chosen = evaluation.candidates[evaluation.proposal.chosen]
    return {
        "proposed_step": chosen.step,
        "proposed_scale": chosen.scale,
        **{name: chosen.share(name) for name in SHARES},
    }


def _sheet(run: Run) -> ReportPicture | None:
    found = run.regular_files(run.folder / FOLDER, SHEET)
    return ReportPicture(found[0], f"evaluation of {run.name}") if found else None


def _previews(run: Run, prompts: Mapping[int, str]) -> Iterator[ReportPicture]:
    """Yield the previews of the last step that has some, by index."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for path in run.regular_files(run.samples, "*.png"):
        step, _, index = path.stem.partition("-")
        if step.isdecimal() and index.isdecimal():
            found.setdefault(int(step), []).append((int(index), path))
    if not found:
        return
    last = max(found)
    for number, path in sorted(found[last])[:MOST_PREVIEWS]:
        yield ReportPicture(path, f"step {last}: {prompts.get(number, '')}".rstrip(": "))


def figure_text(name: str, value: Number | str | None) -> str:
    """Return a figure as text; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    if name == "adapter_bytes":
        return format_bytes(value)
    if name == "step_seconds":
        return format_duration(value)
    if name == "seconds_per_step":
        return f"{value:.3g} s"
    if name in ("loss", "loss_ratio_train", "loss_ratio_held_out"):
        return f"{value:.3f}"
    return f"{value:.2f}" if name in SHARES else f"{value:g}" if isinstance(value, float) else str(value)


def setting_text(value: Any) -> str:
    """Return the value of a setting as people write it; a dash for one that the run's method does not have."""
    if value is None or value == "" or value == []:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " | ".join(map(str, value))
    return (
        str(value) if isinstance(value, str | int) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
    )
