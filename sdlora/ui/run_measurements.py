"""A run's measurements beside its steps, as the page shows them: a curve, a table of pictures, sizes of the updates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from sdlora.events import Measured
from sdlora.signals import (
    BlockUpdate,
    PictureLoss,
    loss_ratio,
    odd_ones_first,
    ratios_by_time,
    read_pictures,
    read_updates,
)

TRAINED, HELD_OUT = "trained", "held out"
COLOURS = {TRAINED: "#4f6bed", HELD_OUT: "#d98324"}
MAX_POINTS = 200
"""Points of a curve, as each update redraws the plot."""
SHOWN = 5
"""Rows of the table of pictures that are seen before it is unfolded."""
CURVE_HELP = (
    "The loss on fixed noise, with the adapter over without it. 1: as the base. It falls while the adapter learns; "
    "held-out pictures that rise while trained ones fall are a sign of overfitting."
)
PICTURES_HELP = (
    "First the pictures that are learnt most unlike the others: look at the first two, as their look or subject may be "
    "another. Apart: how far from the others' mean, in their standard deviations, at the noise level where it is most. "
    "Some picture is always first. Ratio: the loss over the base's; near 1 at the end, a picture is hardly learnt."
)
UPDATES_HELP = "Norm of what the adapter adds to each block's weights, and how many directions it uses on average."


@dataclass
class RunMeasurements:
    """Measurements of a run according to its journal."""

    ratios: dict[int, dict[str, float]] = field(default_factory=dict)
    """Mean ratio of the losses by step, of trained and of held-out pictures."""
    step: int = 0
    """Step of the values below, the last ones."""
    pictures: Sequence[PictureLoss] = ()
    full_step: int = 0
    """Step of the first measurement that had further pictures, if one had."""
    full: Sequence[PictureLoss] = ()
    """All pictures of that measurement."""
    updates: Sequence[BlockUpdate] = ()
    times: Sequence[float] = ()

    def add(self, event: Measured) -> None:
        """Take up a measurement; a damaged one is passed over."""
        pictures = read_pictures(event.pictures)
        means = {TRAINED: loss_ratio(pictures), HELD_OUT: loss_ratio(pictures, held_out=True)}
        found = {name: ratio for name, ratio in means.items() if ratio is not None}
        if found:
            self.ratios[event.step] = found
            self.step, self.pictures, self.updates = event.step, pictures, read_updates(event.updates)
            if not all(one.always for one in pictures) and not 0 < self.full_step < event.step:
                self.full_step, self.full = event.step, pictures
            self.times = [time for time in _listed(event.times) if isinstance(time, int | float)]

    def rewind(self, step: int) -> None:
        """Forget the curve behind ``step``: a resumed run measures it again."""
        self.ratios = {at: ratios for at, ratios in self.ratios.items() if at <= step}

    def curve(self) -> list[tuple[int, float, str]]:
        """Return the curves' points: step, ratio, and the curve's name."""
        steps = sorted(self.ratios)
        kept = steps[:: -(-len(steps) // MAX_POINTS) or 1]
        kept += steps[-1:] if steps[-1:] != kept[-1:] else []
        return [(step, ratio, name) for step in kept for name, ratio in self.ratios[step].items()]


def _listed(values: object) -> list[object]:
    return values if isinstance(values, list) else []


def measurements_html(found: RunMeasurements) -> str:
    """Return the pictures of a measurement, and what folds out below them. Before the first step all are alike."""
    if not found.pictures or not found.step:
        return ""
    step, pictures = (found.full_step, found.full) if found.full else (found.step, found.pictures)
    last = {one.name: f"{one.ratio:.3f}" for one in found.pictures}
    trained = [[one.name, f"{apart:.1f}", last.get(one.name, "")] for one, apart in odd_ones_first(pictures)]
    held_out = [[one.name, "", last[one.name]] for one in found.pictures if one.held_out]
    head = ("picture", f"apart at step {step}", f"ratio at step {found.step}")
    folds = [
        _fold(f"{len(rows)} {words}", _table(head, rows))
        for words, rows in (("more", trained[SHOWN:]), ("held out", held_out))
        if rows
    ]
    return (
        f"<div class='measured'><p class='quiet'>{escape(CURVE_HELP)}</p>"
        f"<h4>Pictures</h4><p class='quiet'>{escape(PICTURES_HELP)}</p>{_table(head, trained[:SHOWN])}"
        f"{''.join(folds)}{_by_time(found)}{_updates(found)}</div>"
    )


def _by_time(found: RunMeasurements) -> str:
    """Return the ratios by timestep, folded."""
    series = {TRAINED: ratios_by_time(found.pictures), HELD_OUT: ratios_by_time(found.pictures, held_out=True)}
    shown = {name: ratios for name, ratios in series.items() if ratios}
    columns = [[f"{time:g}" for time in found.times], *([f"{one:.3f}" for one in each] for each in shown.values())]
    return _fold("Ratio by timestep", _table(("timestep", *shown), [*zip(*columns, strict=False)]))


def _updates(found: RunMeasurements) -> str:
    if not found.updates:
        return ""
    rows = [[one.block, f"{one.norm:.3g}", f"{one.rank:.1f}"] for one in found.updates]
    text = f"<p class='quiet'>{escape(UPDATES_HELP)}</p>"
    return _fold("Size of the updates", text + _table(("block", "norm", "effective rank"), rows))


def _fold(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first cell of each row is its heading."""
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
