"""The commands that make adapters out of adapters and models: merge, resize, extract, bake, convert, inspect."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.errors import ConfigError
from sdlora.filesystem.paths import as_path
from sdlora.filesystem.writing import require_free_space

if TYPE_CHECKING:
    from sdlora.adapters.state import AdapterState
    from sdlora.editing.low_rank import Cut

Declare = Callable[[str, Callable[[argparse.Namespace], int], str], Any]
"""Adds a command of a name, what it runs and its help; returns its parser."""
FORMATS, DTYPES = ("kohya", "diffusers", "peft"), ("fp32", "fp16", "bf16")
BASE = "the base model: its name, a diffusers folder, a .safetensors file or a hub id"


def declare(command: Declare) -> None:
    """Declare all of them."""
    parser = command("merge", merge, "Make one adapter of several.")
    _adapters(parser)
    _cut(parser, "of the sum, layer by layer (default: all, side by side)")
    parser.add_argument("--base", default="", help=f"{BASE}; for DoRA and IA3, which change a weight by what it is")
    _output(parser)
    parser = command("resize", resize, "Give an adapter another rank; any method becomes a LoRA.")
    parser.add_argument("source", metavar="RUN-OR-FILE")
    _cut(parser, "of each layer")
    parser.add_argument("--base", default="", help=f"{BASE}; for DoRA and IA3")
    _output(parser)
    parser = command("extract", extract, "Make an adapter of the difference of two models.")
    parser.add_argument("--base", required=True, help=BASE)
    parser.add_argument("--tuned", required=True, metavar="MODEL", help="the model that the adapter leads to")
    parser.add_argument("--targets", default="linear+conv", help="which layers, as adapter.targets (default: all)")
    parser.add_argument("--no-text-encoder", action="store_true", help="leave the text encoders out")
    _cut(parser, "of each layer")
    _output(parser)
    parser = command("bake", bake, "Write a base model with adapters folded into its weights.")
    parser.add_argument("--base", default="pocket", help=f"{BASE} (default: pocket)")
    _adapters(parser)
    parser.add_argument("--dtype", default="fp16", choices=("fp16", "fp32"), help="default: fp16")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER-or-FILE")
    parser = command("convert", convert, "Write adapters in the keys of other tools.")
    parser.add_argument("sources", nargs="+", metavar="RUN-OR-FILE")
    _output(parser)
    parser = command("inspect", inspect, "Say what an adapter file holds.")
    parser.add_argument("file", metavar="RUN-OR-FILE")
    parser.add_argument("--base", default="", metavar="BASE", help="also say whether it fits this base model")
    parser.add_argument("--layers", action="store_true", help="list each layer's norm, rank and effective rank")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the layers' norms and singular values")


def _adapters(parser: argparse.ArgumentParser) -> None:
    help = "an adapter (a run or a file) and its scale; may be given often"
    parser.add_argument("--adapter", action="append", required=True, metavar="NAME[:SCALE]", help=help)


def _cut(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--rank", type=int, metavar="N", help=f"the rank to keep at most {what}")
    help = "the share of the squared norm to keep, such as 0.95, in as low a rank as holds it"
    parser.add_argument("--energy", type=float, metavar="SHARE", help=help)


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="kohya", choices=FORMATS, help="default: kohya")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES, help="default: fp32")
    help = "a new file, or with --format peft a new folder"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors", help=help)


def _asked(parsed: argparse.Namespace) -> "Cut | None":
    from sdlora.editing.low_rank import Cut

    return None if parsed.rank is None and parsed.energy is None else Cut(parsed.rank, parsed.energy).check()


def _needed(parsed: argparse.Namespace) -> "Cut":
    cut = _asked(parsed)
    if cut is None:
        raise ConfigError("say how much to keep: --rank 16, or --energy 0.95")
    return cut


def _read(parsed: argparse.Namespace, source: str) -> "tuple[str, AdapterState]":
    from sdlora.api.adapters import adapter_name, find_adapter
    from sdlora.formats import read_adapter

    path = find_adapter(source, parsed.data_dir)
    return adapter_name(path), read_adapter(path)


def _write(parsed: argparse.Namespace, state: "AdapterState", output: Path) -> int:
    from dataclasses import replace

    from sdlora.formats import export_adapter

    metadata = {**state.metadata, "ss_output_name": output.stem, "modelspec.title": output.stem}
    proof = export_adapter(replace(state, metadata=metadata), output, parsed.format, parsed.dtype)
    print(f"{output}: {proof}")
    return 0


def _target(output: Path, ending: str) -> Path:
    """``output``, before anything is computed. Raises ConfigError for what is there already, or has another ending."""
    output = as_path(output)
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another name, or move it away")
    if output.suffix != ending:
        remedy = f"give it the ending {ending}" if ending else "PEFT's are folders: leave the ending out"
        raise ConfigError(f"{output}: {remedy}")
    require_free_space(output.parent, 0)
    return output


def _ending(parsed: argparse.Namespace) -> str:
    return "" if parsed.format == "peft" else ".safetensors"


def merge(parsed: argparse.Namespace) -> int:
    from sdlora import editing
    from sdlora.api.models import resolve_base
    from sdlora.cli import options
    from sdlora.cli.progress import TerminalProgress

    output = _target(parsed.output, _ending(parsed))
    named = [(*_read(parsed, source), scale) for source, scale in map(options.split_scale, parsed.adapter)]
    terminal = TerminalProgress(parsed.output.stem)
    base = resolve_base(parsed.base, parsed.data_dir) if parsed.base else ""
    state = editing.merge(named, _asked(parsed), base, terminal.progress("merging layers"))
    terminal.close()
    return _write(parsed, state, output)


def resize(parsed: argparse.Namespace) -> int:
    from sdlora import editing
    from sdlora.api.models import resolve_base
    from sdlora.cli.progress import TerminalProgress

    output = _target(parsed.output, _ending(parsed))
    cut, (name, state) = _needed(parsed), _read(parsed, parsed.source)
    terminal = TerminalProgress(name)
    base = resolve_base(parsed.base, parsed.data_dir) if parsed.base else ""
    made = editing.resize(state, cut, base, terminal.progress("resizing layers"))
    terminal.close()
    ranks = sorted(layer.rank for layer in made.layers.values())
    print(f"ranks {ranks[0]} to {ranks[-1]}; {made.kept:.2%} of the energy is kept")
    return _write(parsed, made.state, output)


def extract(parsed: argparse.Namespace) -> int:
    from sdlora import editing
    from sdlora.api.models import resolve_base
    from sdlora.cli.progress import TerminalProgress

    output = _target(parsed.output, _ending(parsed))
    cut, terminal = _needed(parsed), TerminalProgress(parsed.output.stem)
    base, tuned = (resolve_base(name, parsed.data_dir) for name in (parsed.base, parsed.tuned))
    progress = terminal.progress("comparing layers")
    state = editing.extract(base, tuned, cut, parsed.targets, not parsed.no_text_encoder, progress, terminal.say)
    terminal.close()
    return _write(parsed, state, output)


def bake(parsed: argparse.Namespace) -> int:
    from sdlora import editing
    from sdlora.api.adapters import adapter_name, find_adapter
    from sdlora.api.models import resolve_base
    from sdlora.cli import options
    from sdlora.cli.progress import TerminalProgress
    from sdlora.warning_capture import capture_warnings

    named = [
        (find_adapter(source, parsed.data_dir), scale) for source, scale in map(options.split_scale, parsed.adapter)
    ]
    adapters = [(adapter_name(path), path, scale) for path, scale in named]
    base, terminal = resolve_base(parsed.base, parsed.data_dir), TerminalProgress(parsed.base)
    model = options.model(parsed, base, (path for path, _ in named))
    with capture_warnings(terminal.note):
        made = editing.bake(model, adapters, parsed.output, parsed.dtype, terminal)
    terminal.close()
    print(made)
    return 0


def convert(parsed: argparse.Namespace) -> int:
    named = [_read(parsed, source) for source in parsed.sources]
    if len(named) == 1:
        return _write(parsed, named[0][1], _target(parsed.output, _ending(parsed)))
    folder = as_path(parsed.output)  # Into it, each under its own name; nothing is written unless all can be.
    names = [name.replace(".", "-") for name, _ in named]
    if len(set(names)) < len(names):
        raise ConfigError("two of the adapters have the same name; convert them one by one")
    targets = [_target(folder / f"{name}{_ending(parsed)}", _ending(parsed)) for name in names]
    for target, (_, state) in zip(targets, named, strict=True):
        _write(parsed, state, target)
    return 0


def inspect(parsed: argparse.Namespace) -> int:
    from sdlora.api.adapters import find_adapter
    from sdlora.api.models import resolve_base
    from sdlora.formats import inspect_adapter

    path = find_adapter(parsed.file, parsed.data_dir)
    base = resolve_base(parsed.base, parsed.data_dir) if parsed.base else ""
    picture = _target(parsed.plot, ".png") if parsed.plot else None
    print(inspect_adapter(path))
    if base:
        from sdlora.formats.adapter_check import require_fits

        print(f"{'fits:':<34} {require_fits(path, base)}")
    if parsed.layers or picture:
        _look_into(parsed, path, base, picture)
    return 0


def _look_into(parsed: argparse.Namespace, path: Path, base: str, picture: Path | None) -> None:
    from sdlora.cli.progress import TerminalProgress
    from sdlora.editing import layer_spectrum as looks
    from sdlora.formats import read_adapter

    terminal = TerminalProgress(path.stem)
    layers = looks.spectrum(read_adapter(path), base, terminal.progress("looking at layers"))
    terminal.close()
    if parsed.layers:
        print("\n".join(looks.spectrum_table(layers)))
    if picture:
        print(looks.save_spectrum_plot(layers, picture))
