"""Find the settings that learn fastest on the bundled model: ``python -m benchmarks.recipes``.

Each row changes the preset ``pocket-style`` or ``pocket-subject`` a little, trains a fixed budget of steps, far fewer
than the preset's, so that speed of learning shows, and is asked the held-out prompts. Every run's figures are kept as
soon as they are there: a stopped sweep goes on where it was.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.flops import counter
from benchmarks.held_out import EVALUATIONS, Evaluation
from benchmarks.report import command, machine, rounded, versions
from sdlora.config import TrainConfig
from sdlora.data.captions import without_trigger
from sdlora.errors import SdloraError
from sdlora.evaluation.fidelity import Clip
from sdlora.events import Event, RunStarted, StepDone, ignore
from sdlora.filesystem.writing import write_atomic
from sdlora.generation.studio import Studio
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from sdlora.training.trainer import train

RESULTS = Path(__file__).parent / "results" / "recipes.json"
BUDGET = {"style": 100, "subject": 200, "style in full": 500, "subject in full": 400}
"""Steps of every run: a fifth and a half of the preset's. After 100 the subject is not begun to be learnt. What wins is
tried again at the preset's own length, or at one that would make do."""
BEFORE: Mapping[str, Mapping[str, Any]] = {
    "style": {
        "train.learning_rate": 1e-3, "train.text_encoder_learning_rate": 2e-4,
        "loss.weighting": "uniform", "data.caption_dropout": 0.0, "data.preserve_empty": 0.0,
    },
    "subject": {
        "train.learning_rate": 1e-3, "train.text_encoder_learning_rate": 1e-3,
        "optimizer.name": "adamw", "schedule.name": "cosine",
    },
}  # fmt: skip
"""Settings of the presets before the sweep; the rows change them."""
ASKING = {"style": {"seeds": 4, "steps": 12}, "subject": {"seeds": 2, "steps": 12}}
SEEDS = (0, 1, 2)

Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One change to a preset."""

    trial: str
    flags: Flags = field(default_factory=dict)
    first: Flags = field(default_factory=dict)
    """Settings of a run before, from whose adapter this one goes on; none: there is no such run."""
    bare: bool = False
    """Train on copies of the pictures without their captions."""
    again: bool = False
    """Worth the seeds after the first."""

    @property
    def kind(self) -> str:
        """``style`` or ``subject``."""
        return self.trial.removesuffix(" in full")

    def settings(self) -> dict[str, Any]:
        """All that decides it, to tell whether kept figures are still its own."""
        return dataclasses.asdict(self) | {"budget": BUDGET[self.trial], "asked": ASKING[self.kind], "again": None}


def rates(unet: float, text: float | None = None, **more: Any) -> dict[str, Any]:
    """Learning rates, and what else is set; names have ``__`` for the dot."""
    own = {"train.learning_rate": unet, "train.text_encoder_learning_rate": text}
    return {**own, **{name.replace("__", "."): value for name, value in more.items()}}


FREE = {"optimizer__name": "schedulefree", "schedule__name": "constant"}

ROWS: dict[str, Row] = {
    "style: the preset": Row("style", again=True),
    "style: twice the rate": Row("style", rates(2e-3, 4e-4), again=True),
    "style: LoRA+, ratio 4": Row("style", {"adapter.lora_plus_ratio": 4}),
    "style: even timesteps": Row("style", {"loss.timesteps": "even"}, again=True),
    "style: min-SNR 5": Row("style", {"loss.min_snr_gamma": 5.0}),
    "style: P2": Row("style", {"loss.weighting": "p2"}),
    "style: debiased": Row("style", {"loss.weighting": "debiased"}),
    "style: schedule-free, constant, twice the rate": Row(
        "style", rates(2e-3, 4e-4, **FREE), again=True
    ),
    "style: prodigy": Row("style", rates(1.0, optimizer__name="prodigy")),
    "style: lion, a third of the rate": Row("style", rates(3e-4, 6e-5, optimizer__name="lion")),
    "style: up blocks and text encoder alone": Row(
        "style", {"adapter.targets": "unet.up_blocks,text_encoder"}, again=True
    ),
    "style: attention layers alone": Row("style", {"adapter.targets": "attention"}),
    "style: rank 4": Row("style", {"adapter.rank": 4}),
    "style: rank 64": Row("style", {"adapter.rank": 64}),
    "style: alpha twice the rank": Row("style", {"adapter.alpha": 32}),
    "style: one prompt for all": Row("style", {"data.prompt": "ohwx style"}, bare=True),
    "style: logit-normal timesteps": Row("style", {"loss.timesteps": "logit-normal"}),
    "style: timesteps from 200": Row("style", {"loss.min_timestep": 200}),
    "style: constant rate": Row("style", {"schedule.name": "constant"}),
    "style: 75 steps at 64 px first, then 75": Row(
        "style", {"train.steps": 75}, first={"train.steps": 75, "data.resolution": 64, "schedule.name": "constant"}
    ),
    "style: LoRA+, ratio 16 at a quarter of the rate": Row("style", rates(2.5e-4, 5e-5, adapter__lora_plus_ratio=16)),
    "style: text encoder at the UNet's rate": Row("style", rates(1e-3, 1e-3)),
    "style: 20 steps of warm-up": Row("style", {"schedule.warmup_steps": 20}),
    "style: twice the rate, 20 steps of warm-up": Row("style", rates(2e-3, 4e-4, schedule__warmup_steps=20)),
    "style: not mirrored": Row("style", {"data.flip": False}),
    "style in full: the preset": Row("style in full"),
    "style in full: 300 steps at twice the rate": Row("style in full", rates(2e-3, 4e-4, train__steps=300)),
    "style in full: 300 steps": Row("style in full", {"train.steps": 300}),
    "subject: the preset": Row("subject", again=True),
    "subject: the base's own prediction": Row("subject", {"prior.target": "base"}, again=True),
    "subject: the base's own prediction on the subject's pictures": Row(
        "subject", {"prior.target": "base", "prior.folder": "@subject", "prior.count": 6}
    ),
    "subject: twice the rate": Row("subject", rates(2e-3, 2e-3)),
    "subject: even timesteps": Row("subject", {"loss.timesteps": "even"}),
    "subject: LoRA+, ratio 4": Row("subject", {"adapter.lora_plus_ratio": 4}),
    "subject in full: the preset": Row("subject in full"),
    "subject in full: 200 steps at thrice the rate": Row("subject in full", rates(3e-3, 3e-3, train__steps=200)),
    "subject in full: 100 steps, LoRA+, ratio 16": Row(
        "subject in full", {"train.steps": 100, "adapter.lora_plus_ratio": 16}
    ),
    "subject in full: 150 steps, schedule-free, constant, six times the rate": Row(
        "subject in full", rates(6e-3, 6e-3, train__steps=150, **FREE)
    ),
    "subject in full: 100 steps, schedule-free, constant, six times the rate": Row(
        "subject in full", rates(6e-3, 6e-3, train__steps=100, **FREE)
    ),
    "subject in full: 100 steps at six times the rate": Row("subject in full", rates(6e-3, 6e-3, train__steps=100)),
    "subject in full: 100 steps, schedule-free, constant, ten times the rate, attention layers alone": Row(
        "subject in full", rates(1e-2, 1e-2, train__steps=100, adapter__targets="attention", **FREE)
    ),
    "subject in full: 100 steps, schedule-free, constant, six times the rate, even timesteps": Row(
        "subject in full", rates(6e-3, 6e-3, train__steps=100, loss__timesteps="even", **FREE)
    ),
    "subject: without prior preservation": Row("subject", {"prior.weight": 0.0}),
}  # fmt: skip


class Sweep:
    """Runs of rows, and where their figures are kept."""

    def __init__(self, kept: Path, work: Path, words: list[str]):
        self.kept, self.work, self.words = kept, work, words
        self.clip = Clip()
        self.studio = Studio("pocket")
        self._evaluations: dict[str, Evaluation] = {}

    def rows(self) -> dict[str, dict[str, Any]]:
        """Results so far, of this sweep and of others at the same time."""
        return json.loads(self.kept.read_text(encoding="utf-8"))["rows"] if self.kept.exists() else {}

    def evaluation(self, kind: str) -> Evaluation:
        """Prompts for an adapter of this kind; the base's own images are generated once."""
        if kind not in self._evaluations:
            self._evaluations[kind] = EVALUATIONS[kind](self.clip, self.studio, **ASKING[kind])
        return self._evaluations[kind]

    def has(self, name: str, seed: int) -> bool:
        """Return whether there are figures of the row's present settings."""
        found = self.rows().get(name, {})
        return found.get("settings") == json.loads(json.dumps(ROWS[name].settings())) and str(seed) in found["runs"]

    def run(self, name: str, seed: int) -> dict[str, float]:
        """Train and ask; keep the figures."""
        row = ROWS[name]
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            *_, adapter = self._train(row, seed, Path(folder))
            figures = {key: rounded(value) for key, value in self.evaluation(row.kind).evaluate(adapter).items()}
        rows = self._with(name)
        rows[name]["runs"][str(seed)] = figures
        self._keep(rows)
        return figures

    def count(self, name: str) -> float:
        """Operations of one run of the row, in TFLOP, from those of a single step; keep them."""
        counted: list[float] = []
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            for _ in self._train(ROWS[name], 0, Path(folder), counted):
                pass
        rows = self._with(name)
        rows[name]["tflop"] = rounded(sum(counted) / 1e12)
        self._keep(rows)
        return sum(counted)

    def _with(self, name: str) -> dict[str, dict[str, Any]]:
        """Results so far, with an entry for this row's present settings."""
        rows, settings = self.rows(), json.loads(json.dumps(ROWS[name].settings()))
        if rows.get(name, {}).get("settings") != settings:
            rows[name] = {"settings": settings, "runs": {}}
        return rows

    def _train(self, row: Row, seed: int, folder: Path, counted: list[float] | None = None) -> Iterator[Path]:
        """The adapters of the row's runs one after the other; with ``counted`` of one step each, and its operations
        times the steps that it stands for go there.
        """
        given = {**BEFORE[row.kind], "train.steps": BUDGET[row.trial], "train.seed": seed}
        given |= {"sample.every": 0, "checkpoint.every": 0}
        if row.bare:
            given["data.folder"] = str(copied(row.kind, folder / "bare", lambda caption: ""))
        adapter: Path | None = None
        for number, stage in enumerate([row.first, row.flags] if row.first else [row.flags]):
            flags = {**given, **stage} | ({} if adapter is None else {"adapter.init": str(adapter)})
            if flags.get("prior.folder") == "@subject":
                own = copied("subject", folder / "class", partial(without_trigger, trigger="sks"))
                flags["prior.folder"] = str(own)
            config = TrainConfig.load(f"pocket-{row.kind}", flags)
            steps = config.train.steps or 0
            if counted is not None:
                config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})})
            adapter = self._trained(config, folder / f"run{number}", counted, steps)
            yield adapter

    def _trained(self, config: TrainConfig, folder: Path, counted: list[float] | None, steps: int) -> Path:
        output = RunPaths(folder)
        for path in (output.samples, output.checkpoints):
            path.mkdir(parents=True)
        first = FirstStep()
        listener = ignore if counted is None else first
        train(TrainJob(**dict(config), output=output, cache=self.work / "cache", on_event=listener))
        if counted is not None:
            counted.append(first.flops * steps)
        return output.adapter

    def _keep(self, rows: dict[str, dict[str, Any]]) -> None:
        report = {"benchmark": "recipes", "command": command("benchmarks.recipes", self.words), "budget": BUDGET}
        report |= {"asked": ASKING, "rows": rows, "machine": machine(), "versions": versions()}
        write_atomic(self.kept, json.dumps(report, indent=1) + "\n")


