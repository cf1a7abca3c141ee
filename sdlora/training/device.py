"""Which device to train on, and in which precision."""

from typing import TYPE_CHECKING

from sdlora.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> "torch.device":
    """The device called ``name``; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises DeviceError if this machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"train.device: {name!r} is no device; give auto, cpu, cuda, cuda:0 or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise DeviceError(f"train.device: this machine has no {name} that PyTorch can use; take auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"train.device: there is no {name}; this machine has {torch.cuda.device_count()}")
    return device


def choose_precision(name: str, device: "torch.device") -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` takes the fastest that is safe on ``device``.

    fp16 on a CPU is refused: accelerate would silently train in fp32 without a scaler.
    """
    import torch

    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision: fp16 does not work on a CPU; take bf16, fp32 or auto")
    return name
