"""Axes of a grid and the notation of their values, A1111's for its X/Y/Z plot.

Values stand between commas (one with a comma inside in double quotes); numbers also as ranges: ``1-5``, ``0-1 (+0.25)``
with a step, ``0-1 [5]`` with a count. See scripts/xyz_grid.py of stable-diffusion-webui.
"""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sdlora.errors import ConfigError
from sdlora.formatting import did_you_mean
from sdlora.generation.samplers import canonical_sampler
from sdlora.generation.settings import GenerationSettings
from sdlora.section import settings

NUMBER = r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})"
"""A number with no more digits than any setting has: the time to read one grows with their square."""
RANGE = re.compile(
    rf"(?P<first>{NUMBER})\s*-\s*(?P<last>{NUMBER})"
    rf"(?:\s*\(\s*(?P<step>{NUMBER})\s*\)|\s*\[\s*(?P<count>\d{{1,20}})\s*\])?"
)
MAX_VALUES = 200
MAX_LETTERS = 100_000
"""Longest text of an axis."""
DECIMALS = 6
"""Decimals of numbers in a range: 0 to 0.3 by 0.1 has no 0.30000000000000004."""


class AxisType(NamedTuple):
    """A kind of axis: its title, the parser of a value, and the pattern of a value's label."""

    title: str
    read: Callable[[str], str | int | float]
    label: str = "{}"
    start: str = ""
    """Values that a form starts with."""
    least: float = -float("inf")
    most: float = float("inf")


DECLARED = {setting.name: setting for setting in settings(GenerationSettings)}


def _number_axis(name: str, title: str, label: str, start: str, least: float = -float("inf")) -> AxisType:
    """Return the axis of a declared number, with its bounds; ``least`` where an axis admits fewer values."""
    declared, most = DECLARED[name].bounds
    read = int if DECLARED[name].field.annotation is int else float
    return AxisType(title, read, label, start, max(least, declared), most)


AXIS_TYPES: Mapping[str, AxisType] = {
    "prompt": AxisType("Prompt", str),
    "replace": AxisType("Prompt S/R", str),
    "checkpoint": AxisType("Checkpoint", int, "step {}", "", 0),
    "scale": AxisType("Adapter scale", float, "scale {}", "0, 0.5, 0.75, 1", -100, 100),
    "seed": _number_axis("seed", "Seed", "seed {}", "1-3", 0),  # A cell's seed is definite: -1 is none.
    "cfg": _number_axis("cfg", "CFG scale", "CFG {}", "3, 5, 7, 9"),
    "steps": _number_axis("steps", "Steps", "{} steps", "10, 20, 30"),
    "sampler": AxisType("Sampler", canonical_sampler, "{}", "DPM++ 2M, Euler a, DDIM"),
}
"""Kinds of axes by name, in the order in which they change an image."""


@dataclass(frozen=True)
class Axis:
    """One direction of a grid: the kind of its axis ("": none), and its values as text."""

    kind: str = ""
    values: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        """Raise ValueError for a kind that there is not."""
        if self.kind and self.kind not in AXIS_TYPES:
            raise ValueError(f"there is no axis {self.kind!r}")

    def label(self, value: str) -> str:
        """Return the label of the images of ``value``."""
        return AXIS_TYPES[self.kind].label.format(value) if self.kind else ""


