"""What every measurement says beside its figures: machine, versions, command, spread."""

import os
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
import torch

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third, four digits."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [rounded(low), rounded(high)]


def rounded(value: float, digits: int = 4) -> float:
    """``value`` to so many significant digits."""
    return float(f"{value:.{digits}g}")


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
    """Of Python and of what does the work."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def command(module: str, arguments: Sequence[str]) -> str:
    """The line to repeat a measurement with; paths by their last part, as they mean nothing elsewhere."""
    shown = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return shlex.join(["python", "-m", module, *shown])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
