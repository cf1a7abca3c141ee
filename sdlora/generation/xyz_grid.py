"""Grids of images that differ in one setting a direction: their axes, their cells, and their folder on disk.

A grid is declared first (``write_declaration``, without torch) as a folder with ``grid.json``; the process that has the
device adds a PNG for each cell (``generate_cells``), and ``sheet.png`` at the end. Existing cells are kept, so that an
interrupted grid continues where it ended.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import Field, TypeAdapter

from sdlora.data.images import open_image
from sdlora.errors import ConfigError, FileError, SdloraError
from sdlora.events import OnProgress, unwatched
from sdlora.filesystem.reading import read_json
from sdlora.filesystem.writing import file_errors, write_atomic
from sdlora.formats import lora_tags
from sdlora.generation.axes import AXIS_TYPES, Axis
from sdlora.generation.contact_sheet import contact_sheet, stack_images
from sdlora.generation.images import save_images, write_image
from sdlora.generation.infotext import Parameters, format_parameters, read_parameters
from sdlora.generation.settings import GenerationSettings, ImageSettings

if TYPE_CHECKING:
    from sdlora.generation.studio import Studio

MAX_CELLS = 200
DECLARATION, SHEET = "grid.json", "sheet.png"
SHEET_CELL = 384
"""Longest side of an image on the contact sheet, in pixels."""
DIRECTIONS = ("X", "Y", "Z")


class GridCell(GenerationSettings):
    """One image of a grid, or what all have in common before the axes change it."""

    adapter: str = ""
    """Adapter or checkpoint that is compared; "" for none."""
    scale: float = 1.0
    """Scale of ``adapter``."""
    others: Mapping[str, float] = Field(default_factory=dict)
    """Scales of all other adapters."""
    place: tuple[int, int, int] = (0, 0, 0)
    """Page, row and column."""
    notes: Mapping[str, str] = Field(default_factory=dict)
    """Further settings of its infotext: the axes' values."""

    @property
    def file(self) -> str:
        """Name of its image in the grid's folder."""
        return "{}-{:03d}-{:03d}.png".format(*self.place)

    @property
    def scales(self) -> dict[str, float]:
        return {**self.others, **({self.adapter: self.scale} if self.adapter else {})}


SHARED = ImageSettings.model_fields.keys() - {"negative", *AXIS_TYPES}
"""Settings that no axis changes: ``grid.json`` holds them once, beside the cells."""


@dataclass(frozen=True)
class ImageGrid:
    """A grid as its folder declares it: columns along ``axes[0]``, rows along ``axes[1]``, pages along ``axes[2]``."""

    axes: tuple[Axis, ...]
    cells: tuple[GridCell, ...]
    adapters: Mapping[str, str]
    """File of every adapter by name, all checkpoints among them, in the order of loading."""
    base: str = "pocket"
    subject: str = ""
    """Name of the run or adapter that is compared."""

    @property
    def labels(self) -> tuple[list[str], list[str], list[str]]:
        """Labels of the columns, the rows and the pages."""
        columns, rows, pages = ([axis.label(value) for value in axis.values] for axis in _pad_axes(self.axes))
        return columns, rows, pages

    def cell(self, file: str) -> GridCell:
        """Return the cell whose image is called ``file``. Raises ConfigError if there is none."""
        cell = next((cell for cell in self.cells if cell.file == file), None)
        if cell is None:
            raise ConfigError(f"{file}: the grid has no such picture")
        return cell


_GRIDS = TypeAdapter(ImageGrid)


