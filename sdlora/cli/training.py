"""Commands of runs: train, plan, class-images, resume, runs, presets."""

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from sdlora.api.training import Training

CLASS_IMAGES = "Make the class pictures of a run before it begins, and list them with their prompts."
PLAN = "Estimate a run's time, memory and disk before it begins. Measures a few steps, and writes nothing but caches."


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    help = "a preset's name (see `sdlora presets`), or a TOML file"
    parser.add_argument("preset", metavar="PRESET-OR-TOML", help=help)
    parser.add_argument("--name", help="the run's name (default: the preset's or the file's)")
    _processes(parser)
    help = "only make the run's folder and print it, for starting it with torchrun"
    parser.add_argument("--prepare", action="store_true", help=help)
    options.add_run_settings(parser)


def train(parsed: argparse.Namespace) -> int:
    from sdlora.api.training import prepare_run, start_run
    from sdlora.config import TrainConfig, find_preset

    config = TrainConfig.load(parsed.preset, options.overrides(parsed))
    name = parsed.name or find_preset(parsed.preset).stem
    if parsed.prepare:
        print(prepare_run(config, name, parsed.data_dir).folder)
        return 0
    return _follow(start_run(config, name, parsed.data_dir, parsed.processes))


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET-OR-TOML", help="as for `sdlora train`")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options.add_run_settings(parser)


def plan(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    from sdlora.api.models import resolve_base
    from sdlora.api.training import plan_run, plan_table
    from sdlora.config import TrainConfig, with_base
    from sdlora.filesystem.paths import data_root

    config = TrainConfig.load(parsed.preset, options.overrides(parsed))
    config = with_base(config, resolve_base(config.model.base, parsed.data_dir))
    terminal = TerminalProgress(parsed.preset)
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        run_plan = plan_run(config, data_root(parsed.data_dir), terminal)
    finally:
        signal.signal(signal.SIGTERM, previous)
    terminal.close()
    print(json.dumps(asdict(run_plan)) if parsed.json else "\n".join(plan_table(run_plan)))
    return 0


def _class_images_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET-OR-TOML", help="as for `sdlora train`")
    parser.add_argument("--list", action="store_true", help="only list those that are there")
    options.add_run_settings(parser)


def class_images(parsed: argparse.Namespace) -> int:
    """Make the missing class images of a run; print the path of each, or of those that are there."""
    from sdlora.api.models import resolve_base
    from sdlora.api.training import class_images_job
    from sdlora.config import TrainConfig, with_base
    from sdlora.filesystem.paths import data_root

    config = TrainConfig.load(parsed.preset, options.overrides(parsed))
    config = with_base(config, resolve_base(config.model.base, parsed.data_dir))
    terminal = TerminalProgress(parsed.preset)
    found = class_images_job(config, data_root(parsed.data_dir), not parsed.list).finish(terminal)
    terminal.close()
    for path, prompt in found["images"]:
        print(f"{path}  {prompt}")
    if found["missing"]:
        print(f"{found['missing']} of {found['count']} class pictures are not made yet", file=sys.stderr)
    return 0


def _exit(number: int, frame: Any) -> NoReturn:
    """Turn a signal into an exception, which also ends the processes that were started."""
    raise SystemExit(128 + number)


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="RUN", help="the run's name, or its folder")
    help = "end at this step instead, beyond those that are done: train a finished run longer"
    longer = parser.add_mutually_exclusive_group()
    longer.add_argument("--train.steps", dest="steps", type=_count, metavar="N", help=help)
    help = "train to the last step, a run that has stopped early too"
    longer.add_argument("--train.stop", dest="stop", choices=["never"], help=help)
    _processes(parser)


def resume(parsed: argparse.Namespace) -> int:
    from sdlora.api.training import extend_run, find_run, resume_run, resume_to_end

    run = find_run(parsed.name, parsed.data_dir)
    if parsed.steps is not None:
        return _follow(extend_run(run, parsed.steps, parsed.processes))
    resume_now = resume_to_end if parsed.stop else resume_run
    return _follow(resume_now(run, parsed.processes))


def _follow(training: "Training") -> int:
    """Show a training until it has ended. Ctrl-C and SIGTERM request a stop; a second one ends it at once."""
    from sdlora.api.training import run_failure

    def pass_on(number: int, frame: Any) -> None:
        training.interrupt(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    terminal = TerminalProgress(training.run.name)
    try:
        code = training.wait(terminal)
    finally:
        for number, handler in previous.items():
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


def _processes(parser: argparse.ArgumentParser) -> None:
    help = "train in this many processes on this machine (default: 1)"
    parser.add_argument("--processes", type=_count, default=1, metavar="N", help=help)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


COMMANDS = (
    Command("train", train, _train_arguments, "Train an adapter from a preset or a TOML file."),
    Command("plan", plan, _plan_arguments, PLAN),
    Command("class-images", class_images, _class_images_arguments, CLASS_IMAGES),
    Command("resume", resume, _resume_arguments, "Continue a run from its newest checkpoint."),
    Command("runs", runs, None, "List the runs, the newest first."),
    Command("presets", presets, None, "List the presets."),
)
