"""Measure a training step's memory, plain PEFT against ours: ``python -m benchmarks.memory --model pocket --json``.

*Kept* are the bytes that the UNet's forward pass keeps for the backward pass, counted by kind of layer
(``benchmarks.kept``) on tensors without contents, which have the sizes of real ones: so a full-size model is counted in
seconds, on any machine. *Peak* is that of a real step in a process of its own. Rows that ``--resume`` holds already are
not measured again.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, redirect_stdout
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from benchmarks import models
from benchmarks.kept import OTHERWISE, Alive, Kept, weightless
from benchmarks.plot import Bar, bars
from benchmarks.reference import UNET_TARGETS
from benchmarks.report import add_options, columns, result, rounded, tell
from sdlora.adapters import attach
from sdlora.config import TrainConfig
from sdlora.families.base_models import BUNDLED
from sdlora.families.lazy_modules import LazyModules
from sdlora.formats.storage import DTYPES
from sdlora.generation.device import choose_device
from sdlora.training.distributed import Distributed
from sdlora.training.prepare import TRAINED_ADAPTER, attach_adapter
from sdlora.training.run_paths import RunPaths
from sdlora.training.train_job import TrainJob

SIDES = ("peft", "ours")
TO_REACH = 0.65
"""Bytes kept, ours over plain PEFT's, without checkpointing."""
TOKENS, FACTOR = 77, 8
MIB = 2**20
LOOK = 0.002
"""Seconds between two looks at the process's memory."""


def unet_of(row: dict[str, Any]) -> Any:
    """A frozen UNet of true size in the row's precision: random weights suffice, as none changes what is held."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    torch.set_default_dtype(dtype_of(row))  # Made so, as tensors without contents cannot be changed to it.
    try:
        model = row["model"]
        folder = BUNDLED[model] if model in BUNDLED else Path(model)
        known = models.UNET if model == models.RANDOM else UNet2DConditionModel.load_config(folder, subfolder="unet")
        return UNet2DConditionModel.from_config(known).requires_grad_(False).to(row["device"])
    finally:
        torch.set_default_dtype(torch.float32)


def dtype_of(row: dict[str, Any]) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, DTYPES[row["precision"]])
    return dtype


def equip(side: str, unet: Any, row: dict[str, Any], work: Path) -> list[torch.nn.Parameter]:
    """Give ``unet`` adapters as this side does, ready to train; returns what trains."""
    if side == "peft":
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        unet.train()
        rank = row["rank"]
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=UNET_TARGETS, init_lora_weights="gaussian"))
        cast_training_params(unet)
        if row["checkpointing"]:
            unet.enable_gradient_checkpointing()
        return [parameter for parameter in unet.parameters() if parameter.requires_grad]
    config = TrainConfig.parse(
        {},
        "benchmark",
        {
            "data.folder": str(work), "adapter.targets": "attention", "adapter.rank": row["rank"],
            "adapter.text_encoder": False, "train.device": row["device"], "train.precision": row["precision"],
            "train.gradient_checkpointing": row["checkpointing"],
        },
    )  # fmt: skip
    output = RunPaths(work)
    job = TrainJob(**dict(config), output=output, cache=work)
    AcceleratorState._reset_state(reset_partial_state=True)  # The row before may have had another precision.
    family: Any = SimpleNamespace(models=LazyModules({"unet": unet}), text_encoders=())
    return attach_adapter(job, Distributed.setup(job.train, output), family, from_file=False).parameters


def step(unet: Any, row: dict[str, Any], middle: Any = nullcontext()) -> torch.Tensor:  # noqa: B008 - holds nothing
    """The loss of one batch of one, a forward pass in the training precision; ``middle`` is entered around it."""
    device, dtype = row["device"], dtype_of(row)
    side = row["resolution"] // FACTOR
    draw = None if _is_fake(unet) else torch.Generator().manual_seed(1)
    shapes = (1, unet.config.in_channels, side, side), (1, TOKENS, unet.config.cross_attention_dim)
    latents, text = (torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes)
    autocast = torch.autocast(torch.device(device).type, dtype) if dtype != torch.float32 else nullcontext()
    with middle, autocast:
        predicted = unet(latents, torch.tensor([500], device=device), text, return_dict=False)[0]
        return torch.nn.functional.mse_loss(predicted.float(), torch.zeros_like(latents, dtype=torch.float32))


def _is_fake(unet: torch.nn.Module) -> bool:
    return type(next(unet.parameters()).data).__name__ == "FakeTensor"


def count(side: str, row: dict[str, Any], work: Path) -> dict[str, Any]:
    """Bytes kept by kind of layer, on tensors without contents."""
    with weightless():
        unet = unet_of(row)
        equip(side, unet, row, work)
        kept, alive = Kept([unet]), Alive([unet])
        with alive, kept.counting():
            loss = step(unet, row)
        del loss
    return figures(kept, alive)


def figures(kept: Kept, alive: Alive) -> dict[str, Any]:
    """The counts; what is held in other ways than through autograd is one kind more."""
    kinds = {kind: size for kind, size in kept.bytes.most_common()}
    other = max(0, alive.bytes - kept.total)
    return {"kept_bytes": kept.total + other, "kinds": {**kinds, OTHERWISE: other}}


class Watch:
    """The most memory that this process, or the device, takes meanwhile, over what it takes now."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.most = 0

    def __enter__(self) -> "Watch":
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            self.most = max(self.most, self._process.memory_info().rss - self._before)

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.most = torch.cuda.max_memory_allocated() - self._before
            return
        self._over.set()
        self._thread.join()


