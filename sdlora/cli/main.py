"""The command line: thin. Every setting of a training run is a flag, derived from its declaration."""

import argparse
import io
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sdlora.errors import ConfigError, DatasetError, SdloraError
from sdlora.filesystem.paths import as_path
from sdlora.formatting import did_you_mean, format_bytes
from sdlora.warning_capture import capture_warnings

if TYPE_CHECKING:
    from sdlora.api.training import Training

Command = Callable[[argparse.Namespace], int]

PLAN = "Say what a run will take before it begins: time, memory, disk. Measures a step, and writes nothing but caches."
MODELS = "List the base models that need no download: bundled ones, and those in $SDLORA_MODELS and DATA_DIR/models."


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with the nearest real flag."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        if unknown:
            flag = unknown[0].split("=")[0]
            hint = did_you_mean(flag, self._option_string_actions)
            self.error(f"there is no flag {flag}" + (f"; {hint}" if hint else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit code that the error, if any, stands for."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows' own encodings lack most of the world's letters.
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        parser, commands = _parser(arguments)
        parsed, unknown = parser.parse_known_args(arguments)
        commands.get(parsed.command, parser).refuse_unknown(unknown)
        with capture_warnings(lambda text: print(f"note: {text}", file=sys.stderr)):
            return parsed.run(parsed)
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `sdlora runs | head`
        return 0


def _parser(arguments: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    from sdlora import __version__
    from sdlora.cli import adapters, compare, options

    parser = Parser(prog="sdlora", description="Train, mix and export LoRA adapters for Stable Diffusion.")
    parser.add_argument("--version", action="version", version=f"sdlora {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    commands: dict[str, Parser] = {}

    def command(name: str, run: Command, help: str) -> Parser:
        commands[name] = subparsers.add_parser(name, help=help, description=help, allow_abbrev=False)
        commands[name].set_defaults(run=run)
        return commands[name]

    _train_arguments(command("train", train, "Train an adapter from a preset or a TOML file."))
    _plan_arguments(command("plan", plan, PLAN))
    _resume_arguments(command("resume", resume, "Go on with a run from its newest checkpoint."))
    _data_dir(command("runs", runs, "List the runs, the newest first."))
    command("presets", presets, "List the presets.")
    _data_dir(command("models", models, MODELS))
    _generate_arguments(command("generate", generate, "Make pictures with a base model and any number of adapters."))
    compare_parser = command("compare", compare.run, "Make a labelled grid of pictures that differ along two axes.")
    compare.add_arguments(compare_parser)
    _data_dir(compare_parser)
    _export_arguments(command("export", export, "Write a run's or a file's adapter in the keys of other tools."))
    adapters.declare(lambda name, run, help: _with_data_dir(command(name, run, help)))
    _check_arguments(command("check", check, "Say what is wrong with a folder of pictures, or could be better."))
    _disk_arguments(command("disk", disk, "Say what the data folder takes on the disk, and free some of it."))
    for name in arguments[:1]:  # Only of the command that runs: declarations take a moment to import.
        if name in commands:
            options.declare(commands[name], name)
    return parser, commands


def _plan_arguments(parser: Parser) -> None:
    parser.add_argument("preset", metavar="PRESET-OR-TOML", help="as for `sdlora train`")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    _data_dir(parser)


def _resume_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="RUN", help="the run's name, or its folder")
    help = "end at this step instead, beyond those that are done: train a finished run longer"
    parser.add_argument("--train.steps", dest="steps", type=_count, metavar="N", help=help)
    _processes(parser)
    _data_dir(parser)


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="RUN-OR-FILE", help="a run's name or folder, or an adapter file")
    parser.add_argument("--format", default="kohya", choices=("kohya", "diffusers", "peft"), help="default: kohya")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="default: fp32")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors-or-FOLDER")
    _data_dir(parser)


def _check_arguments(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures with captions; kohya's folders work")
    parser.add_argument("--trigger", default="", metavar="WORD", help="the word that will call the adapter")
    parser.add_argument("--class-name", default="", metavar="WORD", help="what the subject is, such as dog")
    help = "the base that they are meant for (default: %(default)s)"
    parser.add_argument("--base", default="pocket", help=help)


def _disk_arguments(parser: Parser) -> None:
    help = "delete this row of the list for good, such as cache or states; may be given often. Finished adapters stay"
    parser.add_argument("--free", action="append", default=[], metavar="WHAT", help=help)
    help = "leave alone what is younger than that (default: %(default)s)"
    parser.add_argument("--older-than", type=float, default=0, metavar="DAYS", help=help)
    _data_dir(parser)


def _with_data_dir(parser: Parser) -> Parser:
    _data_dir(parser)
    return parser


def _data_dir(parser: argparse.ArgumentParser) -> None:
    help = "where runs and caches are kept (default: $SDLORA_DATA_DIR, or ~/sdlora)"
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help=help)


def _processes(parser: argparse.ArgumentParser) -> None:
    help = "train in this many processes on this machine (default: 1)"
    parser.add_argument("--processes", type=_count, default=1, metavar="N", help=help)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def _train_arguments(parser: Parser) -> None:
    parser.add_argument(
        "preset", metavar="PRESET-OR-TOML", help="a preset's name (see `sdlora presets`), or a TOML file"
    )
    parser.add_argument("--name", help="the run's name (default: the preset's or the file's)")
    _data_dir(parser)
    _processes(parser)
    help = "only make the run's folder and print it, for starting it with torchrun"
    parser.add_argument("--prepare", action="store_true", help=help)


def _generate_arguments(parser: Parser) -> None:
    from sdlora.inference.generation_request import GenerationRequest

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
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--output", type=Path, required=True, metavar="FILE.png", help="further pictures get -2, -3, ...")
    _data_dir(parser)


def train(parsed: argparse.Namespace) -> int:
    from sdlora.api.training import prepare_run, start_run
    from sdlora.cli import options
    from sdlora.config import TrainConfig, find_preset

    config = TrainConfig.load(parsed.preset, options.overrides(parsed))
    name = parsed.name or find_preset(parsed.preset).stem
    if parsed.prepare:
        print(prepare_run(config, name, parsed.data_dir).folder)
        return 0
    return _attend(start_run(config, name, parsed.data_dir, parsed.processes))


def plan(parsed: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from sdlora.api.models import resolve_base
    from sdlora.api.training import plan_run, plan_table
    from sdlora.cli import options
    from sdlora.cli.progress import TerminalProgress
    from sdlora.config import TrainConfig, with_base
    from sdlora.filesystem.paths import data_root

    config = TrainConfig.load(parsed.preset, options.overrides(parsed))
    config = with_base(config, resolve_base(config.model.base, parsed.data_dir))
    terminal = TerminalProgress(parsed.preset)
    folder = data_root(parsed.data_dir)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        found = plan_run(config, folder, lambda phase: terminal.say(f"{phase} ..."))
    finally:
        signal.signal(signal.SIGTERM, before)
    terminal.close()
    print(json.dumps(asdict(found)) if parsed.json else "\n".join(plan_table(found)))
    return 0


def _end(number: int, frame: Any) -> NoReturn:
    """End by a signal as by an error: what was begun in other processes ends too."""
    raise SystemExit(128 + number)


def resume(parsed: argparse.Namespace) -> int:
    from sdlora.api.training import extend_run, find_run, resume_run

    run = find_run(parsed.name, parsed.data_dir)
    if parsed.steps is not None:
        return _attend(extend_run(run, parsed.steps, parsed.processes))
    return _attend(resume_run(run, parsed.processes))


def _attend(training: "Training") -> int:
    """Show a training until it has ended. Ctrl-C and SIGTERM ask for a stop; a second one ends it at once."""
    from sdlora.api.training import run_failure
    from sdlora.cli.progress import TerminalProgress

    def pass_on(number: int, frame: Any) -> None:
        training.interrupt(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    terminal = TerminalProgress(training.run.name)
    try:
        code = training.wait(terminal)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    terminal.close()
    if code == 0:
        print(f"adapter: {training.run.adapter}")
    elif not terminal.stopped:
        error = run_failure(training, code)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return code


def runs(parsed: argparse.Namespace) -> int:
    from sdlora.api.training import list_runs

    for run in list_runs(parsed.data_dir):
        print(f"{run.name:32} {run.state:12} {run.folder}")
    return 0


def presets(parsed: argparse.Namespace) -> int:
    from sdlora.config import presets as preset_files

    for path in preset_files():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"{path.stem:16} {first.lstrip('# ')}")
    return 0


def models(parsed: argparse.Namespace) -> int:
    """Prints what can be a base, then what lies beside it and cannot, with the reason."""
    from sdlora.api.models import available_models

    for model in available_models(parsed.data_dir):
        if model.problem:
            print(f"{model.name}: {model.problem}", file=sys.stderr)
        else:
            size = f"{model.native_size} px {format_bytes(model.bytes):>9}"
            print(f"{model.name:24} {model.family:5} {size:>18}  {model.path}")
    return 0


def generate(parsed: argparse.Namespace) -> int:
    from sdlora.api.adapters import adapter_name, find_adapter
    from sdlora.api.generation import check_output, hold_device, save_images
    from sdlora.api.models import locate_base, resolve_base
    from sdlora.cli import options
    from sdlora.cli.progress import TerminalProgress
    from sdlora.generation.studio import Studio

    output = check_output(parsed.output)
    adapters = [
        (find_adapter(source, parsed.data_dir), scale) for source, scale in map(options.split_scale, parsed.adapter)
    ]
    base = resolve_base(parsed.base, parsed.data_dir)
    locate_base(base)  # What cannot be had is told before anything is waited for.
    model, engine = options.model(parsed, base, (path for path, _ in adapters)), options.engine(parsed)
    terminal = TerminalProgress(parsed.base)
    with hold_device(parsed.device, parsed.data_dir, terminal.say), capture_warnings(terminal.note):
        studio = Studio(model, device=parsed.device, engine=engine)
        for path, scale in adapters:
            name, taken = adapter_name(path), len(studio.adapters) + 1
            studio.add_adapter(f"{name}-{taken}" if name in studio.adapters else name, path, scale)
        pictures = studio.generate(
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
            on_progress=terminal.progress("drawing"),
        )
    terminal.close()
    for path in save_images(pictures, output):
        print(path)
    return 0


def export(parsed: argparse.Namespace) -> int:
    from sdlora.api.adapters import export_adapter

    proof = export_adapter(parsed.source, parsed.output, parsed.format, parsed.dtype, parsed.data_dir)
    print(f"{parsed.output}: {proof}")
    return 0


def disk(parsed: argparse.Namespace) -> int:
    from sdlora.api.storage import disk_usage, free_space, table
    from sdlora.filesystem.paths import default_data_dir

    folder = as_path(parsed.data_dir or default_data_dir())
    if parsed.free:
        print(f"freed {format_bytes(free_space(folder, parsed.free, parsed.older_than))}")
    print("\n".join([f"{folder}", *table(disk_usage(folder, parsed.older_than))]))
    return 0


def check(parsed: argparse.Namespace) -> int:
    """Prints the findings; exit code 3 where something must be mended first."""
    from sdlora.api.models import native_size
    from sdlora.cli.progress import TerminalProgress
    from sdlora.data import doctor
    from sdlora.data.settings import Data

    data = Data(folder=parsed.folder, trigger=parsed.trigger, class_name=parsed.class_name)
    terminal = TerminalProgress(str(parsed.folder))
    findings = doctor.check_dataset(data, native_size(parsed.base), terminal.progress("looking at pictures"))
    terminal.close()
    for finding in findings:
        print(f"{finding.severity:6}{finding.text}")
    if not findings:
        print("Nothing to mend: these pictures can be trained on.")
    return DatasetError.exit_code if any(finding.severity == "must" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
