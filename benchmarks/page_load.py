"""Viewers who look at a training: how fast the page answers each of them, and whether its memory grows.

``python -m benchmarks.page_load --json``. The page's own program serves, its own process trains the bundled model, and
every viewer does what a browser does: load the page, then call once a second what the page's timer calls, with what the
answers before said, and what an answer asks for. A latency is from a call's first byte to the end of its answer.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from gradio_client import Client, handle_file

from benchmarks.report import command, machine, rounded, versions

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "sample_data" / "stained-glass"
EVERY = 1.0
"""Seconds between two calls of a viewer; the page's own timer takes 1.5."""
MEMORY_EVERY = 10.0
"""Seconds between two readings of the server's memory."""
PATIENCE = 180.0
"""Seconds for the server or the training to begin."""


@dataclass
class Viewer:
    """One open page."""

    http: httpx.AsyncClient
    tick: dict[str, Any] = field(default_factory=dict)
    """Dependency of the page's timer: the only one that bypasses the queue."""
    values: dict[int, Any] = field(default_factory=dict)
    """Values of the page's components, by number."""
    dependencies: list[dict[str, Any]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    async def open(self) -> None:
        """Open the page."""
        config = (await self.http.get("config")).raise_for_status().json()
        self.dependencies = config["dependencies"]
        self.values = {part["id"]: part["props"].get("value") for part in config["components"]}
        self.tick = next(
            item for item in self.dependencies
            if not item["queue"] and any(event == "tick" for _, event in _targets(item))
        )  # fmt: skip
        for dependency in [item for item in self.dependencies if any(event == "load" for _, event in _targets(item))]:
            await self._call(dependency)
        self.latencies.clear()

    async def look(self, seconds: float, offset: float = 0.0, every: float = EVERY) -> None:
        """Call the function of the page's timer ``every`` so many seconds, for ``seconds``."""
        begin = time.monotonic() + offset
        for number in range(round(seconds / every)):
            await asyncio.sleep(max(0.0, begin + number * every - time.monotonic()))
            await self._call(self.tick, follow=True)

    async def _call(self, dependency: dict[str, Any], follow: bool = False) -> None:
        """One call as a browser makes it; its answer's values are kept for the next, and what hangs on them called."""
        data = [self.values.get(number) for number in dependency["inputs"]]
        body = {"data": data, "fn_index": dependency["id"], "session_hash": self.session, "trigger_id": None}
        began = time.perf_counter()
        try:
            output = await (self._queued(body) if dependency["queue"] else self._direct(body))
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            return
        self.latencies.append(time.perf_counter() - began)
        for number, value in zip(dependency["outputs"], output["data"], strict=False):
            is_update = isinstance(value, dict) and "__type__" in value
            new = value.get("value", self.values.get(number)) if is_update else value
            changed, self.values[number] = new != self.values.get(number), new
            if changed and follow:
                for other in _triggered(self.dependencies, number, "change"):
                    await self._call(other)

    async def _direct(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = (await self.http.post("gradio_api/run/predict", json=body)).raise_for_status()
        output: dict[str, Any] = answer.json()
        return output

    async def _queued(self, body: dict[str, Any]) -> dict[str, Any]:
        (await self.http.post("gradio_api/queue/join", json=body)).raise_for_status()
        where = {"session_hash": self.session}
        async with self.http.stream("GET", "gradio_api/queue/data", params=where) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise ValueError(str(message["output"]))
                    output: dict[str, Any] = message["output"]
                    return output
        raise ValueError("the stream ended without an answer")


def _targets(dependency: dict[str, Any]) -> list[list[Any]]:
    return [list(target) for target in dependency["targets"]]


def _triggered(dependencies: Sequence[dict[str, Any]], component: int, event: str) -> list[dict[str, Any]]:
    return [item for item in dependencies if [component, event] in _targets(item)]


async def watch(server: psutil.Process, memory: list[float]) -> None:
    """Note the server's memory in MiB every ten seconds."""
    while True:
        memory.append(rounded(server.memory_info().rss / 2**20))
        await asyncio.sleep(MEMORY_EVERY)


async def look(address: str, viewers: int, seconds: float, server: psutil.Process) -> tuple[list[Viewer], list[float]]:
    """Load the page with many viewers at once, their calls spread over each second, and sample the server's memory."""
    memory: list[float] = []
    watching = asyncio.create_task(watch(server, memory))
    async with httpx.AsyncClient(
        base_url=address, timeout=30, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)
    ) as http:
        everyone = [Viewer(http) for _ in range(viewers)]
        await asyncio.gather(*(viewer.open() for viewer in everyone))
        await asyncio.gather(*(viewer.look(seconds, n * EVERY / viewers) for n, viewer in enumerate(everyone)))
    watching.cancel()
    return everyone, memory


@contextmanager
def served(data_dir: Path, port: int) -> Iterator[tuple[str, psutil.Process]]:
    """The page's address, and its server's process."""
    arguments = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--data-dir", str(data_dir)]
    environment = {name: value for name, value in os.environ.items() if name != "SDLORA_PASSWORD"}
    server = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    try:
        if found is None:
            raise SystemExit("the page did not start")
        yield f"{found.group()}/", psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def training(address: str) -> Iterator[Client]:
    """A training of the bundled model that goes on while this does."""
    client = Client(address, verbose=False)
    pictures = [handle_file(str(path)) for path in sorted(PICTURES.iterdir())]
    settings = {"train.steps": 100_000, "checkpoint.every": 1000, "sample.every": 200}
    run = client.predict(
        trigger="ohwx", pictures=pictures, prompts=["ohwx style, a red car"], settings=settings, api_name="/train"
    )
    try:
        end = time.monotonic() + PATIENCE
        while (status := client.predict(run=run, api_name="/status"))["step"] < 5:
            if time.monotonic() > end or status["state"] == "failed":
                raise SystemExit(f"the training did not begin: {status['message']}")
            time.sleep(0.5)
        yield client
    finally:
        client.predict(run=run, api_name="/stop")
        while client.predict(run=run, api_name="/status")["state"] in ("running", "stopping"):
            time.sleep(0.5)


def measured(address: str, server: psutil.Process, client: Client, viewers: int, seconds: float) -> dict[str, Any]:
    """Latencies in milliseconds, the server's memory in MiB, and how the training went on meanwhile."""
    step, worked = client.predict(api_name="/status")["step"], processor_seconds(server)
    began = time.monotonic()
    everyone, memory = asyncio.run(look(address, viewers, seconds, server))
    passed = time.monotonic() - began
    latencies = sorted(1000 * latency for viewer in everyone for latency in viewer.latencies)
    failures = [failure for viewer in everyone for failure in viewer.failures]
    return {
        "viewers": viewers,
        "calls": len(latencies) + len(failures),
        "failures": len(failures),
        "first_failures": failures[:3],
        "p50_ms": rounded(median(latencies)),
        "p95_ms": rounded(latencies[int(0.95 * (len(latencies) - 1))]),
        "p99_ms": rounded(latencies[int(0.99 * (len(latencies) - 1))]),
        "max_ms": rounded(latencies[-1]),
        "server_mib_every_10_s": memory,
        "server_processor_share": rounded((processor_seconds(server) - worked) / passed, 2),
        "steps_per_second": rounded((client.predict(api_name="/status")["step"] - step) / passed, 3),
    }


def processor_seconds(process: psutil.Process) -> float:
    """Processor time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--viewers", type=int, nargs="+", default=[25, 50], help="at once; one measurement each")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement (default: 60)")
    parser.add_argument("--port", type=int, default=7990, help="the page's (default: 7990)")
    parser.add_argument("--note", default="", help="kept in the result: what the machine did beside")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), flags.port) as (address, server),
        training(address) as client,
    ):
        asyncio.run(look(address, 5, 5, server))  # What is imported and compiled at first use is no part of it.
        rows = [measured(address, server, client, viewers, flags.seconds) for viewers in flags.viewers]
    libraries = {name: version(name) for name in ("gradio", "starlette", "uvicorn")}
    return {
        "benchmark": "page_load",
        "command": command("benchmarks.page_load", arguments),
        "config": {"every_seconds": EVERY, "seconds": flags.seconds, "model": "pocket"},
        "note": flags.note,
        "results": rows,
        "machine": machine(),
        "versions": {**versions(), **libraries},
    }


if __name__ == "__main__":
    found = main(sys.argv[1:])
    print(json.dumps(found) if "--json" in sys.argv else json.dumps(found, indent=2))