def grid_cells(
    start: GridCell, axes: Sequence[Axis], checkpoints: Mapping[str, str] | None = None
) -> tuple[GridCell, ...]:
    """Return ``start`` changed by every combination of the axes' values, page by page, row by row.

    ``checkpoints`` names the adapter of each value of a checkpoint axis. A random seed is chosen once for all cells.
    Raises ConfigError for two axes of one kind, too many cells, or an axis that would change nothing.
    """
    used = [axis for axis in axes if axis.kind]
    kinds = [axis.kind for axis in used]
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
        raise ConfigError(f"two axes are {AXIS_TYPES[twice].title}; give each direction something else to change")
    columns, rows, pages = directions = _pad_axes(axes)
    count = len(columns.values) * len(rows.values) * len(pages.values)
    if count > MAX_CELLS:
        sides = " x ".join(str(len(axis.values)) for axis in directions if axis.kind)
        raise ConfigError(f"{sides} are {count} images, and a grid has at most {MAX_CELLS}; leave some values out")
    if start.seed == -1:
        start = start.model_copy(update={"seed": secrets.randbelow(2**32)})
    cells = []
    for page, row, column in product(*(range(len(axis.values)) for axis in reversed(directions))):
        chosen = {axis.kind: (axis, axis.values[n]) for axis, n in zip(directions, (column, row, page), strict=True)}
        where = {"place": (page, row, column), "notes": _notes(directions, (column, row, page))}
        cell = start.model_copy(update=where)
        for kind in AXIS_TYPES:  # Their order: what is replaced stands in the prompt that an axis gives.
            if kind in chosen:
                cell = _changed(cell, *chosen[kind], checkpoints or {})
        cells.append(cell)
    _require_change(start, used, cells)
    return tuple(cells)


def _changed(cell: GridCell, axis: Axis, value: str, checkpoints: Mapping[str, str]) -> GridCell:
    """Return ``cell`` with one axis at ``value``."""
    if axis.kind == "checkpoint":
        changes: dict[str, Any] = {"adapter": checkpoints[value]}
    elif axis.kind == "replace":
        changes = {name: getattr(cell, name).replace(axis.values[0], value) for name in ("prompt", "negative")}
    else:
        changes = {axis.kind: AXIS_TYPES[axis.kind].read(value)}
    return cell.model_copy(update=changes)


def _require_change(start: GridCell, axes: Sequence[Axis], cells: Sequence[GridCell]) -> None:
    """Raise ConfigError for an axis whose values could change no image."""
    for axis in axes:
        if axis.kind == "replace" and not any(axis.values[0] in start.prompt + start.negative for start in cells):
            raise ConfigError(f"replace: {axis.values[0]!r} stands in no prompt; the first value is what is replaced")
        if axis.kind in ("scale", "checkpoint") and not start.adapter:
            raise ConfigError(f"{axis.kind}: choose the adapter to compare")
        if axis.kind in ("scale", "checkpoint"):
            named = {name for cell in cells for name in lora_tags.parse_lora_tags(cell.prompt).scales}
            if fixed := named & {start.adapter, *(cell.adapter for cell in cells)}:
                tag = f"<lora:{min(fixed)}:...>"
                raise ConfigError(f"prompt: {tag} sets the scale that is to be compared; take it out of the prompt")


def _notes(axes: Sequence[Axis], indices: Sequence[int]) -> dict[str, str]:
    """Return the axes' values as settings of an infotext, by A1111's names for its X/Y/Z plot."""
    notes: dict[str, str] = {}
    for direction, axis, index in zip(DIRECTIONS, axes, indices, strict=True):
        if axis.kind:
            notes |= {f"{direction} Type": AXIS_TYPES[axis.kind].title, f"{direction} Value": axis.values[index]}
    return notes


def _pad_axes(axes: Sequence[Axis]) -> tuple[Axis, Axis, Axis]:
    """Return three axes: missing ones have a single value that changes nothing."""
    x, y, z = [*axes, *[Axis()] * (3 - len(axes))]
    return x, y, z


def write_declaration(grid: ImageGrid, folder: Path) -> Path:
    """Write the declaration of ``grid`` into ``folder``, which is made. Raises FileError."""
    cells = [cell.to_json() for cell in grid.cells]
    values = asdict(grid) | {name: value for name, value in cells[0].items() if name in SHARED}
    values["cells"] = [{name: value for name, value in cell.items() if name not in SHARED} for cell in cells]
    write_atomic(folder / DECLARATION, json.dumps(values, ensure_ascii=False))
    return folder


