"""Captioners for tests that need no model of the real world."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from sdlora.captioning.captioner import Captioner
from sdlora.captioning.settings import CaptionSettings


class SizeCaptioner(Captioner):
    """Says how wide an image is; of those that are as wide as high, it cannot tell."""

    title: ClassVar[str] = "widths"
    hub_files: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.seen: list[int] = []
        """Number of images in each batch."""

    @classmethod
    def load(cls, folder: Path, settings: CaptionSettings, device: Any) -> "SizeCaptioner":
        return cls()

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        self.seen.append(len(images))
        return ["" if image.width == image.height else f"{image.width} wide" for image in images]


class KnownCaptioner(SizeCaptioner):
    """Says the same of every image."""

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        return ["a known thing"] * len(images)
