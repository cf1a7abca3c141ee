"""Faces by the cascades that OpenCV brings (Viola and Jones, CVPR 2001): nothing is downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from PIL import Image, ImageDraw

from sdlora.errors import ModelError, missing_package
from sdlora.masking.segmenter import Segmenter
from sdlora.masking.settings import FACES, MaskSettings

PACKAGE = "'opencv-python-headless<5'"
"""The package as pip is told of it: version 5 has no cascades."""
FRONT, PROFILE, CAT = (
    f"haarcascade_{name}.xml" for name in ("frontalface_alt2", "profileface", "frontalcatface_extended")
)
"""Files of the cascades, which come with the package."""
LONGEST_SIDE = 640
"""Longest side in pixels at which faces are looked for."""
SMALLEST_SHARE = 0.06
"""Least side of a face, as a share of the image's shorter one."""
SCALE_STEP, NEIGHBOURS = 1.1, 4
"""Ratio of the sizes that are looked for one after the other, and hits side by side that make a face."""


class Face(NamedTuple):
    """A square around a face, in pixels."""

    left: float
    top: float
    side: float


class FaceSegmenter(Segmenter):
    """Finds faces of people, of cats for that class: each becomes an ellipse with a margin."""

    title: ClassVar[str] = FACES

    def __init__(self, cv2: Any, settings: MaskSettings):
        self._cv2, self._margin = cv2, settings.face_margin
        names = (CAT,) if settings.class_name.strip().casefold() == "cat" else (FRONT, PROFILE)
        self._cascades = {name: _cascade(cv2, name) for name in names}

    @classmethod
    def load(cls, path: Path, settings: MaskSettings, device: torch.device) -> Self:
        return cls(import_opencv(), settings)

    def probabilities(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        return [draw_faces(image.size, self.faces(image), self._margin) for image in images]

    def faces(self, image: Image.Image) -> list[Face]:
        """Return the faces in an upright RGB image; those in profile count only where none looks at the camera."""
        scale = min(1.0, LONGEST_SIDE / max(image.size))
        width, height = (max(1, round(side * scale)) for side in image.size)
        grey = self._cv2.equalizeHist(np.asarray(image.convert("L").resize((width, height), Image.Resampling.BILINEAR)))
        found: list[Face] = []
        for name in self._cascades:
            found = found or self._detect(name, grey)
            if name == PROFILE:  # It knows faces that look to one side.
                mirrored = self._detect(name, np.ascontiguousarray(grey[:, ::-1])) if not found else []
                found += [face._replace(left=grey.shape[1] - face.left - face.side) for face in mirrored]
        return [Face(*(value / scale for value in face)) for face in found]

    def _detect(self, name: str, grey: np.ndarray) -> list[Face]:
        least = max(1, round(SMALLEST_SHARE * min(grey.shape)))
        boxes = self._cascades[name].detectMultiScale(grey, SCALE_STEP, NEIGHBOURS, minSize=(least, least))
        return [Face(float(left), float(top), float(max(width, height))) for left, top, width, height in boxes]


def draw_faces(size: tuple[int, int], faces: Sequence[Face], margin: float) -> Image.Image:
    """Return an image (L) of ``size`` with an ellipse over each face, wider by ``margin`` of it on each side."""
    mask = Image.new("L", size)
    for face in faces:
        more = margin * face.side
        far = face.side + more
        ImageDraw.Draw(mask).ellipse((face.left - more, face.top - more, face.left + far, face.top + far), fill=255)
    return mask


def import_opencv() -> Any:
    """Return the package. Raises ConfigError without it, or for one that has no cascades."""
    try:
        import cv2
    except ImportError:
        cv2 = None
    if cv2 is None or not hasattr(cv2, "CascadeClassifier"):
        raise missing_package(f"the segmenter {FACES}", PACKAGE, "a CLIPSeg")
    return cv2


def _cascade(cv2: Any, name: str) -> Any:
    file = Path(cv2.data.haarcascades) / name
    cascade = cv2.CascadeClassifier(str(file))
    if cascade.empty():
        raise ModelError(f"{file}: cannot be read; install {PACKAGE} anew")
    return cascade
