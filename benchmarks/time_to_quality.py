"""Time until an adapter is as good as the loop of diffusers' documentation makes it.

The reference (``reference.py``) trains at three learning rates; the best of them is the one whose finished adapter
scores highest on the held-out pictures of ``held_out.py``, and that score is the goal. Adapters kept along the way say
after how many steps each side reaches it and stays there: in its first steps a side may draw blotches that a likeness
takes for the style's. Seconds are steps times a step's time, both sides' measured in turns in one process, and what
each does once before its first step. Drawing and judging count for neither; nor do the class pictures, which both are
given.

What is there already in the working folder is not measured again, so that a stopped measurement goes on.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from benchmarks.curves import curves
from benchmarks.held_out import CFG, EVALUATIONS, Evaluation
from benchmarks.reference import OUR_TARGETS, ReferenceLoop
from benchmarks.report import columns, command, machine, quartiles, rounded, versions
from benchmarks.train_step import Clock
from sdlora.config import TrainConfig
from sdlora.data.captions import without_trigger
from sdlora.evaluation.fidelity import Clip
from sdlora.events import Event, RunStarted, StepDone
from sdlora.families.base_models import locate_base
from sdlora.filesystem.writing import write_atomic
from sdlora.formats import write_adapter
from sdlora.generation.studio import Studio
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from sdlora.training.trainer import train

RATES = {"style": (3e-5, 1e-4, 3e-4), "subject": (1e-3, 3e-3, 1e-2)}
"""The reference's: at its constant rate the style is unlearnt again the sooner the higher the rate is. The best
of three may be at the edge; then another beyond it could be better. For SD 1.5 the documentation says 1e-4."""
STEPS = {"style": 500, "subject": 400}
"""Steps of the reference, and of ours with its settings: the presets' former number, since reduced."""
EVERY = {"reference": 50, "ours": 10, "equal": 25}
"""Steps between two adapters that are judged."""
MEASURE = {"style": "clip_i", "subject": "likeness_with_trigger"}
NAMES = {"reference": "documentation's loop", "ours": "our preset", "equal": "ours, its settings"}
ASKING = {"style": {"seeds": 4, "steps": 12}, "subject": {"seeds": 2, "steps": 12}}
ENOUGH = {"style": 200, "subject": 300}
"""Steps after which ours is stopped: by then it is long there, or it is no use."""
CLASS_PICTURES, CLASS_STEPS = 60, 25
WARM_UP, BLOCK, TURNS = 3, 3, 15


