"""Machine, versions, command and spread of a measurement, and its output."""

import argparse
import json
import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import psutil
import torch

if TYPE_CHECKING:
    from PIL import Image

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third, four digits."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [rounded(low), rounded(high)]


def rounded(value: float, digits: int = 4) -> float:
    """``value`` to so many significant digits."""
    return float(f"{value:.{digits}g}")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles; of one value alone, that value."""
    return {"median": rounded(median(values)), "quartiles": quartiles(values if len(values) > 1 else [*values] * 2)}


def between(found: dict[str, Any]) -> str:
    """A ``spread`` for people: ``0.5 (0.4 to 0.6)``."""
    low, high = found["quartiles"]
    return f"{found['median']:.4g} ({low:.4g} to {high:.4g})"


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table for the terminal: the first column to the left, the others to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in texts]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all measurements."""
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures into this file")


def result(benchmark: str, words: Sequence[str], config: dict[str, Any], **figures: Any) -> dict[str, Any]:
    """A measurement's JSON object."""
    head = {"benchmark": benchmark, "command": command(f"benchmarks.{benchmark}", words), "config": config}
    return {**head, **figures, "machine": machine(), "versions": versions()}


def tell(options: argparse.Namespace, found: dict[str, Any], table: Sequence[str], plot: "Image.Image") -> None:
    """Print ``found`` as it was asked for, and keep its plot."""
    if options.plot:
        plot.save(options.plot)
    print(json.dumps(found) if options.json else "\n".join(table))


def machine() -> dict[str, Any]:
    """The machine by its parts, never by its name; ``load`` is how many programs wanted to run in the last minute."""
    found = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "load": rounded(psutil.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that do the work."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def command(module: str, arguments: Sequence[str]) -> str:
    """The line to repeat a measurement with; paths by their last part, as they mean nothing elsewhere."""
    shown = [Path(word).name if Path(word).is_absolute() else word for word in unplotted(arguments)]
    return shlex.join(["python", "-m", module, *shown])


def unplotted(arguments: Sequence[str]) -> list[str]:
    """``arguments`` without ``--plot FILE``, which changes no figure."""
    words = list(arguments)
    while "--plot" in words:
        place = words.index("--plot")
        del words[place : place + 2]
    return words


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
