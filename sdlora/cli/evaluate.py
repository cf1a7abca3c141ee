"""The command that judges a run's checkpoints, or adapter files: evaluate."""

import argparse
import json
from typing import TYPE_CHECKING

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress
from sdlora.errors import ConfigError

if TYPE_CHECKING:
    from sdlora.api.evaluation import Evaluation, EvaluationSettings
    from sdlora.api.training import Run

HELP = "Compare a run's checkpoints, or adapter files, at several scales, and propose one with reasons."


def _arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.evaluation import EvaluationSettings
    from sdlora.api.file_evaluation import FileSettings

    help = "a run, by its name or folder; or adapter files, which are compared as its checkpoints are"
    parser.add_argument("sources", metavar="RUN-OR-FILE", nargs="+", help=help)
    options.add_settings(parser, EvaluationSettings)
    options.add_settings(parser, FileSettings)
    help = "make what is proposed the run's adapter, with the scale as preferred weight"
    parser.add_argument("--use", action="store_true", help=help)
    parser.add_argument("--show-prompts", action="store_true", help="only print the prompts that would be used")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def evaluate(parsed: argparse.Namespace) -> int:
    """Evaluate a run or adapter files, and print what was found."""
    from sdlora.api.evaluation import EvaluationSettings

    run, settings = _find_run(parsed), options.read_settings(parsed, EvaluationSettings)
    if run is None:
        return _evaluate_files(parsed, settings)
    return _evaluate_run(parsed, run, settings)


def _find_run(parsed: argparse.Namespace) -> "Run | None":
    """Return the run that is named; None for adapter files. Raises ConfigError for what is neither."""
    from sdlora.api.adapters import find_adapter
    from sdlora.api.training import find_run

    first, *others = parsed.sources
    if others or first.endswith(".safetensors"):
        return None
    try:
        return find_run(first, parsed.data_dir)
    except ConfigError:
        find_adapter(first, parsed.data_dir)  # RUN-STEP, or an imported adapter.
        return None


def _evaluate_run(parsed: argparse.Namespace, run: "Run", settings: "EvaluationSettings") -> int:
    from sdlora.api.evaluation import evaluate_run, evaluation_prompts, evaluation_sheet, use_proposal
    from sdlora.api.file_evaluation import FileSettings

    given = options.read_settings(parsed, FileSettings).model_dump()
    if named := next((name for name, value in given.items() if value), None):
        raise ConfigError(f"--{named.replace('_', '-')}: is for adapter files; {run.name} is a run, which has its own")
    if parsed.show_prompts:
        print("\n".join(evaluation_prompts(run, settings).all))
        return 0
    terminal = TerminalProgress(run.name)
    evaluation = evaluate_run(run, settings, terminal)
    terminal.close()
    _print(evaluation, parsed.json)
    if not parsed.json:
        print(f"sheet: {evaluation_sheet(run)}")
    if parsed.use:
        print(f"adapter: {use_proposal(run)}")
    return 0


def _evaluate_files(parsed: argparse.Namespace, settings: "EvaluationSettings") -> int:
    from sdlora.api.file_evaluation import FileSettings, describe_files, evaluate_files, file_prompts

    if parsed.use:
        raise ConfigError("--use: makes a checkpoint a run's adapter; a file is used as it is, at the proposed scale")
    files = describe_files(parsed.sources, options.read_settings(parsed, FileSettings), parsed.data_dir)
    if parsed.show_prompts:
        print("\n".join(file_prompts(files, settings).all))
        return 0
    terminal = TerminalProgress(files.files[0][0])
    if not files.trigger:
        terminal.note("no trigger in the metadata: spill is not measured; give --trigger")
    evaluation, sheet = evaluate_files(files, settings, parsed.data_dir, terminal)
    terminal.close()
    _print(evaluation, parsed.json)
    if not parsed.json:
        print("\n".join(f"step {step}: {path}" for _, step, path in files.files))
        print(f"sheet: {sheet}")
    return 0


def _print(evaluation: "Evaluation", as_json: bool) -> None:
    from dataclasses import asdict

    from sdlora.api.evaluation import MEASURES, evaluation_table

    if as_json:
        print(json.dumps(asdict(evaluation), ensure_ascii=False))
        return
    taken = [name for name in MEASURES if any(name in each.figures for each in evaluation.candidates)]
    print("\n".join(evaluation_table(evaluation)))
    print("\nEach: share (value | the base's value). * we would take this, + no other is better in everything.")
    print(
        "\n".join(
            f"  {MEASURES[name].title}: {MEASURES[name].meaning}; {MEASURES[name].better} is better" for name in taken
        )
    )
    print()
    print("\n".join(evaluation.proposal.reasons))
    print("\n".join(f"{alarm.text} {alarm.remedy}" for alarm in evaluation.proposal.alarms))


COMMAND = Command("evaluate", evaluate, _arguments, HELP)
