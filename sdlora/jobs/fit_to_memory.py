"""Fitting a run into ``train.memory`` by memory savings, counted on this machine before its base is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora.config import TrainConfig, explicit_settings
from sdlora.errors import OutOfMemoryError
from sdlora.events import OnEvent, Progress, ignore
from sdlora.formatting import GIB
from sdlora.jobs import memory_savings
from sdlora.training.profiling import count_class_images
from sdlora.training.run_paths import RunPaths

if TYPE_CHECKING:
    import torch

    from sdlora.training.memory_estimate import MemoryEstimate

CONTEXT = 512 << 20
"""Bytes of a card that drivers and libraries take before the first tensor: an assumption, on the safe side."""
SETTLED = {"train.memory": None}
"""Changes to a config that has been fitted."""


class MemoryCounter:
    """Counts the memory of ``device`` that variants of ``config`` need, each once."""

    def __init__(self, config: TrainConfig, device: "torch.device"):
        from sdlora.generation.device import choose_dtype
        from sdlora.training.memory_estimate import largest_size

        self.device = device
        self.on_card = device.type == "cuda"  # Others share their memory with the processor.
        self.dtype = choose_dtype(config.train.precision, device, preferred="bf16")
        self.size = largest_size(_job(config))
        self._counted: dict[str, MemoryEstimate] = {}

    def footprint(self, config: TrainConfig) -> "MemoryEstimate":
        from sdlora.training.memory_estimate import estimate_memory

        key = config.model_dump_json()
        if key not in self._counted:
            self._counted[key] = estimate_memory(_job(config), self.size, self.dtype, self.on_card)
        return self._counted[key]

    def needs(self, config: TrainConfig) -> int:
        """Return the bytes for steps, encoding and missing class images, with a reserve.

        Previews do not count: one that does not fit is left out, with a notice.
        """
        found = self.footprint(config)
        most = max(found.step, found.encoding, found.generation if count_class_images(config.all_concepts) else 0)
        return most + int(memory_savings.RESERVE * max(0, most - found.weights))


def fit_to_memory(
    config: TrainConfig, device: "torch.device", on_event: OnEvent = ignore
) -> tuple[TrainConfig, list[str]]:
    """Return ``config`` with the savings that ``train.memory`` asks for, which is then unset; and notices about them.

    On a CPU ``auto`` asks for none. Raises OutOfMemoryError where all do not suffice, naming what was set by hand.
    """
    requested = config.train.memory
    plain = memory_savings.with_settings(config, SETTLED)
    if requested is None or (requested == "auto" and device.type == "cpu"):
        return plain, []
    on_event(Progress(phase="fitting the run into memory"))
    counter = MemoryCounter(plain, device)
    fit = memory_savings.apply_until_fits(
        plain, counter.needs, memory_budget(requested, device), counter.on_card, explicit_settings(config)
    )
    if not fit.fits:
        raise OutOfMemoryError(memory_savings.refusal(fit, requested))
    return fit.config, [memory_savings.describe_fit(fit, requested)]


def memory_budget(requested: str, device: "torch.device") -> int:
    """Return the bytes that a run may take: what ``device`` has free, or the ``requested`` size.

    A card of that size has less: its drivers take a share.
    """
    if requested == "auto":
        from sdlora.generation.memory import free_bytes

        return free_bytes(device)
    size = int(float(requested.removesuffix("GB")) * GIB)
    return size - (CONTEXT if device.type == "cuda" else 0)


def _job(config: TrainConfig) -> Any:
    """Return a job to count: it writes and reports nothing."""
    from sdlora.training.train_job import TrainJob

    return TrainJob(**dict(config), output=RunPaths(Path("nowhere")), cache=Path("nowhere"))
