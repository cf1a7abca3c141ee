"""Our training step against the documentation's loop: ``python -m benchmarks.train_step --model pocket --json``.

Our side is ``trainer.train`` itself, whole and unchanged. This program is its listener: after each block of our steps
it holds the trainer up for as many steps of the reference, so that both meet the same machine in the same minutes.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from benchmarks import models, pictures
from benchmarks.flops import counter, matrix_rate, synchronize
from benchmarks.reference import OUR_TARGETS, ReferenceLoop
from benchmarks.report import command, machine, quartiles, rounded, versions
from sdlora.config import TrainConfig
from sdlora.events import Event, RunStarted, StepDone
from sdlora.families.base_models import BUNDLED
from sdlora.formats.storage import DTYPES
from sdlora.generation.device import choose_device
from sdlora.storage.journal import Journal
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from sdlora.training.trainer import train

TURNS = 20
"""Number of alternations between the two, given enough steps."""
WARM_UP = 2
"""Steps of each that are left out; the first is the one whose operations are counted."""


class Clock:
    """Seconds a step, a value a block: by the wall, and of processor time over all threads."""

    def __init__(self, block: int):
        self.block = block
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def start(self, device: torch.device) -> None:
        self._begun = synchronize(device), time.process_time()

    def stop(self, device: torch.device) -> None:
        wall, processor = self._begun
        self.seconds.append((synchronize(device) - wall) / self.block)
        self.processor.append((time.process_time() - processor) / self.block)


class Race:
    """The trainer's listener: clocks blocks of our steps, and gives the reference its turn after each."""

    def __init__(self, config: TrainConfig, base: str, block: int, journal: Journal):
        self.config, self.base, self.block, self.journal = config, base, block, journal
        self.clocks = {"ours": Clock(block), "reference": Clock(block)}
        self.losses: dict[str, list[float]] = {"ours": [], "reference": []}
        self.flops: dict[str, int] = {}
        self.rates: list[float] = []
        """FLOP/s of matrix products, measured at every turn."""

    def __call__(self, event: Event) -> None:
        self.journal(event)  # As in a real run.
        if isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, StepDone):
            self._stepped(event)

    def _begin(self, event: RunStarted) -> None:
        """Build the reference, warm it up, and count: its first step here, ours from here to our first StepDone."""
        self.device, self.precision, self.parameters = torch.device(event.device), event.precision, event.parameters
        self.reference = ReferenceLoop(self.config, self.base, event.precision)
        theirs = sum(parameter.numel() for parameter in self.reference.parameters)
        assert theirs == event.parameters, f"the reference trains {theirs} parameters, the trainer {event.parameters}"
        with counter() as counted:
            self._reference_step()
        self.flops["reference"] = counted.get_total_flops()
        for _ in range(WARM_UP - 1):
            self._reference_step()
        self._counter = counter()
        self._counter.__enter__()

    def _stepped(self, event: StepDone) -> None:
        self.losses["ours"].append(event.loss)
        if event.step == 1:
            self._counter.__exit__(None, None, None)
            self.flops["ours"] = self._counter.get_total_flops()
        done = event.step - WARM_UP
        if done < 0 or done % self.block:
            return
        if done:
            self.clocks["ours"].stop(self.device)
            self._reference_turn()
        self.clocks["ours"].start(self.device)

    def _reference_turn(self) -> None:
        self.clocks["reference"].start(self.device)
        for _ in range(self.block):
            self._reference_step()
        self.clocks["reference"].stop(self.device)
        self.rates.append(matrix_rate(self.device, getattr(torch, DTYPES[self.precision])))
        print(*(f"{name} {clock.seconds[-1]:.3f} s" for name, clock in self.clocks.items()), file=sys.stderr)

    def _reference_step(self) -> None:
        self.losses["reference"].append(self.reference.step())

    def result(self) -> dict[str, Any]:
        """The figures. The floor is what our counted operations take at the measured rate of matrix products."""
        ours, theirs = self.clocks["ours"].seconds, self.clocks["reference"].seconds
        rate, ratios = median(self.rates), [b / a for a, b in zip(ours, theirs, strict=True)]
        busy = (median(self.clocks[name].processor) for name in ("reference", "ours"))
        found = {
            "reference_over_ours": rounded(median(ratios)),
            "ratio_quartiles": quartiles(ratios),
            "processor_ratio": rounded(next(busy) / next(busy)),
            "flop_bound": rounded(self.flops["reference"] / self.flops["ours"]),
        }
        for name, clock in self.clocks.items():
            found |= {
                f"{name}_seconds": rounded(median(clock.seconds)),
                f"{name}_quartiles": quartiles(clock.seconds),
                f"{name}_processor_seconds": rounded(median(clock.processor)),
                f"{name}_gflop": rounded(self.flops[name] / 1e9),
                f"{name}_floor_seconds": rounded(self.flops[name] / rate),
                f"{name}_loss": rounded(fmean(self.losses[name])),
            }
        return found | {"matrix_gflops_per_second": rounded(rate / 1e9), "parameters": self.parameters}


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help=f"pocket, {models.RANDOM}, a folder or a hub id")
    parser.add_argument("--resolution", type=int, help="side of the square pictures; the model's own if left out")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="instance pictures a step, and as many class pictures"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="measured steps of each, at least 2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of a table")
    return parser.parse_args(words)