def real(side: str, row: dict[str, Any], work: Path) -> dict[str, Any]:
    """Peak growth of a step (forward, backward, AdamW), and its seconds."""
    unet = unet_of(row)
    parameters = equip(side, unet, row, work)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))  # What libraries set up once.
    begun = time.perf_counter()
    with Watch(row["device"]) as watch:
        step(unet, row).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"peak_bytes": watch.most, "seconds": rounded(time.perf_counter() - begun)}


def gradient_difference(row: dict[str, Any], work: Path) -> float:
    """The greatest |ours - theirs| of any tensor's gradient, over that gradient's own greatest value."""
    unet = unet_of(row)
    draw = torch.Generator().manual_seed(2)
    for parameter in equip("peft", unet, row, work):
        parameter.data = (0.05 * torch.randn(parameter.shape, generator=draw)).to(parameter.device)
    step(unet, row).backward()
    theirs = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    unet.unload_lora()
    unet.disable_gradient_checkpointing()
    equip("ours", unet, row, work)
    pairs = []
    for path, layer in attach.attached_layers({"unet": unet}, TRAINED_ADAPTER):
        for neutral, peft in (("down", "lora_A"), ("up", "lora_B")):
            other = theirs[f"{path.removeprefix('unet.')}.{peft}.default.weight"]
            layer.tensors[neutral].data.copy_(other.data)
            pairs.append((layer.tensors[neutral], other))
    step(unet, row).backward()
    assert len(pairs) == len(theirs)
    return max(float((a.grad - b.grad).abs().max() / b.grad.abs().max()) for a, b in pairs)  # type: ignore[operator, union-attr]