class Trial:
    """One of the presets, and everything kept of it in ``work``."""

    def __init__(self, name: str, work: Path, seed: int):
        self.name, self.work, self.seed = name, work / name, seed
        self.work.mkdir(parents=True, exist_ok=True)
        self.base = locate_base("pocket").location
        self._evaluations: Evaluation | None = None

    @property
    def evaluation(self) -> Evaluation:
        if self._evaluations is None:
            self._evaluations = EVALUATIONS[self.name](Clip(), Studio("pocket"), **ASKING[self.name])
        return self._evaluations

    def config(self, side: str, rate: float = 0.0) -> TrainConfig:
        """Settings of a side: ``ours``; those that the documentation's loop has too (``equal``); its own."""
        given: dict[str, Any] = {"sample.every": 0, "checkpoint.every": EVERY[side], "train.seed": self.seed}
        given |= {"train.device": "cpu", "data.resolution": 128, "data.buckets": False}
        if self.name == "subject":
            given |= {"prior.folder": str(self.class_pictures()), "prior.count": CLASS_PICTURES}
        if side != "ours":
            given |= {
                "train.steps": STEPS[self.name], "adapter.targets": OUR_TARGETS, "schedule.name": "constant",
                "train.learning_rate": rate, "train.text_encoder_learning_rate": rate, "data.flip": False,
                "optimizer.name": "adamw",
            }  # fmt: skip
        return TrainConfig.load(f"pocket-{self.name}", given)

    def class_pictures(self) -> Path:
        """A folder of class pictures with their captions, drawn by the base as the preset does."""
        folder = self.work / "class"
        config = TrainConfig.load("pocket-subject")
        captions = sorted({file.read_text(encoding="utf-8").strip() for file in config.data.folder.glob("*.txt")})
        prompts = [without_trigger(caption, config.data.trigger) for caption in captions]
        folder.mkdir(exist_ok=True)
        todo = [index for index in range(CLASS_PICTURES) if not (folder / f"{index:02}.txt").exists()]
        studio = Studio("pocket") if todo else None
        for index in todo:
            prompt = prompts[index % len(prompts)]
            [picture] = studio.generate(prompt, seed=index, steps=CLASS_STEPS, cfg=CFG, sampler="DDIM")  # type: ignore[union-attr]
            picture.save(folder / f"{index:02}.png")
            (folder / f"{index:02}.txt").write_text(prompt, encoding="utf-8")
        return folder

    def kept(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the result of ``measure``, from its file if there is one."""
        path = self.work / f"{name}.json"
        if not path.exists():
            write_atomic(path, json.dumps(measure()))
        return json.loads(path.read_text(encoding="utf-8"))

    def adapters(self, side: str, rate: float = 0.0) -> dict[int, Path]:
        """Adapter files by the step after which they were taken."""
        folder = self.work / f"{side}-{rate:g}"
        self.kept(f"{side}-{rate:g}-trained", partial(self._train, side, rate, folder))
        return {int(path.stem): path for path in sorted((folder / "checkpoints").glob("*.safetensors"))}

    def _train(self, side: str, rate: float, folder: Path) -> bool:
        config, output = self.config(side, rate), RunPaths(folder)
        shutil.rmtree(folder, ignore_errors=True)
        for path in (output.samples, output.checkpoints):
            path.mkdir(parents=True)
        if side == "reference":
            torch.manual_seed(self.seed)
            loop = ReferenceLoop(config, self.base, "fp32")
            for step in range(1, STEPS[self.name] + 1):
                loop.step()
                if step % EVERY[side] == 0:
                    write_adapter(loop.adapter(), output.checkpoint(step), format="kohya")
            return True
        steps = Counted(ENOUGH[self.name] if side == "ours" else None)
        job = TrainJob(
            **dict(config), output=output, cache=self.work / "cache", on_event=steps, should_stop=steps.enough
        )
        return train(job)

    def judged(self, adapter: Path) -> dict[str, float]:
        """The figures of one adapter file."""
        name = f"{adapter.parent.parent.name}-{adapter.stem}-judged"
        return self.kept(
            name, lambda: {key: rounded(value) for key, value in self.evaluation.evaluate(adapter).items()}
        )

    def curve(self, side: str, rate: float) -> dict[int, dict[str, float]]:
        """The figures of all adapters of a side, by the step after which they were taken."""
        return {step: self.judged(path) for step, path in self.adapters(side, rate).items()}

    def step_times(self, side: str, rate: float) -> dict[str, Any]:
        """Seconds a step of ``side`` and of the reference, in turns, and what each does before its first step."""
        folder = self.work / f"turns-{side}"
        shutil.rmtree(folder, ignore_errors=True)
        config = self.config(side, rate)
        steps = {"steps": WARM_UP + BLOCK * TURNS, "epochs": None}
        config = config.model_copy(update={"train": config.train.model_copy(update=steps)})
        config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": 0})})
        output = RunPaths(folder / "run")
        output.folder.mkdir(parents=True)
        output.checkpoints.mkdir()
        turns = Turns(lambda: ReferenceLoop(self.config("reference", rate), self.base, "fp32"))
        train(TrainJob(**dict(config), output=output, cache=folder / "cache", on_event=turns))
        return turns.result(side)


class Turns:
    """The trainer's listener: clocks blocks of our steps, and after each as many of the reference's."""

    def __init__(self, build: Callable[[], ReferenceLoop]):
        self.build, self.begun = build, time.perf_counter()
        self.clocks = {"ours": Clock(BLOCK), "reference": Clock(BLOCK)}
        self.device = torch.device("cpu")

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.once = {"ours": time.perf_counter() - self.begun}
            begun = time.perf_counter()
            self.reference = self.build()
            self.once["reference"] = time.perf_counter() - begun
            for _ in range(WARM_UP):
                self.reference.step()
        elif isinstance(event, StepDone):
            done = event.step - WARM_UP
            if done < 0 or done % BLOCK:
                return
            if done:
                self.clocks["ours"].stop(self.device)
                self.clocks["reference"].start(self.device)
                for _ in range(BLOCK):
                    self.reference.step()
                self.clocks["reference"].stop(self.device)
            self.clocks["ours"].start(self.device)

    def result(self, side: str) -> dict[str, Any]:
        names = {"ours": side, "reference": "reference"}
        return {
            names[own]: {
                "once_seconds": rounded(self.once[own]),
                "step_seconds": rounded(median(clock.seconds)),
                "step_quartiles": quartiles(clock.seconds),
                "step_processor_seconds": rounded(median(clock.processor)),
            }
            for own, clock in self.clocks.items()
        }


class Counted:
    """A listener that counts steps, and says when they are enough."""

    def __init__(self, most: int | None):
        self.most, self.done = most, 0

    def __call__(self, event: Event) -> None:
        self.done += isinstance(event, StepDone)

    def enough(self) -> bool:
        return self.most is not None and self.done >= self.most


def stays_at(curve: dict[int, float], goal: float) -> int | None:
    """The first step from which on the whole curve is at the goal; None: its end is not."""
    below = [step for step in curve if curve[step] < goal]
    return min((step for step in curve if step > max(below, default=-1)), default=None)


def measure(trial: Trial) -> dict[str, Any]:
    """All of it; what is there already is read."""
    name = MEASURE[trial.name]
    rates = {rate: trial.curve("reference", rate) for rate in RATES[trial.name]}
    best = max(rates, key=lambda rate: rates[rate][STEPS[trial.name]][name])
    goal = rates[best][STEPS[trial.name]][name]
    found: dict[str, Any] = {"goal": goal, "best_rate": best}
    found["rates"] = {f"{rate:g}": curve for rate, curve in rates.items()}
    for side in ("ours", "equal", "reference"):
        times = trial.kept(f"times-{'ours' if side == 'reference' else side}", partial(_times, trial, side, best))
        rate = 0.0 if side == "ours" else best
        curve = trial.curve(side, rate)
        reached = stays_at({step: figures[name] for step, figures in curve.items()}, goal)
        seconds = (
            None if reached is None else rounded(times[side]["once_seconds"] + reached * times[side]["step_seconds"])
        )
        found[side] = {**times[side], "steps": reached, "seconds": seconds, "curve": curve}
    for side in ("ours", "equal"):
        if found[side]["seconds"] is not None:
            found[f"reference_over_{side}"] = rounded(found["reference"]["seconds"] / found[side]["seconds"])
    return found


def table(found: dict[str, Any]) -> list[str]:
    """For people: a line a side."""
    name = MEASURE[found["trial"]]
    what = f"{found['trial']}, {name.replace('_', ' ')} {found['goal']:.3f}"
    rows: list[list[object]] = [[what, "s once", "s a step", "steps to it", "seconds to it", "reference / this"]]
    for side in NAMES:
        own, ratio = found[side], found.get(f"reference_over_{side}", "")
        reached = (own["steps"], own["seconds"]) if own["steps"] else ("never", "")
        rows.append([NAMES[side], own["once_seconds"], own["step_seconds"], *reached, ratio])
    lines = columns(rows)
    for rate, curve in found["rates"].items():
        steps = {int(step): figures[name] for step, figures in curve.items()}
        top = max(steps, key=lambda step: steps[step])
        lines.append(f"the loop at {rate}: {steps[max(steps)]:.3f} in the end, at most {steps[top]:.3f}, at step {top}")
    return lines


def plotted(found: dict[str, Any]) -> Image.Image:
    """Each side's quality over its seconds."""
    name = MEASURE[found["trial"]]
    lines = {}
    for side in ("reference", "ours", "equal"):
        own = found[side]
        points = [(int(step), figures[name]) for step, figures in own["curve"].items()]
        lines[NAMES[side]] = [(own["once_seconds"] + step * own["step_seconds"], value) for step, value in points]
    title = f"{found['trial']}: {name.replace('_', ' ')} of held-out pictures"
    return curves(title, "seconds, loading and caches included", lines, found["goal"])


def _times(trial: Trial, side: str, best: float) -> dict[str, Any]:
    return trial.step_times("ours" if side == "reference" else side, best)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__.splitlines()[0])
    parser.add_argument("trial", choices=STEPS)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps what is finished")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves into this file")
    options = parser.parse_args(words)
    found = {"benchmark": "time_to_quality", "trial": options.trial, "seed": options.seed}
    found |= measure(Trial(options.trial, options.work, options.seed))
    found |= {"machine": machine(), "versions": versions(), "command": command("benchmarks.time_to_quality", words)}
    if options.plot:
        plotted(found).save(options.plot)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
