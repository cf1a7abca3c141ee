"""The command ``sdlora report``: runs side by side, in the terminal or as files."""

import argparse
from pathlib import Path

from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="RUN", help="a run's name, or its folder")
    help = "write one HTML file with tables, curves and pictures, which opens anywhere; a new file"
    parser.add_argument("--output", type=Path, metavar="FILE.html", help=help)
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write a row a run; a new file")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write all figures and curves; a new file")


def report(parsed: argparse.Namespace) -> int:
    """Compare runs; print the tables, or the paths of the files that were asked for."""
    from sdlora.api.reports import compare_runs, comparison_table, report_paths, write_report
    from sdlora.api.training import find_run

    paths = report_paths(parsed.output, parsed.csv, parsed.json)
    runs = [find_run(name, parsed.data_dir) for name in parsed.names]
    terminal = TerminalProgress("report")
    comparison = compare_runs(runs, on_progress=terminal.progress("reading runs"))
    terminal.close()
    if not paths:
        print("\n".join(comparison_table(comparison)))
        return 0
    for note in comparison.notes:
        terminal.note(note)
    for path in write_report(comparison, paths):
        print(path)
    return 0


COMMAND = Command("report", report, _add_arguments, "Compare runs: settings that differ, figures, curves, pictures.")