def one(job: dict[str, Any]) -> dict[str, Any]:
    """A figure in this very process."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        work, row = Path(folder), job["row"]
        if job["what"] == "gradients":
            return {"gradient_difference": rounded(gradient_difference(row, work), 3)}
        return {"count": count, "peak": real}[job["what"]](job["side"], row, work)


def elsewhere(job: dict[str, Any]) -> dict[str, Any]:
    """The same in a process of its own, which nothing was held in before."""
    words = [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps(job)]
    printed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def measured(options: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """Both sides of one row."""
    found: dict[str, Any] = {**row}
    for side in SIDES:
        found[side] = one({"what": "count", "side": side, "row": row})
        if options.peaks:
            found[side] |= elsewhere({"what": "peak", "side": side, "row": row})
    found["kept_ours_over_peft"] = rounded(found["ours"]["kept_bytes"] / found["peft"]["kept_bytes"], 3)
    if options.gradients and row["precision"] == "fp32":
        found |= elsewhere({"what": "gradients", "row": row})
    return found


def measure(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    known: list[dict[str, Any]] = (
        json.loads(options.resume.read_text()) if options.resume and options.resume.exists() else []
    )
    device = str(choose_device(options.device))
    for resolution, precision, checkpointing in product(options.resolution, options.precision, options.checkpointing):
        row = {
            "model": options.model, "resolution": resolution, "precision": precision,
            "checkpointing": checkpointing == "on", "rank": options.rank, "device": device,
        }  # fmt: skip
        if any(row.items() <= other.items() for other in known):
            continue
        known.append(measured(options, row))
        print(row, f"kept: ours / PEFT {known[-1]['kept_ours_over_peft']}", file=sys.stderr)
        if options.resume:
            options.resume.write_text(json.dumps(known))
    config = {"model": options.model, "rank": options.rank, "targets": "attention", "batch_size": 1, "device": device}
    return result("memory", words, config, rows=known)


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help=f"pocket, {models.RANDOM}, or a diffusers folder")
    parser.add_argument("--resolution", type=int, nargs="+", default=[128], help="sides of the square pictures (128)")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=list(DTYPES))
    parser.add_argument("--checkpointing", nargs="+", default=["off", "on"], choices=["off", "on"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peaks", action="store_true", help="make real steps too, each in a process of its own")
    parser.add_argument("--gradients", action="store_true", help="compare the gradients of real steps, in fp32")
    parser.add_argument("--resume", type=Path, metavar="FILE.json", help="keep the rows here, and go on from them")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    add_options(parser)
    return parser.parse_args(words)


def table(found: dict[str, Any]) -> list[str]:
    rows: list[list[object]] = [["row", "kept PEFT MiB", "ours", "ours / PEFT", "peak PEFT MiB", "ours", "gradients"]]
    for row in found["rows"]:
        kept = [rounded(row[side]["kept_bytes"] / MIB) for side in SIDES]
        peaks = [rounded(row[side]["peak_bytes"] / MIB) if "peak_bytes" in row[side] else "" for side in SIDES]
        rows.append([label(row), *kept, row["kept_ours_over_peft"], *peaks, row.get("gradient_difference", "")])
    lines = columns(rows)
    for row in (row for row in found["rows"] if not row["checkpointing"]):
        kinds = dict.fromkeys([*row["peft"]["kinds"], *row["ours"]["kinds"]])
        sizes = [[kind, *(rounded(row[side]["kinds"].get(kind, 0) / MIB) for side in SIDES)] for kind in kinds]
        lines += ["", *columns([[f"{label(row)}, MiB", "PEFT", "ours"], *sizes])]
    return lines


def label(row: dict[str, Any]) -> str:
    return f"{row['resolution']} px, {row['precision']}{', checkpointing' if row['checkpointing'] else ''}"


def chart(found: dict[str, Any]) -> Image.Image:
    rows = []
    for row in found["rows"]:
        theirs, ours = (row[side]["kept_bytes"] / MIB for side in SIDES)
        rows.append(Bar(f"{label(row)}: PEFT", theirs))
        rows.append(Bar(f"{label(row)}: ours", ours, bound=None if row["checkpointing"] else TO_REACH * theirs))
    return bars(f"{found['config']['model']}: kept for the backward pass", "MiB", rows)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    if options.one:
        print(json.dumps(one(options.one)))
        return
    with redirect_stdout(sys.stderr):
        found = measure(options, words)
    tell(options, found, table(found), chart(found))


if __name__ == "__main__":
    main()
