"""The command ``sdlora compare``: a labelled grid of images along chosen axes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress
from sdlora.errors import ConfigError

if TYPE_CHECKING:
    from sdlora.api.generation import GenerationRequest
    from sdlora.api.grids import AxisSpec
    from sdlora.api.training import Run


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.generation.axes import AXIS_TYPES

    add = parser.add_argument
    add("source", metavar="RUN-OR-FILE", help="the run, or the adapter file, to compare")
    for direction, what in (("x", "columns"), ("y", "rows"), ("z", "pages")):
        help = f"what the {what} change and through which values, such as scale=0,0.5,1; one of {', '.join(AXIS_TYPES)}"
        add(f"--{direction}", metavar="KIND[=VALUES]", default="", help=help)
    add("--base", default="", help="default: the run's own, or pocket")
    add("--scale", type=float, default=1.0, metavar="F", help="the adapter's, where no axis changes it (default: 1)")
    help = "the contact sheet; its images go into a folder of the same name beside it"
    add("--output", type=Path, required=True, metavar="FILE.png", help=help)
    options.add_image_settings(parser, "prompt", "seed")
    options.add_base_settings(parser)
    options.add_engine(parser)


def run(parsed: argparse.Namespace) -> int:
    """Generate the grid, and print the path of its contact sheet."""
    from sdlora import Studio
    from sdlora.api.generation import check_output, lock_device
    from sdlora.api.grids import generate_grid, plan_grid
    from sdlora.api.models import locate_base
    from sdlora.warning_capture import capture_warnings

    output = check_output(parsed.output)
    request, subject, found = _request(parsed)
    grid, _ = plan_grid(request, [_axis(text) for text in (parsed.x, parsed.y, parsed.z)], subject, found)
    locate_base(grid.base)  # Fails before the device is waited for.
    engine = options.engine(parsed)
    terminal = TerminalProgress(grid.base)
    with lock_device(parsed.device, parsed.data_dir, terminal.say), capture_warnings(terminal.note):
        studio = Studio(request.model, device=parsed.device, engine=engine)
        for name, path in grid.adapters.items():
            studio.add_adapter(name, path, 0.0)
        sheet = generate_grid(studio, grid, output, terminal.progress("generating"))
    terminal.close()
    print(sheet)
    return 0


def _request(parsed: argparse.Namespace) -> "tuple[GenerationRequest, str, Run | None]":
    """Return the request, the name of the compared adapter, and its run, if it has one."""
    from sdlora.api.adapters import adapter_name, find_adapter
    from sdlora.api.generation import AdapterChoice, GenerationRequest
    from sdlora.api.models import resolve_base
    from sdlora.api.training import find_run

    path = find_adapter(parsed.source, parsed.data_dir)
    try:
        found = find_run(parsed.source, parsed.data_dir)
    except ConfigError:  # A file, or a single checkpoint.
        found = None
    name = found.name if found else adapter_name(path)
    prompts = found.config.sample.prompts if found else ()
    base = resolve_base(parsed.base or (found.config.model.base if found else "pocket"), parsed.data_dir)
    request = GenerationRequest.from_section(
        options.read_settings(parsed, GenerationRequest),
        prompt=parsed.prompt or next(iter(prompts), ""),
        base=base,
        adapters=(AdapterChoice(name, str(path), parsed.scale),),
        base_settings=options.base_settings(parsed, base, [path]),
    )
    return request, name, found


def _axis(text: str) -> "AxisSpec":
    """Parse ``KIND`` or ``KIND=VALUES``; without values, the kind's usual ones."""
    from sdlora.api.grids import AxisSpec
    from sdlora.generation.axes import AXIS_TYPES

    kind, equals, values = text.partition("=")
    return AxisSpec(kind, values if equals or kind not in AXIS_TYPES else AXIS_TYPES[kind].start)


COMMAND = Command("compare", run, _add_arguments, "Generate a labelled grid of images that differ along two axes.")
