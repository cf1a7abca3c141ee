"""The processes of a run, on one or more devices, through Accelerate.

Adapters are small, so no wrapper around the model is needed: the gradients of all processes are
averaged in one flat reduction a step. The models stay what they are, whatever trains in them.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from sdlora.errors import ConfigError
from sdlora.formats.storage import DTYPES
from sdlora.generation.device import choose_device, choose_dtype
from sdlora.training.run_paths import RunPaths
from sdlora.training.settings import Train
from sdlora.training.trackers import Trackers

_NAMES: dict[torch.dtype, str] = {getattr(torch, dtype): name for name, dtype in DTYPES.items()}
"""Our names of the training precisions; Accelerate's are the same, but for ``no`` instead of ``fp32``."""


class Distributed:
    """This process among those that train together."""

    def __init__(self, accelerator: Accelerator, dtype: torch.dtype):
        self.accelerator = accelerator
        self.dtype = dtype
        """The precision of the frozen base."""
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process
        self.trackers = Trackers()
        """Trackers of the run; the main process may have some."""
        self.scales = accelerator.scaler is not None
        """True if a loss scaler is active (fp16)."""

    @classmethod
    def setup(cls, train: Train, output: RunPaths) -> "Distributed":
        """Join the other processes, if this one was started with some. Raises for a device that is not there."""
        device = choose_device(train.device)
        dtype = choose_dtype(train.precision, device, preferred="bf16")
        if device.type == "cuda" and device.index is not None:  # Else Accelerate gives each process its own.
            torch.cuda.set_device(device)
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=_NAMES[dtype].replace("fp32", "no"),
            project_dir=str(output.folder),
            # One process may draw previews for longer than the default of ten minutes while the others wait.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
        )
        if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
            raise ConfigError(f"train.device = {train.device!r}: {device.type} trains in one process only; give one")
        return cls(accelerator, dtype)

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``."""
        return _NAMES[self.dtype]

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which the forward pass runs in the training precision."""
        return self.accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``, a scalar, scaled where a loss scaler is at work."""
        self.accelerator.backward(loss)

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer with Accelerate's loss scaler around it where there is one."""
        return self.accelerator.prepare(optimizer)

    def average_gradients(self, parameters: Sequence["nn.Parameter"], loss: torch.Tensor) -> None:
        """Average gradients and ``loss`` over all processes, in place, in one reduction.

        Before any unscaling, so that all processes find the same overflow.
        """
        if self.count == 1:
            return
        tensors = [loss, *(p.grad for p in parameters if p.grad is not None)]
        flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        flat = self.accelerator.reduce(flat, "mean")  # type: ignore[assignment]
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def clip(self, optimizer: Any, parameters: Sequence["nn.Parameter"], most: float) -> torch.Tensor:
        """Unscale the gradients, cut their common norm to ``most`` (0: leave them); the norm before that."""
        self.accelerator.unscale_gradients(optimizer)
        return torch.nn.utils.clip_grad_norm_(
            [p for p in parameters if p.grad is not None], most if most > 0 else float("inf")
        )

    def any_process(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on any process; all get the same answer."""
        if self.count == 1:
            return flag
        return self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum").item() > 0  # type: ignore[union-attr]

    def scaler_state(self) -> dict[str, Any]:
        """The loss scaler's numbers, none where there is no scaler."""
        return self.accelerator.scaler.state_dict() if self.scales else {}

    def restore_scaler(self, state: Mapping[str, Any]) -> None:
        """Put the loss scaler's numbers back."""
        if self.scales and state:
            self.accelerator.scaler.load_state_dict(dict(state))

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        self.accelerator.wait_for_everyone()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write ``values`` to the run's trackers."""
        self.trackers.log(values, step)

    def shutdown(self) -> None:
        """Close what was opened: the trackers, the ties to the other processes."""
        self.trackers.finish()
        self.accelerator.end_training()
