"""Measure whether what is said of checkpoints is true: ``python -m benchmarks.choosing --work FOLDER``.

Runs of which it is known what is wrong with them (``benchmarks.choosing_runs``) are evaluated as ``sdlora evaluate``
does. Of a run that is too long, the *regret* is told: how much worse the proposed checkpoint and scale are than the
best candidate, as a share of that one, by a truth that shares nothing with the evaluation. A network that was trained
on true drawings of the subject reads it (``tools.subject_reader``) in images of other prompts and noise: with the
trigger (the subject at the place that was asked for), without it (another member of the class), and of other things.
Of the other runs, alarms are told; of the run with a picture of another subject, at which place its loss puts that one.

Outcomes are kept in ``--work``, from which an interrupted measurement goes on.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import AutoencoderKL

from benchmarks.choosing_runs import KINDS, SUBJECTS, finished_run, odd_one, repeated_one
from benchmarks.report import columns, result, spread
from sdlora.api.evaluation import Candidate, Evaluation, EvaluationSettings, evaluate_run
from sdlora.events import Measured
from sdlora.generation.studio import Studio
from sdlora.signals import odd_ones_first, read_pictures
from sdlora.storage.run_folder import Run
from tools.pocket import world
from tools.pocket.train import FOLDER
from tools.subject_reader import KINDS as KINDS_READ
from tools.subject_reader import SubjectReader

COMPARED = (75, 150, 225, 300, 450, 600)
"""Checkpoints of a run that is too long."""
OTHERS = (
    ("red", "mushroom"), ("yellow", "cup"), ("green", "tree"), ("blue", "car"), ("white", "boat"), ("orange", "rocket"),
)  # fmt: skip
"""Other things, one for each place."""
PER_PROMPT = 2
FIRST_SEED = 700
"""Seed of the images that the truth is read in; the evaluation has others."""


class Truth:
    """Reading of the adapters' images by a network that knows the subject of a class."""

    def __init__(self, class_name: str, work: Path, studio: Studio, model: AutoencoderKL):
        self.studio, self.class_name = studio, class_name
        self.reader = SubjectReader(SUBJECTS[class_name], class_name, work / "readers", model)

    def figures(self, steps: int, cfg: float) -> dict[str, float]:
        """Return how likely images show what was asked for, with the studio's adapters as they are now.

        With the trigger, without it, and of other things, at each of the places; ``good`` is the mean of the three.
        """
        places = world.PLACES
        others = [f"a {colour} {thing} {place}" for (colour, thing), place in zip(OTHERS, places, strict=True)]
        things = (f"a sks {self.class_name}", f"a {self.class_name}")
        asked = [*(f"{thing} {place}" for thing in things for place in places), *others]
        images = self.studio.generate(asked, seed=FIRST_SEED, count=PER_PROMPT, steps=steps, cfg=cfg, batch=len(places))
        read, wanted = self.reader.read(images), torch.arange(len(places)).repeat_interleave(PER_PROMPT)
        found = {}
        for number, name in enumerate(KINDS_READ):
            own = slice(number * len(wanted), (number + 1) * len(wanted))
            at_place = read.places[own].gather(1, wanted[:, None])[:, 0]
            found[name] = (read.kinds[own, number] * at_place).mean().item()
        found["good"] = fmean(found.values())
        return {name: round(value, 4) for name, value in found.items()}

    def of(self, run: Run, evaluation: Evaluation) -> list[dict[str, float]]:
        """Return the figures of each candidate of an evaluation."""
        found, sampled = [], evaluation.settings
        for candidate in evaluation.candidates:
            self.studio.add_adapter("asked", run.folder / candidate.checkpoint, candidate.scale)
            found.append(self.figures(sampled["steps"], sampled["cfg"]))
            self.studio.remove_adapter("asked")
        return found


