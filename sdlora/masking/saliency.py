"""Salient objects by ONNX models, as rembg uses them: U²-Net (arXiv:2005.09007) and IS-Net (arXiv:2203.03041)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from sdlora.errors import ModelError
from sdlora.filesystem.paths import path_problem
from sdlora.formatting import first_line
from sdlora.masking.segmenter import Segmenter
from sdlora.masking.settings import MaskSettings
from sdlora.masking.sources import ONNX
from sdlora.vision.onnx_session import open_onnx
from sdlora.vision.training_images import batches


class Levels(NamedTuple):
    """Mean and deviation of the levels that a model was trained with."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


LEVELS = {
    320: Levels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1024: Levels((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
}
"""Levels by the side in pixels of the images that a model takes: those of U²-Net's training, and of IS-Net's."""


class SaliencySegmenter(Segmenter):
    """A model that tells the main thing of an image from its background, whatever it is."""

    title: ClassVar[str] = "ONNX segmenter"

    def __init__(self, session: Any, batch_size: int = 1):
        """Raise ModelError unless ``session`` takes square images of a size of ``LEVELS``."""
        (taken, *others) = session.get_inputs()
        count, channels, height, width = taken.shape if len(taken.shape) == 4 else (0, 0, 0, 0)
        if others or channels != 3 or height != width or width not in LEVELS:
            sizes = " or ".join(f"{side} x {side}" for side in LEVELS)
            raise ModelError(f"takes {taken.shape}, and no images (N, 3, side, side) of {sizes} as u2net or isnet do")
        self.session, self.side, self._input = session, width, taken.name
        self._output = session.get_outputs()[0].name
        self._at_once = count if isinstance(count, int) else batch_size
        """Images that the model takes at once: some take one only."""

    @classmethod
    def load(cls, path: Path, settings: MaskSettings, device: torch.device) -> Self:
        file = find_onnx(path)
        try:
            return cls(open_onnx(file, device, "an ONNX segmenter", "a CLIPSeg"), settings.batch_size)
        except ModelError as error:
            raise ModelError(f"{file}: {error}") from None

    def probabilities(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        found: list[Image.Image] = []
        for batch in batches(images, self._at_once):
            pixels = np.stack([prepare(image, self.side) for image in batch])
            try:
                (levels,) = self.session.run([self._output], {self._input: pixels})
                found += [Image.fromarray(spread(each[0])) for each in levels]
            except Exception as error:  # The library's own exceptions have no common class.
                raise ModelError(f"{self.title}: cannot look at an image: {first_line(error)}") from error
        return found


def find_onnx(path: Path) -> Path:
    """Return the ONNX file ``path``, or the only one in the folder. Raises ModelError for none, or several."""
    if path.is_file():
        return path
    files = sorted(path.glob(f"*{ONNX}"))
    if len(files) != 1:
        found = " and ".join(file.name for file in files[:2]) if files else f"no {ONNX} file"
        raise ModelError(f"{path}: has {found}; give the file of one segmenter, such as u2net.onnx")
    if problem := path_problem(files[0], path):
        raise ModelError(f"{files[0]}: {problem}; give the file itself")
    return files[0]


def prepare(image: Image.Image, side: int) -> np.ndarray:
    """Return an image as these models take it: float32 (3, side, side), normalised, its brightest level at 1."""
    levels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), np.float32)
    mean, deviation = (np.array(values, np.float32) for values in LEVELS[side])
    normalised = (levels / max(float(levels.max()), 1e-6) - mean) / deviation
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def spread(levels: np.ndarray) -> np.ndarray:
    """Return ``levels`` (H, W) from 0, the lowest, to 255, the highest, as uint8; all 0 if they are alike."""
    lowest, highest = float(levels.min()), float(levels.max())
    if not highest > lowest:  # Not a number compares false, too.
        return np.zeros(levels.shape, np.uint8)
    return ((levels - lowest) / (highest - lowest) * 255).round().astype(np.uint8)