def configure(options: argparse.Namespace, base: str, work: Path) -> TrainConfig:
    """Our settings for the documentation's case: prior preservation, text encoder trained, attention layers."""
    resolution = options.resolution or native_size(base)
    count = options.batch_size * math.ceil(
        32 / options.batch_size
    )  # Full batches only, and epochs longer than a moment.
    if options.model in BUNDLED and pictures.SUBJECT.is_dir():
        subject, classes = pictures.subject_and_class(work / "pictures", base, resolution, count)
    else:
        subject, classes = pictures.noise(work / "pictures", resolution, count)
    block = block_of(options.steps)
    values = {
        "model.base": base,
        "data.folder": str(subject),
        "data.prompt": pictures.INSTANCE_PROMPT,
        "data.resolution": resolution,
        "data.buckets": False,
        "prior.weight": 1.0,
        "prior.class_prompt": pictures.CLASS_PROMPT,
        "prior.folder": str(classes),
        "prior.count": count,
        "adapter.targets": OUR_TARGETS,
        "adapter.rank": options.rank,
        "train.steps": WARM_UP + options.steps // block * block,
        "train.batch_size": options.batch_size,
        "train.device": str(choose_device(options.device)),
        "train.precision": options.precision,
        "checkpoint.every": 0,
        "sample.every": 0,
    }
    return TrainConfig.parse({}, "benchmark", values)


def block_of(steps: int) -> int:
    """Steps in a block."""
    return max(1, steps // TURNS)


def native_size(base: str) -> int:
    """The side in pixels of the pictures that the model was trained on."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel.load_config(base, subfolder="unet")
    vae = AutoencoderKL.load_config(base, subfolder="vae")
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run both, and say what was measured on what."""
    base = models.find(options.model, work)
    config = configure(options, base, work)
    output = RunPaths(work / "run")
    output.folder.mkdir()
    race = Race(config, base, block_of(options.steps), Journal(output.journal))
    train(TrainJob(**dict(config), output=output, cache=work / "cache", on_event=race))
    return {
        "benchmark": "train_step",
        "model": Path(options.model).name if Path(options.model).is_absolute() else options.model,
        **race.result(),
        "config": {
            "resolution": config.data.resolution,
            "batch_size": config.train.batch_size,
            "prior_preservation": True,
            "text_encoder_trained": True,
            "targets": config.adapter.targets,
            "rank": config.adapter.rank,
            "learning_rate": config.train.learning_rate,
            "device": config.train.device,
            "precision": race.precision,
            "steps": len(race.rates) * race.block,
            "turns": len(race.rates),
        },
        "machine": machine(),
        "versions": versions(),
    }


def table(found: dict[str, Any]) -> str:
    """For people."""
    setting = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found["config"].items())
    head = f"{'':12}{'s a step':>10}{'quartiles':>20}{'processor s':>13}{'floor s':>10}{'GFLOP':>10}{'loss':>10}"
    rows = [f"{found['model']}: {setting}", "", head]
    for name in ("reference", "ours"):
        low, high = found[f"{name}_quartiles"]
        between = f"{low} to {high}"
        seconds, busy, floor, gflop, loss = (
            found[f"{name}_{what}"] for what in ("seconds", "processor_seconds", "floor_seconds", "gflop", "loss")
        )
        rows.append(f"{name:12}{seconds:>10}{between:>20}{busy:>13}{floor:>10}{gflop:>10}{loss:>10}")
    low, high = found["ratio_quartiles"]
    rows += [
        "",
        f"reference / ours: {found['reference_over_ours']} ({low} to {high}); by processor time: "
        f"{found['processor_ratio']}; by operations counted: {found['flop_bound']}",
        f"the floor is that of matrix products, measured at {found['matrix_gflops_per_second']} GFLOP/s",
        f"trained parameters, both: {found['parameters']}",
        f"{found['machine']['processor']}, {found['machine']['cores']} cores",
    ]
    return "\n".join(rows)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    with tempfile.TemporaryDirectory() as work, redirect_stdout(sys.stderr):
        found = measure(options, Path(work)) | {"command": command("benchmarks.train_step", words)}
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
