"""Commands that make adapters out of adapters and models: merge, resize, extract, bake, convert, export, inspect,
overlap.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from sdlora.api.editing import EditSettings, ExportSettings

NEW_FILE = "a new file, or with --format peft a new folder"


def _adapters(parser: argparse.ArgumentParser) -> None:
    help = "an adapter (a run or a file) and its scale; may be given often"
    parser.add_argument("--adapter", action="append", required=True, metavar="NAME[:SCALE]", help=help)


def _output(parser: argparse.ArgumentParser, metavar: str = "FILE.safetensors", help: str = NEW_FILE) -> None:
    from sdlora.api.editing import ExportSettings

    options.add_settings(parser, ExportSettings)
    parser.add_argument("--output", type=Path, required=True, metavar=metavar, help=help)


def _read_edit(parsed: argparse.Namespace) -> "EditSettings":
    from sdlora.api.editing import EditSettings

    return options.read_settings(parsed, EditSettings)


def _read_export(parsed: argparse.Namespace) -> "ExportSettings":
    from sdlora.api.editing import ExportSettings

    return options.read_settings(parsed, ExportSettings)


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.editing import MergeSettings

    _adapters(parser)
    options.add_settings(parser, MergeSettings)
    _output(parser)


def merge(parsed: argparse.Namespace) -> int:
    from sdlora.api.editing import MergeSettings, merge_adapters

    terminal, adapters = TerminalProgress(parsed.output.stem), [*map(options.split_scale, parsed.adapter)]
    settings, export = options.read_settings(parsed, MergeSettings), _read_export(parsed)
    report = merge_adapters(adapters, parsed.output, settings, export, parsed.data_dir, terminal)
    terminal.close()
    print(f"{parsed.output}: {report}")
    return 0


def _overlap_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="RUN-OR-FILE", help="two or more adapters")
    parser.add_argument("--base", default="", metavar="BASE", help="the base model; for DoRA and (IA)³")
    parser.add_argument("--layers", action="store_true", help="list each layer too")


def overlap(parsed: argparse.Namespace) -> int:
    from sdlora.api.editing import compare_adapters

    terminal = TerminalProgress("overlap")
    lines = list(compare_adapters(parsed.sources, parsed.base, parsed.layers, parsed.data_dir, terminal))
    terminal.close()
    print("\n".join(lines))
    return 0


def _resize_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.editing import EditSettings

    parser.add_argument("source", metavar="RUN-OR-FILE")
    options.add_settings(parser, EditSettings)
    _output(parser)


def resize(parsed: argparse.Namespace) -> int:
    from sdlora.api.editing import resize_adapter

    terminal, settings, export = TerminalProgress(parsed.source), _read_edit(parsed), _read_export(parsed)
    kept, report = resize_adapter(parsed.source, parsed.output, settings, export, parsed.data_dir, terminal)
    terminal.close()
    print(f"{kept}\n{parsed.output}: {report}")
    return 0


def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.editing import ExtractSettings

    help = "the base model: its name, a diffusers folder, a .safetensors file or a hub id"
    parser.add_argument("--base", required=True, metavar="MODEL", help=help)
    parser.add_argument("--tuned", required=True, metavar="MODEL", help="the model that the adapter leads to")
    options.add_settings(parser, ExtractSettings)
    _output(parser)


def extract(parsed: argparse.Namespace) -> int:
    from sdlora.api.editing import ExtractSettings, extract_adapter

    terminal, settings = TerminalProgress(parsed.output.stem), options.read_settings(parsed, ExtractSettings)
    report = extract_adapter(
        parsed.base, parsed.tuned, parsed.output, settings, _read_export(parsed), parsed.data_dir, terminal
    )
    terminal.close()
    print(f"{parsed.output}: {report}")
    return 0


def _bake_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.editing import BakeSettings
    from sdlora.families.settings import Model

    options.add_settings(parser, Model, ["base"])
    _adapters(parser)
    options.add_settings(parser, BakeSettings)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER-or-FILE")
    options.add_base_settings(parser)


def bake(parsed: argparse.Namespace) -> int:
    from sdlora.api.editing import bake_adapters
    from sdlora.warning_capture import capture_warnings

    adapters = [*map(options.split_scale, parsed.adapter)]
    base, settings = options.base_with_settings(parsed, [source for source, _ in adapters])
    terminal = TerminalProgress(parsed.base)
    with capture_warnings(terminal.note):
        path = bake_adapters(base, adapters, parsed.output, parsed.dtype, settings, parsed.data_dir, terminal)
    terminal.close()
    print(path)
    return 0


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="RUN-OR-FILE")
    _output(parser)


def convert(parsed: argparse.Namespace) -> int:
    from sdlora.api.editing import convert_adapters

    for path, report in convert_adapters(parsed.sources, parsed.output, _read_export(parsed), parsed.data_dir):
        print(f"{path}: {report}")
    return 0


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN-OR-FILE", help="a run's name or folder, or an adapter file")
    _output(parser, "FILE.safetensors-or-FOLDER")


def export(parsed: argparse.Namespace) -> int:
    from sdlora.api.adapters import export_adapter

    report = export_adapter(parsed.source, parsed.output, parsed.format, parsed.dtype, parsed.data_dir)
    print(f"{parsed.output}: {report}")
    return 0


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="RUN-OR-FILE")
    parser.add_argument("--base", default="", metavar="BASE", help="also check whether it fits this base model")
    parser.add_argument("--layers", action="store_true", help="list each layer's norm, rank and effective rank")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot the layers' norms and singular values")


def inspect(parsed: argparse.Namespace) -> int:
    from sdlora.api.adapters import find_adapter
    from sdlora.api.editing import describe_adapter, inspect_layers, new_path
    from sdlora.api.models import resolve_base

    path = find_adapter(parsed.file, parsed.data_dir)
    base = resolve_base(parsed.base, parsed.data_dir) if parsed.base else ""
    plot = new_path(parsed.plot, ".png") if parsed.plot else None
    for text in describe_adapter(path, base):
        print(text)
    if parsed.layers or plot:
        terminal = TerminalProgress(path.stem)
        table = inspect_layers(path, base, plot, terminal)
        terminal.close()
        if parsed.layers:
            print("\n".join(table))
        if plot:
            print(plot)
    return 0


COMMANDS = (
    Command("export", export, _export_arguments, "Write a run's or a file's adapter in the keys of other tools."),
    Command("merge", merge, _merge_arguments, "Make one adapter of several."),
    Command("resize", resize, _resize_arguments, "Give an adapter another rank; any method becomes a LoRA."),
    Command("extract", extract, _extract_arguments, "Make an adapter of the difference of two models."),
    Command("bake", bake, _bake_arguments, "Write a base model with adapters folded into its weights."),
    Command("convert", convert, _convert_arguments, "Write adapters in the keys of other tools."),
    Command("overlap", overlap, _overlap_arguments, "Tell how much adapters change the same things, before merging."),
    Command("inspect", inspect, _inspect_arguments, "Describe what an adapter file holds."),
)
