"""Measure what each memory saving saves and costs, beside the estimate: ``python -m benchmarks.rungs``.

Every row is a process of its own, which climbs one rung further than the one before. On a CPU the bytes of all tensors
that are alive are added up while a real step is made; they need no card and know no allocator.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import models, pictures
from benchmarks.report import command, machine, rounded, versions
from sdlora.config import TrainConfig
from sdlora.jobs import memory_savings

STEPS = 3
"""Timed, after one that warms up."""


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rungs", description=__doc__)
    parser.add_argument("--model", default="pocket", help="pocket, sd15-random, or a diffusers folder")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=STEPS, help="timed in each row")
    help = "make no step: count a family's true size (sd1, sd2, sdxl) as on a card, in bf16, class pictures beside"
    parser.add_argument("--counted", action="store_true", help=help)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def configure(options: argparse.Namespace, base: str, folder: Path) -> TrainConfig:
    values = {
        "model.base": base, "data.folder": str(folder), "data.prompt": pictures.INSTANCE_PROMPT,
        "data.resolution": options.resolution, "data.buckets": False, "adapter.rank": options.rank,
        "adapter.targets": "attention", "train.steps": 10, "train.batch_size": options.batch_size,
        "train.device": "cpu", "sample.every": 0,
    }  # fmt: skip
    return TrainConfig.parse({}, "benchmark", values)


def row(config: TrainConfig, cache: Path, steps: int) -> dict[str, Any]:
    """Time and bytes of real steps, and what is counted without them."""
    from sdlora.jobs.fit_to_memory import MemoryCounter
    from sdlora.training import prepare, profiling
    from sdlora.training.distributed import Distributed
    from sdlora.training.memory_estimate import StorageCounter
    from sdlora.training.run_paths import RunPaths
    from sdlora.training.train_job import TrainJob
    from sdlora.training.trainer import TrainLoop

    job = TrainJob(**dict(config), output=RunPaths(cache / "run"), cache=cache)
    distributed = Distributed.setup(job.train, job.output)
    family = prepare.load_base(job, distributed)
    train_state = profiling._prepare(job, distributed, family)
    loop = TrainLoop(job, distributed, train_state)
    loop.step(0)
    seconds = []
    for number in range(steps):
        begun = time.monotonic()
        loop.step(1 + number)
        seconds.append(time.monotonic() - begun)
    counted, kept, backward = StorageCounter(), [], distributed.backward
    distributed.backward = lambda loss: (kept.append(counted.now), backward(loss))[1]  # type: ignore[method-assign]
    with counted:
        for tensor in _there(family, train_state.trained.optimizer):
            counted.see(tensor)
        before = counted.now
        loop.step(1 + steps)
    fake = MemoryCounter(config, distributed.device).footprint(config)
    return {
        "weights_bytes": before, "forward_keeps_bytes": max(kept) - before, "alive_bytes": counted.most,
        "counted_bytes": fake.step, "seconds": rounded(median(seconds)), "seconds_all": [*map(rounded, seconds)],
    }  # fmt: skip


def counted_rows(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The ladder of a card, counted."""
    import torch

    from sdlora.data.images import ImageSize
    from sdlora.families.single_file import config_folder
    from sdlora.jobs.fit_to_memory import _job
    from sdlora.training.memory_estimate import estimate_memory

    start = configure(options, str(config_folder(options.model)), folder)
    prior = start.prior.model_copy(update={"weight": 1.0, "class_prompt": pictures.CLASS_PROMPT})
    adapter = start.adapter.model_copy(update={"text_encoder": False})
    start = start.model_copy(update={"prior": prior, "adapter": adapter})
    size, rows = ImageSize(options.resolution, options.resolution), []
    for name, config in climb(start, on_card=True):
        found = estimate_memory(_job(config), size, torch.bfloat16)
        rows.append({"rung": name, **{f"{part}_bytes": number for part, number in vars(found).items()}})
        print(rows[-1], file=sys.stderr)
    return rows


def _there(family: Any, optimizer: Any) -> list[Any]:
    """The base's weights and the adapter's, and the optimizer's state."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    parts = [*family.models.values(), family.vae]
    own = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return own + [leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor)]


def climb(config: TrainConfig, on_card: bool = False) -> list[tuple[str, TrainConfig]]:
    """The config, and each rung above it, with the words for it."""
    found = [("as it is", config)]
    while changes := memory_savings.next_saving(config, on_card):
        config = memory_savings.with_settings(config, changes)
        found.append((memory_savings.describe_changes(changes), config))
    return found


def measure(options: argparse.Namespace, words: list[str], work: Path) -> dict[str, Any]:
    folder, _ = pictures.noise(work / "pictures", options.resolution, 1)
    rows = counted_rows(options, folder) if options.counted else []
    for name, config in [] if options.counted else climb(configure(options, models.find(options.model, work), folder)):
        config.save(work / "row.toml")
        line = [sys.executable, "-m", "benchmarks.rungs", "--row", str(work), "--steps", str(options.steps)]
        found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        rows.append({"rung": name, **found})
        print(rows[-1], file=sys.stderr)
    return {
        "benchmark": "rungs", "model": Path(options.model).name, "rows": rows,
        "config": {"resolution": options.resolution, "batch_size": options.batch_size, "rank": options.rank,
                   "targets": "attention", "precision": "bf16" if options.counted else "fp32",
                   "device": "none: counted as on a card" if options.counted else "cpu", "steps": options.steps},
        "command": command("benchmarks.rungs", words), "machine": machine(), "versions": versions(),
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """For people."""
    if "step_bytes" in found["rows"][0]:
        lines = [", ".join(f"{name} {value}" for name, value in row.items()) for row in found["rows"]]
        return "\n".join([f"{found['model']}: {found['config']}", *lines])
    names = ("s a step", "alive MB", "counted MB", "of it weights", "kept")
    head = f"{'each with those above':26}" + "".join(map(str.rjust, names, (10, 10, 12, 15, 8)))
    rows = [
        f"{row['rung']:26}{row['seconds']:>10}" + "".join(
            f"{row[name] / 1e6:>{width}.0f}"
            for name, width in (
                ("alive_bytes", 10), ("counted_bytes", 12), ("weights_bytes", 15), ("forward_keeps_bytes", 8)
            )
        )
        for row in found["rows"]
    ]  # fmt: skip
    return "\n".join([f"{found['model']}: {found['config']}", head, *rows])


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    if options.row:
        with redirect_stdout(sys.stderr):
            found = row(TrainConfig.load(Path(options.row) / "row.toml"), Path(options.row) / "cache", options.steps)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as work, redirect_stdout(sys.stderr):
        found = measure(options, words, Path(work))
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
