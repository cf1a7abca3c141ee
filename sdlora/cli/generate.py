"""The command ``sdlora generate``: images of a prompt."""

import argparse
from pathlib import Path

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress
from sdlora.warning_capture import capture_warnings


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.generation import GenerationRequest

    start, add = GenerationRequest(""), parser.add_argument
    add(
        "--base",
        default=start.base,
        help="pocket, a diffusers folder, a .safetensors file or a hub id (default: %(default)s)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="an adapter and its scale; may be given often",
    )
    add(
        "--prompt",
        required=True,
        metavar="TEXT",
        help="what to draw; <lora:NAME:0.8> sets an adapter's scale, (word:1.2) a weight",
    )
    add("--negative", default=start.negative, metavar="TEXT", help="what to keep out of the picture")
    add("--seed", type=int, default=start.seed, metavar="N", help="-1 draws one (default: %(default)s)")
    add("--steps", type=int, default=start.steps, metavar="N", help="sampling steps (default: %(default)s)")
    add("--cfg", type=float, default=start.cfg, metavar="F", help="guidance scale (default: %(default)s)")
    add("--width", type=int, metavar="W", help="default: the base model's own size")
    add("--height", type=int, metavar="H", help="default: the base model's own size")
    help = "how many pictures, with seeds N, N + 1, ... (default: %(default)s)"
    add("--count", type=int, default=start.count, metavar="N", help=help)
    add("--sampler", default=start.sampler, metavar="NAME", help="by its A1111 name (default: %(default)s)")
    help = "the Nth layer of text, back from the one that the base was trained with (default: %(default)s)"
    add("--clip-skip", type=int, default=start.clip_skip, metavar="N", help=help)
    add("--output", type=Path, required=True, metavar="FILE.png", help="further pictures get -2, -3, ...")
    options.add_base_settings(parser)
    options.add_engine(parser)


def generate(parsed: argparse.Namespace) -> int:
    from sdlora import Studio
    from sdlora.api.adapters import adapter_name, find_adapter
    from sdlora.api.generation import check_output, lock_device, save_images
    from sdlora.api.models import locate_base, resolve_base

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
            parsed.prompt,
            negative=parsed.negative,
            seed=parsed.seed,
            steps=parsed.steps,
            cfg=parsed.cfg,
            width=parsed.width,
            height=parsed.height,
            count=parsed.count,
            sampler=parsed.sampler,
            clip_skip=parsed.clip_skip,
            on_progress=terminal.progress("generating"),
        )
    terminal.close()
    for path in save_images(images, output):
        print(path)
    return 0


COMMAND = Command("generate", generate, _add_arguments, "Generate images with a base model and any number of adapters.")
