"""The command ``sdlora generate``: images of a prompt."""

import argparse
from pathlib import Path

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress
from sdlora.errors import ConfigError
from sdlora.warning_capture import capture_warnings


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "an adapter and its scale; may be given often"
    add("--adapter", action="append", default=[], metavar="FILE[:SCALE]", help=help)
    options.add_image_settings(parser, "prompt", "base", "seed", "count")
    add("--output", type=Path, required=True, metavar="FILE.png", help="further images get -2, -3, ...")
    options.add_base_settings(parser)
    options.add_engine(parser)


def generate(parsed: argparse.Namespace) -> int:
    from sdlora import Studio
    from sdlora.api.adapters import adapter_name, find_adapter
    from sdlora.api.generation import GenerationRequest, check_output, lock_device, save_images
    from sdlora.api.models import locate_base, resolve_base

    request = options.read_settings(parsed, GenerationRequest)
    if not request.prompt:
        raise ConfigError("--prompt: empty; say what to generate")
    output = check_output(parsed.output)
    adapters = [
        (find_adapter(source, parsed.data_dir), scale) for source, scale in map(options.split_scale, parsed.adapter)
    ]
    base = resolve_base(parsed.base, parsed.data_dir)
    locate_base(base)  # Fails before the device is waited for.
    model, engine = options.model(parsed, base, (path for path, _ in adapters)), options.engine(parsed)
    terminal = TerminalProgress(parsed.base)
    with lock_device(parsed.device, parsed.data_dir, terminal.say), capture_warnings(terminal.note):
        studio = Studio(model, device=parsed.device, engine=engine)
        for path, scale in adapters:
            name, number = adapter_name(path), len(studio.adapters) + 1
            studio.add_adapter(f"{name}-{number}" if name in studio.adapters else name, path, scale)
        images = studio.generate(
            request.prompt, request, count=request.count, on_progress=terminal.progress("generating")
        )
    terminal.close()
    for path in save_images(images, output):
        print(path)
    return 0


COMMAND = Command("generate", generate, _add_arguments, "Generate images with a base model and any number of adapters.")
