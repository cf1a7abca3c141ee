"""Device and precision of a model."""

from typing import TYPE_CHECKING, Literal

from sdlora.errors import ConfigError, DeviceError
from sdlora.formats.storage import DTYPES

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> "torch.device":
    """Return the device called ``name``; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises ConfigError for a name that is none, DeviceError if this machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, exists in available.items() if exists)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is no device; give auto, cpu, cuda, cuda:0 or mps") from None
    if not available.get(device.type, False):
        raise DeviceError(f"device: this machine has no {name} that PyTorch can use; take auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device: there is no {name}; this machine has {torch.cuda.device_count()}")
    return device


def require_precision(precision: str, device: str) -> None:
    """Raise ConfigError for ``fp16`` on a ``device`` that is a CPU. Needs no torch."""
    if precision == "fp16" and device.partition(":")[0] == "cpu":
        raise ConfigError("precision: fp16 does not work on a CPU; take bf16, fp32 or auto")


def choose_dtype(precision: str, device: "torch.device", preferred: Literal["fp16", "bf16"] = "fp16") -> "torch.dtype":
    """Return the dtype of ``fp32``, ``bf16`` or ``fp16``; ``auto`` is ``preferred`` on CUDA, fp32 elsewhere.

    fp16's finer mantissa shows in images; bf16's range trains without a loss scaler (a card that lacks it takes
    fp16). Raises ConfigError for other names, and for fp16 on a CPU.
    """
    import torch

    if precision == "auto":
        precision = preferred if device.type == "cuda" else "fp32"
        if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "fp16"
    if precision not in DTYPES:
        raise ConfigError(f"precision: {precision!r} is unknown; give auto, {', '.join(DTYPES)}")
    require_precision(precision, device.type)
    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    return dtype
