"""A whole run of ours against the documentation's: ``python -m benchmarks.whole_run``.

From loading the model to the adapter's file, with the same steps, and as many pictures drawn before the first step,
on the way and after the last one. Each run of ours begins with empty caches. The documentation's scripts draw with
a pipeline that they load anew each time; so does this one. The two take turns.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from PIL import Image

from benchmarks import models
from benchmarks.flops import counter, matrix_rate
from benchmarks.plot import Bar, bars
from benchmarks.reference import ADAPTER, ReferenceLoop
from benchmarks.report import add_options, between, columns, result, rounded, spread, tell
from benchmarks.train_step import configure
from sdlora.adapters import attach
from sdlora.config import TrainConfig
from sdlora.storage.journal import Journal
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob
from sdlora.training.trainer import train

TO_REACH = 1.5
ROUNDS = 2
"""Pictures are drawn before the first step, after the last, and in between at every so-manieth part of the run."""
PROMPTS = ("a sks cat on grass", "a cat on sand")


def ours(config: TrainConfig, base: str, work: Path) -> None:
    """``sdlora train``, but for its process."""
    output = RunPaths(work / "run")
    output.folder.mkdir(parents=True)
    train(TrainJob(**dict(config), output=output, cache=work / "cache", on_event=Journal(output.journal)))


def reference(config: TrainConfig, base: str, work: Path) -> None:
    """The documentation's script, but for its process."""
    assert config.train.steps is not None
    loop = ReferenceLoop(config, base, "fp32")
    _validate(loop, config, base, work / "0")
    for step in range(1, config.train.steps + 1):
        loop.step()
        if step % config.sample.every == 0 or step == config.train.steps:
            _validate(loop, config, base, work / str(step))
    weights = {
        name: convert_state_dict_to_diffusers(
            get_peft_model_state_dict(part, adapter_name=attach.peft_key(ADAPTER), save_embedding_layers=False)
        )
        for name, part in (("unet", loop.unet), ("text_encoder", loop.text_encoder))
    }
    StableDiffusionPipeline.save_lora_weights(
        work / "adapter", unet_lora_layers=weights["unet"], text_encoder_lora_layers=weights["text_encoder"]
    )


@torch.no_grad()
def _validate(loop: ReferenceLoop, config: TrainConfig, base: str, folder: Path) -> None:
    sample = config.sample
    pipeline = StableDiffusionPipeline.from_pretrained(
        base, unet=loop.unet, text_encoder=loop.text_encoder, dtype=torch.float32, safety_checker=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    folder.mkdir(parents=True)
    for number, prompt in enumerate(sample.prompts):
        generator = torch.Generator().manual_seed(sample.seed)
        generated = pipeline(prompt, num_inference_steps=sample.steps, guidance_scale=sample.cfg, generator=generator)
        generated.images[0].save(folder / f"{number}.png")


RUNS: dict[str, Callable[[TrainConfig, str, Path], None]] = {"reference": reference, "ours": ours}


def measure(options: argparse.Namespace, words: list[str], work: Path) -> dict[str, Any]:
    """Both, turn after turn; the first, which warms up, is the one whose operations are counted."""
    base = models.find(options.model, work)
    config = _configure(options, base, work)
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    flops, numbers = {}, itertools.count()
    for name, run in RUNS.items():
        with counter() as counted:
            run(config, base, work / str(next(numbers)))
        flops[name] = counted.get_total_flops()
    for _ in range(options.turns):
        for name, run in RUNS.items():
            begun = time.perf_counter()
            run(config, base, work / str(next(numbers)))
            seconds[name].append(time.perf_counter() - begun)
        print(*(f"{name} {taken[-1]:.1f} s" for name, taken in seconds.items()), file=sys.stderr)
    rate = max(matrix_rate(torch.device("cpu"), torch.float32) for _ in range(5))
    rows = {
        name: {
            "seconds": spread(taken),
            "gflop": rounded(flops[name] / 1e9),
            "floor_seconds": rounded(flops[name] / rate),
        }
        for name, taken in seconds.items()
    }
    ratios = [theirs / own for theirs, own in zip(seconds["reference"], seconds["ours"], strict=True)]
    settings = {
        "model": Path(options.model).name, "steps": options.steps, "batch_size": options.batch_size,
        "rank": options.rank, "pictures": (ROUNDS + 1) * len(PROMPTS), "sampling_steps": config.sample.steps,
        "turns": options.turns,
    }  # fmt: skip
    bound = rounded(flops["reference"] / flops["ours"])
    return result("whole_run", words, settings, runs=rows, reference_over_ours=spread(ratios), flop_bound=bound)


def _configure(options: argparse.Namespace, base: str, work: Path) -> TrainConfig:
    """The settings of ``train_step``, with pictures on the way."""
    config = configure(options, base, work)
    own = {"every": max(1, options.steps // ROUNDS), "prompts": list(PROMPTS), "steps": options.sampling_steps}
    sample = config.sample.model_copy(update=own)
    return config.model_copy(
        update={"train": config.train.model_copy(update={"steps": options.steps}), "sample": sample}
    )


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_run", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help=f"pocket, {models.RANDOM}, or a folder")
    parser.add_argument("--resolution", type=int, help="side of the square pictures; the model's own if left out")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures a step, and as many class pictures (4)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of a run (100)")
    parser.add_argument("--sampling-steps", type=int, default=20, help="of each picture (20)")
    parser.add_argument("--turns", type=int, default=3, help="timed runs of each (3)")
    parser.set_defaults(device="cpu", precision="fp32")
    add_options(parser)
    return parser.parse_args(words)


def table(found: dict[str, Any]) -> list[str]:
    rows: list[list[object]] = [["a whole run", "seconds", "floor s", "GFLOP"]]
    rows += [[name, between(row["seconds"]), row["floor_seconds"], row["gflop"]] for name, row in found["runs"].items()]
    ratio = between(found["reference_over_ours"])
    last = f"reference / ours: {ratio}; by operations counted {found['flop_bound']}; to reach {TO_REACH}"
    return [*columns(rows), last]


def chart(found: dict[str, Any]) -> Image.Image:
    rows = [
        Bar(name, row["seconds"]["median"], row["seconds"]["quartiles"], None, row["floor_seconds"])
        for name, row in found["runs"].items()
    ]
    return bars("Seconds of a whole run, pictures and files included", "s", rows)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    with tempfile.TemporaryDirectory() as work, redirect_stdout(sys.stderr):
        found = measure(options, words, Path(work))
    tell(options, found, table(found), chart(found))


if __name__ == "__main__":
    main()