def parse_axis(kind: str, text: str, checkpoints: Sequence[int] = ()) -> Axis:
    """Return the axis of ``kind`` with the values of ``text``; an axis that changes nothing for the kind "".

    ``checkpoints`` are the saved steps; an empty text takes them all. Each line is a prompt.
    Raises ConfigError for text that cannot be parsed.
    """
    if not kind:
        return Axis()
    if len(text) > MAX_LETTERS:
        raise ConfigError(f"{kind}: {len(text)} letters; give {MAX_LETTERS} at most")
    if kind not in AXIS_TYPES:
        hint = did_you_mean(kind, AXIS_TYPES, f"take one of {', '.join(AXIS_TYPES)}")
        raise ConfigError(f"there is no axis {kind!r}; {hint}")
    parts = [line.strip() for line in text.splitlines() if line.strip()] if kind == "prompt" else _split(text)
    if kind == "checkpoint":
        return Axis(kind, _checkpoints(parts, checkpoints))
    values = [value for part in parts for value in _values(kind, part)]
    if not values:
        raise ConfigError(f"{kind}: give at least one value{_example(kind)}")
    if kind == "replace" and len(values) < 2:
        raise ConfigError("replace: give what is to be replaced, then what by: red, blue, green")
    if len(values) > MAX_VALUES:
        raise ConfigError(f"{kind}: {len(values)} values; a grid has at most {MAX_VALUES} pictures")
    return Axis(kind, tuple(dict.fromkeys(values)))


def _checkpoints(parts: Sequence[str], saved: Sequence[int]) -> tuple[str, ...]:
    """Return the steps of ``parts`` among the ``saved`` ones. Raises ConfigError for one that was not saved."""
    if not saved:
        raise ConfigError("checkpoint: this adapter has no checkpoints; choose a run that saved some")
    if not parts or [part.lower() for part in parts] == ["all"]:
        return tuple(map(str, saved))
    steps = dict.fromkeys(int(value) for part in parts for value in _values("checkpoint", part))
    missing = next((step for step in steps if step not in saved), None)
    if missing is not None:
        raise ConfigError(f"checkpoint: none was saved at step {missing}; there are {', '.join(map(str, saved))}")
    return tuple(map(str, steps))


def _split(text: str) -> list[str]:
    """Split ``text`` at commas and line ends."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [part.strip() for row in rows for part in row if part.strip()]


def _values(kind: str, part: str) -> list[str]:
    """Return the values of one part, in their canonical spelling."""
    row = AXIS_TYPES[kind]
    if row.read not in (int, float):
        try:
            return [str(row.read(part))]
        except ConfigError as error:
            raise ConfigError(f"{kind}: {error}") from None
    numbers = _numbers(kind, part)
    for number in numbers:
        if row.read is int and number != int(number):
            raise ConfigError(f"{kind}: {part!r} does not give whole numbers")
        if not row.least <= number <= row.most:
            least, most = (_number(limit) for limit in (row.least, row.most))
            raise ConfigError(f"{kind}: {_number(number)} is out of range; give {least} to {most}")
    return [_number(number) for number in numbers]


def _numbers(kind: str, part: str) -> list[float]:
    """Return a number, or all of a range, both ends included where its step allows."""
    if re.fullmatch(NUMBER, part):
        return [int(part) if re.fullmatch(r"[+-]?\d+", part) else float(part)]
    found = RANGE.fullmatch(part)
    if not found:
        raise ConfigError(f"{kind}: {part!r} is no number and no range{_example(kind)}")
    first, last = float(found["first"]), float(found["last"])
    if found["count"]:
        count = int(found["count"])
        if not 1 <= count <= MAX_VALUES:
            raise ConfigError(f"{kind}: {part!r} has {count} values; give 1 to {MAX_VALUES}")
        step = (last - first) / max(1, count - 1)
        even = [first + step * n for n in range(count)]
        return (
            [round(number) for number in even] if AXIS_TYPES[kind].read is int else [round(n, DECIMALS) for n in even]
        )
    step = float(found["step"] or (1 if last >= first else -1))
    if not step or (last - first) / step < 0:
        raise ConfigError(f"{kind}: {part!r} leads nowhere; the step goes from the first number to the last")
    count = int((last - first) / step + 1e-9) + 1
    if count > MAX_VALUES:
        raise ConfigError(f"{kind}: {part!r} has {count} values; give at most {MAX_VALUES}")
    return [round(first + step * n, DECIMALS) for n in range(count)]


def _number(number: float) -> str:
    return str(int(number)) if abs(number) < float("inf") and number == int(number) else repr(float(number))


def _example(kind: str) -> str:
    return f", such as {AXIS_TYPES[kind].start}" if AXIS_TYPES[kind].start else ""
