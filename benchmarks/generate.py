"""Measure generation with mixed adapters against the base alone: ``python -m benchmarks.generate --json``.

A UNet call is timed in every way of mixing, in turns; then how long a change of scales takes, and on models that can
draw pictures in seconds, a compare grid drawn in batches against a picture at a time.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import nn

from benchmarks import models
from benchmarks.flops import counter, matrix_rate, synchronize
from benchmarks.plot import Bar, bars
from benchmarks.report import add_options, between, columns, result, rounded, spread, tell
from sdlora.adapters import attach, lora_layer
from sdlora.adapters.fused import fuse
from sdlora.adapters.lora import Lora
from sdlora.formats.storage import DTYPES
from sdlora.generation import xyz_grid
from sdlora.generation.axes import Axis
from sdlora.generation.device import choose_device, choose_dtype
from sdlora.generation.studio import Studio

TO_REACH = {"unfused": 1.15, "fused": 1.02}
SWITCH_MS = 50.0
SWITCHES = 20
"""Changes of scales that are timed."""
GRID = 8
"""Cells of the grid: two seeds at four scales."""
TOKENS = 77


@dataclass
class Mix:
    """A UNet with adapters, and inputs for it."""

    models: Mapping[str, nn.Module]
    inputs: dict[str, Any]
    scales: dict[str, float]
    device: torch.device
    fusing: list[float] = field(default_factory=list)
    """Milliseconds that folding in took, and taking out again."""

    @torch.no_grad()
    def call(self) -> None:
        self.models["unet"](**self.inputs)

    @contextmanager
    def way(self, name: str) -> Iterator[None]:
        """The adapters as this way of mixing has them."""
        one = dict(list(self.scales.items())[:1])
        if name in ("base", "fused"):
            begun = synchronize(self.device)
            folded = fuse(self.models, self.scales if name == "fused" else {})
            took = synchronize(self.device) - begun
            with folded:
                yield
            if name == "fused":
                self.fusing.append(1e3 * took)
            return
        chosen = {"scales 0": dict.fromkeys(self.scales, 0.0), "one": one}.get(name, self.scales)
        with attach.temporary_scales(self.models, chosen), _pair_each() if name == "a pair each" else nullcontext():
            yield


WAYS = ("base", "unfused", "a pair each", "fused", "scales 0", "one")
"""``a pair each`` computes what ``unfused`` does adapter by adapter, by the plain kernel."""


def _pair_each() -> AbstractContextManager[Any]:
    return patch.object(lora_layer.LoraAdapterLayer, "_parts", lambda adapter_layer: [])


def components(model: str, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, nn.Module], int]:
    """UNet and text encoder, and the side of their pictures in pixels over that of their latents."""
    if model != models.RANDOM:
        family = Studio(models.find(model, Path()), device=str(device)).family.to(device, dtype)
        return family.models, family.latent_factor
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**models.UNET),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**models.TEXT)),
    }
    return {name: part.to(device, dtype).eval() for name, part in parts.items()}, 8


def build(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Mix:
    """The model with its adapters, whose tensors hold random numbers, and random inputs for two halves of guidance."""
    parts, factor = components(options.model, device, dtype)
    unet: Any = parts["unet"]
    draw = torch.Generator().manual_seed(0)
    for number in range(options.adapters):
        trained = Lora(rank=options.rank, targets=options.targets).attach(parts, f"adapter {number}", number)
        for parameter in trained.parameters:
            parameter.requires_grad_(False).copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    side = (options.resolution or unet.config.sample_size * factor) // factor
    latents = torch.randn(options.batch, unet.config.in_channels, side, side, generator=draw)
    text = torch.randn(options.batch, TOKENS, unet.config.cross_attention_dim, generator=draw)
    inputs = {
        "sample": latents.to(device, dtype), "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": text.to(device, dtype),
    }  # fmt: skip
    return Mix(parts, inputs, {f"adapter {n}": 0.8 / (n + 1) for n in range(options.adapters)}, device)


def in_turns(mix: Mix, turns: int, warm: int, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds a call in each way, over the base's of the same turn, with its counted operations and their floor."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    busy: dict[str, list[float]] = {way: [] for way in WAYS}
    flops, rates = {}, []
    for turn in range(turns + 1):
        for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
            with mix.way(way):
                if turn == 0:  # The first time is for counting, and for what is made at first use.
                    with counter() as counted:
                        mix.call()
                    flops[way] = counted.get_total_flops()
                    continue
                for _ in range(warm):
                    mix.call()
                begun, worked = synchronize(mix.device), time.process_time()
                mix.call()
                seconds[way].append(synchronize(mix.device) - begun)
                busy[way].append(time.process_time() - worked)
        rates.append(matrix_rate(mix.device, dtype))
        print(*(f"{way} {taken[-1]:.3f} s" for way, taken in seconds.items() if taken), file=sys.stderr)
    rate = median(rates)
    rows = {
        way: {
            "seconds": spread(seconds[way]),
            "over_base": over(seconds, way),
            "processor_over_base": over(busy, way),
            "gflop": rounded(flops[way] / 1e9),
            "floor_seconds": rounded(flops[way] / rate),
            "floor_over_base": rounded(flops[way] / flops["base"]),
        }
        for way in WAYS
    }
    return {"ways": rows, "matrix_gflops_per_second": rounded(rate / 1e9)}


def over(taken: dict[str, list[float]], way: str) -> dict[str, Any]:
    """Ratios to the base, turn by turn."""
    return spread([one / base for one, base in zip(taken[way], taken["base"], strict=True)])


def switching(mix: Mix) -> dict[str, Any]:
    """Milliseconds for new scales of all adapters, for what their first call stacks anew, and for folding them in."""
    setting, stacking = [], []
    adapter_layers = [
        adapter_layer
        for _, adapter_layer in attach.adapter_layers_in(mix.models)
        if isinstance(adapter_layer, lora_layer.LoraAdapterLayer)
    ]
    like = torch.empty(0, device=mix.device, dtype=next(mix.models["unet"].parameters()).dtype)
    for number in range(SWITCHES):
        begun = synchronize(mix.device)
        attach.set_scales(mix.models, {name: scale + 0.01 * number for name, scale in mix.scales.items()})
        setting.append(1e3 * (synchronize(mix.device) - begun))
        begun = synchronize(mix.device)
        with torch.no_grad():
            for adapter_layer in adapter_layers:
                if parts := adapter_layer._parts():
                    adapter_layer._pair(parts, like)
        stacking.append(1e3 * (synchronize(mix.device) - begun))
    return {"set_scales_ms": spread(setting), "stack_ms": spread(stacking), "fuse_ms": spread(mix.fusing)}


def grids(base: str, turns: int, steps: int, work: Path) -> dict[str, Any]:
    """Seconds a picture of a compare grid over scales and seeds: all cells in one batch, and one by one."""
    studio = Studio(base)
    trained = Lora(rank=16).attach(studio.family.models, "a", 0)
    for parameter in trained.parameters:
        parameter.requires_grad_(False).normal_(0, 0.02)
    state = attach.read_state(studio.family.models, "a")
    attach.remove_adapter(studio.family.models, "a")
    studio.add_adapter("a", state)
    axes = (Axis("scale", ("0", "0.4", "0.7", "1")), Axis("seed", ("1", "2")))
    cells = xyz_grid.grid_cells(xyz_grid.GridCell(prompt="a red house on grass", adapter="a", steps=steps), axes)
    assert len(cells) == GRID
    seconds: dict[int, list[float]] = {1: [], GRID: []}
    for turn in range(turns + 1):
        for batch, taken in seconds.items():
            folder = xyz_grid.write_declaration(xyz_grid.ImageGrid(axes, cells, {"a": ""}), work / f"{turn}-{batch}")
            begun = synchronize(studio.runtime.device)
            xyz_grid.generate_cells(studio, folder, batch=batch)
            if turn:
                taken.append((synchronize(studio.runtime.device) - begun) / GRID)
    ratios = [one / many for one, many in zip(seconds[1], seconds[GRID], strict=True)]
    return {
        "cells": GRID, "steps": steps, "alone_seconds_a_picture": spread(seconds[1]),
        "batch_seconds_a_picture": spread(seconds[GRID]), "alone_over_batch": spread(ratios),
    }  # fmt: skip


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help=f"pocket, {models.RANDOM}, a folder or a hub id")
    parser.add_argument("--resolution", type=int, help="side of the square pictures; the model's own if left out")
    parser.add_argument("--batch", type=int, default=2, help="samples a UNet call: guidance makes two of a picture")
    parser.add_argument("--adapters", type=int, default=5, help="mixed at once (5)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", default="cross-attention", help="the layers that they adapt (cross-attention)")
    parser.add_argument("--turns", type=int, default=20, help="timed calls in each way (20)")
    parser.add_argument("--warm", type=int, default=1, help="calls before each that is timed (1)")
    parser.add_argument("--grid-turns", type=int, default=0, help="grids drawn each way; 0 for none (0)")
    parser.add_argument("--grid-steps", type=int, default=8, help="sampling steps of their pictures (8)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", *DTYPES])
    add_options(parser)
    return parser.parse_args(words)


def measure(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    device = choose_device(options.device)
    dtype = choose_dtype(options.precision, device)
    with torch.no_grad():
        mix = build(options, device, dtype)
        found = {**in_turns(mix, options.turns, options.warm, dtype), **switching(mix)}
    if options.grid_turns:
        with tempfile.TemporaryDirectory() as folder:
            base = models.find(options.model, Path(folder))
            found["grid"] = grids(base, options.grid_turns, options.grid_steps, Path(folder))
    config = {
        "model": Path(options.model).name, "latents": list(mix.inputs["sample"].shape), "adapters": options.adapters,
        "rank": options.rank, "targets": options.targets, "turns": options.turns, "warm": options.warm,
        "device": str(device), "precision": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    return result("generate", words, config, **found)


def table(found: dict[str, Any]) -> list[str]:
    rows: list[list[object]] = [["way", "s a call", "over base", "by processor time", "by operations", "to reach"]]
    for way, row in found["ways"].items():
        bound = TO_REACH.get(way, "")
        ratios = (between(row[name]) for name in ("over_base", "processor_over_base"))
        rows.append([way, between(row["seconds"]), *ratios, row["floor_over_base"], bound])
    lines = columns(rows)
    for name, what in (("set_scales_ms", "a change of scales"), ("stack_ms", "stacking anew"), ("fuse_ms", "fusing")):
        lines.append(f"{what}: {between(found[name])} ms")
    if "grid" in found:
        grid = found["grid"]
        lines.append(
            f"a grid of {grid['cells']}, s a picture: {between(grid['alone_seconds_a_picture'])} one by one, "
            f"{between(grid['batch_seconds_a_picture'])} in one batch"
        )
    return lines


def chart(found: dict[str, Any]) -> Image.Image:
    config = found["config"]
    title = f"{config['model']}, {config['adapters']} adapters of rank {config['rank']}: time of a UNet call over base"
    rows = [
        Bar(way, row["over_base"]["median"], row["over_base"]["quartiles"], TO_REACH.get(way), row["floor_over_base"])
        for way, row in found["ways"].items()
    ]
    return bars(title, "x", rows)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = arguments(words)
    with redirect_stdout(sys.stderr):
        found = measure(options, words)
    tell(options, found, table(found), chart(found))


if __name__ == "__main__":
    main()
