"""A comparison as HTML: tables and charts for the page, and a file that needs nothing else. All text is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sdlora.formatting import one_line, pluralize
from sdlora.reports.comparison import Comparison, setting_cell
from sdlora.reports.line_chart import MOST_LINES, Line, line_chart, swatch
from sdlora.reports.run_curves import CURVES
from sdlora.reports.run_record import COLUMNS, RunRecord, figure_text
from sdlora.reports.thumbnails import run_thumbnails

STYLE = Path(__file__).with_name("report.css")
"""Style of what ``comparison_html`` returns, with colours of the surrounding page."""
LONGEST_CELL = 400
"""Characters of a setting's value in a table."""
RUNS_AS_COLUMNS = 6
"""Up to as many runs are columns of the tables, more are rows."""
CHARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Loss, smoothed", "loss", ("loss",)),
    ("Loss on fixed noise, adapter over base", "ratio", ("loss_ratio_train", "loss_ratio_held_out")),
    ("Learning rate", "rate", ("learning_rate",)),
    ("Gradient norm before clipping, smoothed", "norm", ("gradient_norm",)),
)
"""Title, label of the values, and curves of each chart; the second curve is dashed."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 1240px; font: 16px/1.5 system-ui, sans-serif; background: Canvas;
  color: CanvasText; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
{style}</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def report_html(comparison: Comparison) -> str:
    """Return the comparison as one HTML file with its pictures: no script, and nothing is loaded."""
    title = (
        f"Comparison of {pluralize(len(comparison.runs), 'run')}" if len(comparison.runs) != 1 else "Report of a run"
    )
    body = comparison_html(comparison, pictures=True)
    return PAGE.format(title=escape(title), style=STYLE.read_text(encoding="utf-8"), body=body)


def comparison_html(comparison: Comparison, pictures: bool = False) -> str:
    """Return tables and charts of the comparison, and with ``pictures`` those of each run, as one element."""
    runs = comparison.runs
    notes = "".join(f"<li>{escape(one_line(note, 400))}</li>" for note in comparison.notes)
    parts = [
        f"<ul class='report-notes'>{notes}</ul>" if notes else "",
        _figures(comparison),
        _settings(comparison),
        _charts(runs),
        _pictures(runs) if pictures else "",
    ]
    return f"<div class='run-report'>{''.join(parts)}</div>"


def _figures(comparison: Comparison) -> str:
    names = comparison.taken
    cells = [[figure_text(name, run.figures[name]) for name in names] for run in comparison.runs]
    meanings = "".join(
        f"<dt>{escape(COLUMNS[name].title)}</dt><dd>{escape(COLUMNS[name].meaning)}</dd>"
        for name in names
        if COLUMNS[name].meaning
    )
    legend = f"<details><summary>What the figures are</summary><dl>{meanings}</dl></details>"
    table = _table("Figures", comparison.runs, [COLUMNS[name].title for name in names], cells)
    return f"<h2>Figures</h2>{table}{legend}"


def _settings(comparison: Comparison) -> str:
    if len(comparison.runs) < 2:
        return ""
    names = comparison.differing
    if not names:
        return "<h2>Settings that differ</h2><p>None.</p>"
    cells = [[setting_cell(run, name) for name in names] for run in comparison.runs]
    return f"<h2>Settings that differ</h2>{_table('Settings that differ', comparison.runs, names, cells)}"


def _table(label: str, runs: Sequence[RunRecord], names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table of ``cells``, a row of values by ``names`` for each run; few runs become columns."""
    heads = [_run_name(run, number) for number, run in enumerate(runs)]
    titles = [escape(name).replace(".", ".<wbr>") for name in names]
    values = [[escape(one_line(cell, LONGEST_CELL)) for cell in row] for row in cells]
    if len(runs) <= RUNS_AS_COLUMNS:
        heads, titles, values = titles, heads, [list(column) for column in zip(*values, strict=True)]
    top = "".join(f"<th scope='col'>{title}</th>" for title in titles)
    body = "".join(
        f"<tr><th scope='row'>{head}</th>{''.join(f'<td>{value}</td>' for value in row)}</tr>"
        for head, row in zip(heads, values, strict=True)
    )
    return (
        f"<div class='report-table' tabindex='0' role='region' aria-label='{escape(label, quote=True)}'>"
        f"<table><thead><tr><td></td>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _run_name(run: RunRecord, number: int) -> str:
    """Return a run's name, with the mark of its curves."""
    mark = swatch(number) if number < MOST_LINES else ""
    return f"<span class='report-run'>{mark}{escape(one_line(run.name))}</span>"


def _charts(runs: Sequence[RunRecord]) -> str:
    """Return the charts of the first ``MOST_LINES`` runs, with a legend."""
    shown = runs[:MOST_LINES]
    charts = []
    for title, label, curves in CHARTS:
        lines = [
            Line(f"{run.name}, {CURVES[name].title}", run.curves.get(name, ()), style, dashed=name != curves[0])
            for style, run in enumerate(shown)
            for name in curves
        ]
        dashed = any(line.dashed and line.points for line in lines)
        more = " (solid: trained pictures, dashed: held out)" if dashed else ""
        if chart := line_chart(title, lines, label):
            charts.append(f"<figure><figcaption>{escape(title + more)}</figcaption>{chart}</figure>")
    if not charts:
        return "<h2>Curves</h2><p>No run has done a step yet.</p>"
    legend = "".join(f"<li>{_run_name(run, number)}</li>" for number, run in enumerate(shown))
    left_out = (
        f"<p>Curves of the first {MOST_LINES} of {len(runs)} runs, in the order given; name fewer to see others.</p>"
        if len(runs) > MOST_LINES
        else ""
    )
    return (
        f"<h2>Curves</h2>{left_out}<ul class='report-legend'>{legend}</ul>"
        f"<div class='report-charts'>{''.join(charts)}</div>"
    )


def _pictures(runs: Sequence[RunRecord]) -> str:
    """Return the evaluation sheet and the last previews of each run that has some."""
    sections = [section for number, run in enumerate(runs) if (section := _pictures_of(run, number, len(runs)))]
    many = " many" if len(sections) > RUNS_AS_COLUMNS else ""
    return f"<h2>Pictures</h2><div class='report-pictures{many}'>{''.join(sections)}</div>" if sections else ""


def _pictures_of(run: RunRecord, number: int, runs: int) -> str:
    sheet, previews = run_thumbnails(run, runs)
    shown = _previews(previews)
    if sheet:
        title = escape(sheet.title, quote=True)
        box = f"<div class='report-sheet' tabindex='0' role='region' aria-label='{title}'>{_image(*sheet)}</div>"
        shown += f"<figure>{box}<figcaption>{title}</figcaption></figure>"
    return f"<section><h3>{_run_name(run, number)}</h3>{shown}</section>" if shown else ""


def _previews(previews: Iterable[tuple[str, str]]) -> str:
    figures = "".join(
        f"<figure>{_image(uri, title)}<figcaption>{escape(one_line(title, 160))}</figcaption></figure>"
        for uri, title in previews
    )
    return f"<div class='report-previews'>{figures}</div>" if figures else ""


def _image(uri: str, title: str) -> str:
    return f"<img src='{uri}' alt='{escape(one_line(title, 160), quote=True)}'>"
