"""Grids of images along axes: plan and fill them, and keep the adapter behind the best cell."""

import base64
import io
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.api.adapters import run_checkpoints
from sdlora.data.concepts import trigger_words
from sdlora.data.images import open_image
from sdlora.errors import ConfigError
from sdlora.events import OnProgress
from sdlora.families.settings import base_settings
from sdlora.filesystem.locks import exclusive
from sdlora.filesystem.paths import path_inside, safe_name
from sdlora.filesystem.reading import find_matching
from sdlora.filesystem.safetensors_header import copy_with_metadata, read_metadata
from sdlora.filesystem.writing import file_errors, move_new, new_folder, write_atomic
from sdlora.formats.metadata import build_a1111_card, sd_version, weight_metadata
from sdlora.generation import xyz_grid
from sdlora.generation.axes import parse_axis
from sdlora.generation.xyz_grid import GridCell as GridCell
from sdlora.generation.xyz_grid import ImageGrid as ImageGrid
from sdlora.generation.xyz_grid import read_grid as read_grid
from sdlora.generation.xyz_grid import save_contact_sheet as save_contact_sheet
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.storage.gallery import images_folder
from sdlora.storage.library_entries import REPORT, left_beside
from sdlora.storage.run_folder import Run

if TYPE_CHECKING:
    from sdlora.generation.studio import Studio

BEST_SCALES = ("0.6", "0.8", "1", "1.2")
MOST_CHECKPOINTS = 8
"""Largest number of a run's checkpoints in a grid: evenly spaced, with the last."""
THUMBNAIL = 256
"""Longest side of the image in an adapter's header, in pixels."""


class AxisSpec(NamedTuple):
    """An axis as a person writes it: the kind of setting that it changes, and its values."""

    kind: str
    values: str = ""


def list_grids(data_dir: Path) -> list[Path]:
    """Return the folders of all grids, the newest first."""
    declarations = find_matching(_root(data_dir), f"[!.]*/{xyz_grid.DECLARATION}")
    return sorted((path.parent for path in declarations), reverse=True)


def grid_folder(data_dir: Path, name: str) -> Path:
    """Return the folder of the grid called ``name``. Raises FileError for a name that leads outside."""
    return path_inside(_root(data_dir), name)


def plan_grid(
    request: GenerationRequest,
    axes: Sequence[AxisSpec],
    subject: str = "",
    run: Run | None = None,
    folder: Path | None = None,
) -> tuple[ImageGrid, GenerationRequest]:
    """Return a grid of ``request`` along ``axes``, and the request that fills ``folder`` with it.

    ``subject`` names the compared adapter of the request; ``run`` has its checkpoints. Raises ConfigError for axes that
    cannot be read or compared.
    """
    saved = run_checkpoints(run) if run else {}
    parsed = tuple(parse_axis(axis.kind, axis.values, list(saved)) for axis in axes)
    names = {str(step): f"{subject}-{step:06d}" for step in saved}
    scales = {adapter.name: adapter.scale for adapter in request.adapters}
    others = {name: scale for name, scale in scales.items() if name != subject}
    compared = {"adapter": subject, "scale": scales.get(subject, 1.0), "others": others}
    start = GridCell.from_section(request, **compared)
    cells = xyz_grid.grid_cells(start, parsed, names)
    if not all(cell.prompt.strip() for cell in cells):
        raise ConfigError("Write what to draw into the prompt.")
    files = {adapter.name: adapter.path for adapter in request.adapters}
    files |= {names[str(step)]: str(path) for step, path in saved.items()}
    used = dict.fromkeys(name for cell in cells for name in cell.scales)
    adapters = {name: files[name] for name in used}
    grid = ImageGrid(parsed, cells, adapters, request.base, subject)
    filling = {"adapters": _switched_off(grid), "count": len(cells), "grid": str(folder or "")}
    return grid, request.model_copy(update=filling)


def begin_grid(
    data_dir: Path, request: GenerationRequest, axes: Sequence[AxisSpec], subject: str = "", run: Run | None = None
) -> GenerationRequest:
    """Plan a grid in a new folder, and return the request that fills it. Raises ConfigError, FileError."""
    grid, filling = plan_grid(request, axes, subject, run)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{safe_name(subject, fallback='base')}"
    folder = new_folder(_root(data_dir) / name, partial(xyz_grid.write_declaration, grid))
    return filling.model_copy(update={"grid": str(folder)})


