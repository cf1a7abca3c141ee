"""An evaluation as a table of text. No torch."""

from sdlora.evaluation.figures import MEASURES, Candidate
from sdlora.evaluation.report import Evaluation


def evaluation_table(evaluation: Evaluation) -> list[str]:
    """Return the lines of a table: a row a candidate, with each measure's share, its value and the base's.

    ``*`` marks the proposed one, ``+`` the others that none beats in everything.
    """
    candidates, proposal = evaluation.candidates, evaluation.proposal
    names = [name for name in MEASURES if any(name in each.figures for each in candidates)]
    head = ["", "step", "scale", *(MEASURES[name].title for name in names), "nearest to"]
    rows = [head]
    for number, each in enumerate(candidates):
        mark = "*" if number == proposal.chosen else "+" if number in proposal.front else ""
        rows.append(
            [
                mark,
                str(each.step),
                f"{each.scale:g}",
                *(_cell(each, name) for name in names),
                each.copied or each.nearest,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_figure(candidate: Candidate, measure: str) -> tuple[str, str]:
    """Return a measure's share, and its value with the base's: ``0.82`` and ``0.61 | 0.20``, empty without a figure."""
    figure = candidate.figures.get(measure)
    if figure is None:
        return "-", ""
    return _number(figure.share), f"{figure.value:.2f} | {_number(figure.base)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(candidate: Candidate, measure: str) -> str:
    share, values = format_figure(candidate, measure)
    return f"{share} ({values})" if values else share
