"""The command that judges a run's checkpoints: evaluate."""

import argparse
import json
from typing import TYPE_CHECKING

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from sdlora.api.evaluation import Evaluation

HELP = "Compare a run's checkpoints at several scales, and propose one with reasons."


def _arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.evaluation import EvaluationSettings

    parser.add_argument("name", metavar="RUN", help="the run's name, or its folder")
    options.add_settings(parser, EvaluationSettings)
    help = "make what is proposed the run's adapter, with the scale as preferred weight"
    parser.add_argument("--use", action="store_true", help=help)
    parser.add_argument("--show-prompts", action="store_true", help="only print the prompts that would be used")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def evaluate(parsed: argparse.Namespace) -> int:
    """Evaluate a run, and print what was found."""
    from sdlora.api.evaluation import EvaluationSettings, evaluate_run, evaluation_prompts, use_proposal
    from sdlora.api.training import find_run

    run, settings = find_run(parsed.name, parsed.data_dir), options.read_settings(parsed, EvaluationSettings)
    if parsed.show_prompts:
        print("\n".join(evaluation_prompts(run, settings).all))
        return 0
    terminal = TerminalProgress(run.name)
    evaluation = evaluate_run(run, settings, terminal)
    terminal.close()
    _print(evaluation, parsed.json)
    if not parsed.json:
        from sdlora.api.evaluation import evaluation_sheet

        print(f"sheet: {evaluation_sheet(run)}")
    if parsed.use:
        print(f"adapter: {use_proposal(run)}")
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