def generate_grid(studio: "Studio", grid: ImageGrid, output: Path, on_progress: OnProgress) -> Path:
    """Generate the cells of ``grid`` into a folder beside ``output``, named like it, and save the contact sheet there.

    Returns the path of the sheet, which has a number where ``output`` is taken. Raises what ``Studio.generate`` raises,
    FileError.
    """
    folder = new_folder(output.with_suffix(""), partial(xyz_grid.write_declaration, grid))
    xyz_grid.generate_cells(studio, folder, on_progress=on_progress)
    with file_errors(output):
        return move_new(xyz_grid.save_contact_sheet(folder), output)


def best_checkpoint_grid(run: Run) -> tuple[GenerationRequest, list[AxisSpec]]:
    """Return the request and axes for choosing a run's best: checkpoints by scales, a page for each preview prompt.

    Raises ConfigError if the run has saved no checkpoints.
    """
    steps = list(run_checkpoints(run))
    if not steps:
        raise ConfigError(f"{run.name}: this run has saved no checkpoints yet; train on, or set checkpoint.every")
    config, sample = run.config, run.config.sample
    last = len(steps) - 1
    count = min(len(steps), MOST_CHECKPOINTS)
    chosen = [steps[round(last * n / max(1, count - 1))] if count > 1 else steps[last] for n in range(count)]
    prompts = sample.prompts or (*trigger_words(config.all_concepts),) or (run.name,)
    request = GenerationRequest.from_section(
        sample,
        prompt=prompts[0],
        base=config.model.base,
        adapters=(AdapterChoice(run.name, str(run.adapter)),),
        base_settings=base_settings(config.model),
    )
    axes = [AxisSpec("scale", ", ".join(BEST_SCALES)), AxisSpec("checkpoint", ", ".join(map(str, chosen)))]
    pages = xyz_grid.MAX_CELLS // (len(BEST_SCALES) * count)
    return request, [*axes, AxisSpec("prompt", "\n".join(prompts[:pages]))]


def keep_best(data_dir: Path, folder: Path, file: str, name: str) -> Path:
    """Save the adapter behind one image of a grid as ``adapters/NAME.safetensors``, and return its path.

    The file's header gets the image's scale as preferred weight, and a thumbnail; A1111's card and the image itself are
    saved beside it. Raises ConfigError for a taken name or a cell without an adapter.
    """
    cell = (grid := xyz_grid.read_grid(folder)).cell(file)
    if cell.adapter not in grid.adapters:  # A declaration from a stranger may name any.
        raise ConfigError("This picture was made without an adapter; choose another one.")
    source, image = Path(grid.adapters[cell.adapter]), folder / file
    if not image.is_file():
        raise ConfigError("This picture is not drawn yet; wait for it, or choose another one.")
    output = data_dir / "adapters" / f"{safe_name(name, fallback=safe_name(grid.subject))}.safetensors"
    with exclusive(output.parent):
        _keep(source, image, cell, grid.base, output)
    return output


def _keep(source: Path, image: Path, cell: GridCell, base: str, output: Path) -> None:
    """Copy the adapter ``source`` to ``output`` as ``keep_best`` says; last, as what lies beside it belongs to it."""
    for left in list(left_beside(output.parent, output.stem)):
        left.unlink()
    if taken := next((path for path in (output, *_beside(output)) if path.exists()), None):
        raise ConfigError(f"{taken.name}: is there already; choose another name, or delete the old one first")
    metadata = read_metadata(source)
    small = base64.b64encode(_thumbnail(image)).decode()
    changes = {
        "ss_output_name": output.stem,
        "modelspec.title": output.stem,
        **weight_metadata(cell.scale),
        "modelspec.thumbnail": f"data:image/jpeg;base64,{small}",
        "ssmd_cover_images": json.dumps([small]),
    }
    card, cover = _beside(output)
    write_atomic(output.with_suffix(REPORT), json.dumps({"base": base}, ensure_ascii=False))
    write_atomic(cover, image.read_bytes())
    write_atomic(card, build_a1111_card(sd_version(metadata), metadata.get("modelspec.trigger_phrase", ""), cell.scale))
    copy_with_metadata(source, output, changes)


def _beside(adapter: Path) -> tuple[Path, Path]:
    """Return the paths of A1111's card and cover image for the file ``adapter``."""
    return adapter.with_suffix(".json"), adapter.with_suffix(".png")


def _thumbnail(path: Path) -> bytes:
    """Return a small JPEG of the image ``path``."""
    small = open_image(path).rgb
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=85)
    return content.getvalue()


def _switched_off(grid: ImageGrid) -> tuple[AdapterChoice, ...]:
    """Return the grid's adapters at scale 0: each cell switches its own on."""
    return tuple(AdapterChoice(name, path, 0.0) for name, path in grid.adapters.items())


def _root(data_dir: Path) -> Path:
    return images_folder(data_dir) / "grids"
