"""Sessions of ONNX models."""

from pathlib import Path
from typing import Any

import torch

from sdlora.errors import ModelError, missing_package
from sdlora.formatting import first_line


def open_onnx(path: Path, device: torch.device, feature: str, instead: str) -> Any:
    """Open an ONNX model, on a card if the installed package can. Raises ConfigError without the package, ModelError.

    ``feature`` needs the package, ``instead`` does without it. A file of this format is data; the library refuses
    tensors that lie out of its folder.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_package(feature, "onnxruntime", instead) from None
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # Its errors arrive as exceptions.
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # The library's own exceptions have no common class.
        raise ModelError(f"its {path.name} cannot be read: {first_line(error)}") from error
