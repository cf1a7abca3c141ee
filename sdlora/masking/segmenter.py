"""The protocol of a segmenter: a model that says which part of an image counts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from PIL import Image

from sdlora.masking.settings import MaskSettings

if TYPE_CHECKING:
    import torch


class Segmenter(ABC):
    """A loaded model that finds what counts in images."""

    title: ClassVar[str]
    """Name for people."""
    hub_files: ClassVar[tuple[str, ...]] = ()
    """Patterns of the files that are fetched for a hub id."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, settings: MaskSettings, device: "torch.device") -> Self:
        """Load the model at ``path``, a folder or a file.

        Raises ModelError for what it lacks, ConfigError for a missing package or setting.
        """

    @abstractmethod
    def probabilities(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return how likely each place of each of a batch of upright RGB images counts: 0 to 255 (L).

        Each may have a size of its own, over which its image is stretched.
        """