def outcome(kind: str, seed: int, work: Path, truths: dict[str, Truth]) -> dict[str, Any]:
    """Train and evaluate one run, and compare what is said of it with what is known."""
    run = finished_run(kind, seed, work)
    found: dict[str, Any] = {"kind": kind, "seed": seed}
    if kind == "another subject among ten":
        return found | {"place of the other subject": _place_of_odd_one(run, odd_one(seed))}
    is_long = kind.endswith("too long") and bool(KINDS[kind].class_name)
    last_two = EvaluationSettings(checkpoints=tuple(run.checkpoint_files())[-2:], scales=(1.0,))
    settings = EvaluationSettings(checkpoints=COMPARED) if is_long else last_two
    evaluation = evaluate_run(run, settings)
    found["alarms"] = [each.name for each in evaluation.proposal.alarms]
    last = _last_as_trained(evaluation)
    found["last"] = {name: last.share(name) for name in last.figures}
    if kind == "one picture repeated":
        found["repeated, copied"] = [f"{repeated_one(seed) + 1:02d}.png", last.copied]
    if is_long:
        found |= _regret(run, evaluation, truths[KINDS[kind].class_name])
    return found


def _last_as_trained(evaluation: Evaluation) -> Candidate:
    return max(evaluation.candidates, key=lambda each: (each.scale == 1.0, each.step))


def _regret(run: Run, evaluation: Evaluation, truth: Truth) -> dict[str, Any]:
    told = truth.of(run, evaluation)
    goods = [each["good"] for each in told]
    chosen, best = evaluation.proposal.chosen, max(range(len(goods)), key=goods.__getitem__)
    assert chosen is not None
    named = {"proposed": chosen, "best": best, "last": len(goods) - 1}
    rows = {name: _at(evaluation.candidates[number]) | told[number] for name, number in named.items()}
    regret = round(1 - goods[chosen] / goods[best], 4)
    return rows | {"regret": regret, "candidates": told, "reader": truth.reader.accuracy}


def _at(candidate: Candidate) -> dict[str, float]:
    return {"step": candidate.step, "scale": candidate.scale}


def _place_of_odd_one(run: Run, number: int) -> int:
    """Return the place, from 1, of a picture in the order of how unlike the others each is learnt.

    Raises ValueError if that one is not among them.
    """
    measured = [read_pictures(event.pictures) for event in run.events() if isinstance(event, Measured)]
    names = [Path(picture.name).stem for picture, _ in odd_ones_first(max(measured, key=len))]
    return 1 + names.index(f"{number + 1:02d}")


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the outcomes of all runs that were asked for, those in the work folder as they are."""
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "outcomes.jsonl"
    found = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(one["kind"], one["seed"]) for one in found}
    asked = [(kind, seed) for seed in range(options.seeds) for kind in options.kinds]
    missing = [] if options.kept else [each for each in asked if each not in done]
    classes = {KINDS[kind].class_name for kind, _ in missing if kind.endswith("too long")} - {""}
    truths: dict[str, Truth] = {}
    if classes:
        studio, model = Studio("pocket"), AutoencoderKL.from_pretrained(FOLDER / "vae").eval()
        truths = {name: Truth(name, options.work, studio, model) for name in classes}
    for kind, seed in missing:
        found.append(outcome(kind, seed, options.work, truths))
        with open(kept, "a", encoding="utf-8") as file:
            file.write(json.dumps(found[-1]) + "\n")
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return [one for one in found if (one["kind"], one["seed"]) in asked]


def summarized(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each kind of run, over seeds."""
    rows = []
    for kind in dict.fromkeys(one["kind"] for one in outcomes):
        own = [one for one in outcomes if one["kind"] == kind]
        row: dict[str, Any] = {"kind": kind, "runs": len(own)}
        if "alarms" in own[0]:
            raised = [name for one in own for name in one["alarms"]]
            row["alarms"] = {name: raised.count(name) for name in sorted({*raised})}
        for name in ("regret", "place of the other subject"):
            if name in own[0]:
                row[name] = spread([one[name] for one in own])
        rows.append(row)
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="folder of drawings, runs and outcomes")
    parser.add_argument("--kept", action="store_true", help="tell the outcomes that are kept, and measure nothing")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of a table")
    options = parser.parse_args(words)
    outcomes = measured(options)
    rows, given = summarized(outcomes), words if words is not None else sys.argv[1:]
    found = result("choosing", given, {"seeds": options.seeds}, rows=rows, runs=outcomes)
    table = [("kind", "runs", "alarms", "regret"), *map(_told, rows)]
    print(json.dumps(found) if options.json else "\n".join(columns(table)))


def _told(row: dict[str, Any]) -> tuple[object, ...]:
    alarms = ", ".join(f"{name} {count}" for name, count in row.get("alarms", {}).items())
    return row["kind"], row["runs"], alarms, row.get("regret", {}).get("median", "")


if __name__ == "__main__":
    main()