class FirstStep:
    """A run's listener: counts the operations of the first step."""

    flops = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._counter = counter()
            self._counter.__enter__()
        elif isinstance(event, StepDone) and event.step == 1:
            self._counter.__exit__(None, None, None)
            self.flops = self._counter.get_total_flops()


def copied(kind: str, folder: Path, say: Callable[[str], str]) -> Path:
    """The preset's pictures in ``folder``, with what ``say`` makes of their captions; without where that is nothing."""
    shutil.copytree(TrainConfig.load(f"pocket-{kind}").data.folder, folder)
    for file in folder.glob("*.txt"):
        if caption := say(file.read_text(encoding="utf-8")):
            file.write_text(caption, encoding="utf-8")
        else:
            file.unlink()
    return folder


def due(names: list[str], most: int) -> list[tuple[str, int]]:
    """Rows and seeds in the order of their worth: the presets, whose spread all else is held against; all others once;
    again those that are worth it; all again.
    """
    spread = [(name, seed) for name in names if name.endswith("the preset") for seed in SEEDS[:most]]
    once = [(name, SEEDS[0]) for name in names]
    worth = [(name, seed) for seed in SEEDS[1:most] for name in names if ROWS[name].again]
    rest = [(name, seed) for seed in SEEDS[1:most] for name in names if not ROWS[name].again]
    return list(dict.fromkeys(spread + once + worth + rest))


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="seeds of each row")
    parser.add_argument("--work", type=Path, help="folder for caches, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    names = [name for name in ROWS if options.rows in name]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        sweep = Sweep(options.json, work, words)
        for name, seed in due(names, options.seeds):
            if not sweep.has(name, seed):
                begun = time.monotonic()
                try:
                    found = sweep.run(name, seed)
                except SdloraError as error:
                    print(f"{name}, seed {seed}: {error}", file=sys.stderr, flush=True)
                    continue
                print(f"{name}, seed {seed}: {found} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        for name in names:
            if name in sweep.rows() and "tflop" not in sweep.rows()[name]:
                sweep.count(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
