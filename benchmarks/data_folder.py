"""A data folder of many runs and adapters: what a look at it costs. ``python -m benchmarks.data_folder --json``.

The folder is synthetic: runs with a config, a journal, previews, an adapter and, half of them, checkpoints; adapters as
other tools write them. ``look`` is ``AppState.refresh`` in this process. The endpoints answer over HTTP, as programs
call them; their processor time is the server's. ``idle`` is one open page on which nothing happens.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from gradio_client import Client
from gradio_client.exceptions import AppError

from benchmarks.page_load import Viewer, processor_seconds, served
from benchmarks.report import columns, result, rounded
from sdlora.config import TrainConfig
from sdlora.events import CheckpointSaved, Progress, RunFinished, RunStarted, StepDone
from sdlora.filesystem.safetensors_header import encode_header
from sdlora.formats.metadata import Provenance, provenance_metadata
from sdlora.storage.run_folder import Run
from sdlora.ui.app_state import AppState
from sdlora.ui.page import IDLE_SECONDS

STEPS = 97
"""Steps of a run: with its other events, a journal has about a hundred."""
LAYERS = [
    f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_attn2_to_{layer}"
    for block in range(2)
    for layer in ("q", "k", "v", "out_0")
]
RANK, WIDTH = 4, 32
TO_REACH = {"look": 0.1, "/runs": 0.3, "/adapters": 0.3, "/status": 0.3, "/generate, refused": 0.3, "idle": 0.01}
"""Seconds: of processor time for a look, of waiting for an endpoint; share of a core for an idle page."""


def fill(data_dir: Path, runs: int, adapters: int) -> None:
    """Make ``runs`` runs and ``adapters`` imported adapters in ``data_dir``."""
    for number in range(runs):
        _make_run(data_dir / "runs" / f"run-{number:05d}", number)
    folder = data_dir / "adapters"
    folder.mkdir(parents=True)
    for number in range(adapters):
        name = f"style-{number:05d}"
        (folder / f"{name}.safetensors").write_bytes(_adapter(name))
        if number % 2:
            (folder / f"{name}.check.json").write_text(json.dumps({"base": "pocket"}))


def _make_run(folder: Path, number: int) -> None:
    run = Run(folder)
    for inner in (run.samples, run.checkpoints, run.states):
        inner.mkdir(parents=True)
    run.config_file.write_text(
        f'version = 1\n[model]\nbase = "pocket"\n[data]\nfolder = "/pictures/{number}"\ntrigger = "ohwx"\n'
        f"[train]\nsteps = {STEPS}\nseed = {number}\n"
    )
    started = RunStarted(
        step=0, steps=STEPS, device="cpu", precision="fp32", base="pocket", images=8, modules=8, parameters=2048,
        share=0.01,
    )  # fmt: skip
    steps = [
        StepDone(step=step + 1, steps=STEPS, loss=0.1, learning_rate=1e-4, seconds=0.4, left=1.0)
        for step in range(STEPS)
    ]
    saved = CheckpointSaved(step=STEPS, path=f"checkpoints/{STEPS:06d}.safetensors")
    ended = RunFinished(step=STEPS, adapter="adapter.safetensors", seconds=40.0)
    events = [Progress(phase="loading the base model"), started, *steps, saved, ended]
    run.journal.write_text("".join(f"{event.to_json()}\n" for event in events))
    run.lock_file.touch()
    run.log.touch()
    for index in range(2):
        run.sample(STEPS, index).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1024))
    run.adapter.write_bytes(_adapter(folder.name))
    if number % 2:
        for step in (STEPS // 2, STEPS):
            run.checkpoint(step).write_bytes(_adapter(folder.name))


def _adapter(name: str) -> bytes:
    """An adapter file with kohya's keys and the metadata that a training writes."""
    origin = Provenance(
        name=name, family="sd15", base="pocket", triggers=["ohwx"], learning_rate=1e-4, steps=STEPS, images=8, seed=0
    )
    header: dict[str, Any] = {"__metadata__": {**provenance_metadata(origin), "ss_network_alpha": str(RANK)}}
    end = 0
    for layer in LAYERS:
        for part, shape in (("lora_down", (RANK, WIDTH)), ("lora_up", (WIDTH, RANK))):
            begin, end = end, end + 4 * shape[0] * shape[1]
            header[f"{layer}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    return encode_header(header) + bytes(end)


def timed(call: Callable[[], object], processor: Callable[[], float], warm: int) -> dict[str, float]:
    """Seconds of a first call and of the quickest of ``warm`` further ones, by the clock and by the processor."""
    times = []
    for _ in range(1 + warm):
        began, worked = time.perf_counter(), processor()
        call()
        times.append((time.perf_counter() - began, processor() - worked))
    quickest = (min(values) for values in zip(*times[1:], strict=True))
    keys = ("cold", "cold_processor", "warm", "warm_processor")
    return {key: rounded(value) for key, value in zip(keys, (*times[0], *quickest), strict=True)}


def endpoints(address: str, server: psutil.Process, warm: int) -> dict[str, dict[str, float]]:
    """Times of each endpoint; the cold ones are in this order on a page that has just started."""
    client = Client(address, verbose=False)

    def refused() -> None:
        try:
            client.predict(prompt="a house", adapters={"no such adapter": 1.0}, api_name="/generate")
        except AppError:
            return
        raise SystemExit("/generate took an adapter that is not there")

    calls: dict[str, Callable[[], object]] = {
        name: lambda name=name: client.predict(api_name=name) for name in ("/status", "/runs", "/adapters")
    }  # type: ignore[misc]
    calls["/generate, refused"] = refused
    return {name: timed(call, lambda: processor_seconds(server), warm) for name, call in calls.items()}


async def idle(address: str, server: psutil.Process, seconds: float) -> float:
    """Share of a core that the server takes for one page that is open for ``seconds``."""
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:
        viewer = Viewer(http)
        await viewer.open()
        await viewer.look(2 * IDLE_SECONDS, every=IDLE_SECONDS)
        worked, began = processor_seconds(server), time.monotonic()
        await viewer.look(seconds, every=IDLE_SECONDS)
        return (processor_seconds(server) - worked) / (time.monotonic() - began)


def table(found: dict[str, Any]) -> list[str]:
    """Lines for people."""
    rows = [["", "cold, s", "processor", "warm, s", "processor", "to reach"]]
    for name, times in found["seconds"].items():
        rows.append([name, *(f"{times[key]:.3f}" for key in times), f"{TO_REACH[name]}"])
    rows.append(["idle", "", "", "", f"{100 * found['idle_share']:.2f} %", f"{TO_REACH['idle']:.0%}"])
    return columns(rows)


def main(words: Sequence[str] | None = None) -> None:
    """Make the folder, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000, help="in the folder (default: 1000)")
    parser.add_argument("--adapters", type=int, default=2000, help="imported ones (default: 2000)")
    parser.add_argument("--warm", type=int, default=5, help="calls after the first (default: 5)")
    parser.add_argument("--idle", type=float, default=60, help="seconds of the idle page (default: 60)")
    parser.add_argument("--port", type=int, default=7991, help="the page's (default: 7991)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(words)
    config = {name: getattr(options, name) for name in ("runs", "adapters", "warm", "idle")}
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        fill(data_dir, options.runs, options.adapters)
        TrainConfig.load(next(data_dir.glob("runs/*/config.toml")))  # What is compiled at first use is no part of it.
        app = AppState(data_dir)
        seconds = {"look": timed(app.refresh, time.process_time, options.warm)}
        with served(data_dir, options.port) as (address, server):
            seconds |= endpoints(address, server, options.warm)
            share = asyncio.run(idle(address, server, options.idle)) if options.idle else 0.0
    found = result("data_folder", words or (), config, seconds=seconds, idle_share=rounded(share))
    print(json.dumps(found) if options.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()