def read_grid(folder: Path) -> ImageGrid:
    """Return the grid in ``folder``. Raises FileError if there is none, or it cannot be read."""
    try:
        values = read_json(folder / DECLARATION)
        shared = {name: values.pop(name) for name in SHARED if name in values}
        values["cells"] = [{**shared, **cell} for cell in values["cells"]]
        return _GRIDS.validate_python(values)
    except (SdloraError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"{folder}: holds no grid that can be read ({type(error).__name__})") from None


def generate_cells(
    studio: "Studio",
    folder: Path,
    on_progress: OnProgress = unwatched,
    should_stop: Callable[[], bool] = lambda: False,
    batch: int | None = None,
) -> None:
    """Generate the missing cells of ``folder``, save each as soon as it is finished, and the contact sheet at the end.

    The grid's adapters must be loaded in ``studio``. Raises what ``Studio.generate_specs`` raises, FileError.
    """
    grid = read_grid(folder)
    missing = [cell for cell in grid.cells if not (folder / cell.file).is_file()]
    off = dict.fromkeys(studio.adapters, 0.0)
    specs = [studio.image_spec(cell, off | cell.scales, cell.notes) for cell in missing]

    def save(position: int, image: Image.Image) -> None:
        save_images([image], folder / missing[position].file)
        with file_errors(folder):  # By times alone a clock that was set back would have it seem up to date.
            (folder / SHEET).unlink(missing_ok=True)

    studio.generate_specs(specs, save, on_progress, should_stop, batch)
    if all((folder / cell.file).is_file() for cell in grid.cells):
        save_contact_sheet(folder)


def save_contact_sheet(folder: Path) -> Path:
    """Write the contact sheet of the finished cells, unless it is up to date; return its path.

    Raises ConfigError if no cell is finished, FileError.
    """
    grid, path = read_grid(folder), folder / SHEET
    finished = {cell.place: folder / cell.file for cell in grid.cells if (folder / cell.file).is_file()}
    newest = max((path.stat().st_mtime_ns for path in finished.values()), default=0)
    if path.is_file() and path.stat().st_mtime_ns >= newest:
        return path
    images = {}
    for place, file in finished.items():
        images[place] = open_image(file).rgb
        images[place].thumbnail((SHEET_CELL, SHEET_CELL))
    sheet = _pages(grid, images)
    types = ((way, axis) for way, axis in zip(DIRECTIONS, grid.axes, strict=False) if axis.kind)
    made = read_parameters(finished[min(finished)]) or Parameters()
    sheet.info["parameters"] = _sheet_text(grid, {way: axis for way, axis in types}, made.settings)
    write_atomic(path, lambda temporary: write_image(sheet, temporary))
    return path


def _pages(grid: ImageGrid, images: "Mapping[tuple[int, int, int], Image.Image]") -> Image.Image:
    """Return a table for each page, one below the other."""
    columns, rows, pages = grid.labels
    tables = []
    for page, title in enumerate(pages):
        table = [[images.get((page, row, column)) for column in range(len(columns))] for row in range(len(rows))]
        if any(image for row in table for image in row):
            tables.append(contact_sheet(table, rows if any(rows) else (), columns if any(columns) else (), title))
    if not tables:
        raise ConfigError("the grid has no picture yet")
    return stack_images(tables)


def _sheet_text(grid: ImageGrid, axes: Mapping[str, Axis], made: Mapping[str, str]) -> str:
    """Return the first cell's infotext, with the axes' values by A1111's names for its X/Y/Z plot.

    ``made`` has the settings of the first finished image.
    """
    first = grid.cells[0]
    settings = {name: made[name] for name in ("Steps", "Sampler", "Schedule type", "CFG scale") if name in made}
    settings |= {"Seed": str(first.seed), "Script": "X/Y/Z plot"}
    for way, axis in axes.items():
        settings |= {f"{way} Type": AXIS_TYPES[axis.kind].title, f"{way} Values": ", ".join(axis.values)}
    return format_parameters(Parameters(first.prompt, first.negative, settings))
