"""The protocol of a captioner: a model that says what images show."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from PIL import Image

from sdlora.captioning.settings import CaptionSettings
from sdlora.events import OnProgress, unwatched
from sdlora.vision.training_images import batches

if TYPE_CHECKING:
    import torch


class Captioner(ABC):
    """A loaded model that writes captions."""

    title: ClassVar[str]
    """Name for people."""
    writes: ClassVar[Literal["sentences", "tags"]] = "sentences"
    """Whether a caption is a sentence, or tags that commas part."""
    hub_files: ClassVar[tuple[str, ...]]
    """Patterns of the files that are fetched for a hub id."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, settings: CaptionSettings, device: "torch.device") -> Self:
        """Load the model in ``folder``. Raises ModelError for what it lacks, ConfigError for a missing package."""

    def survey(self, batches: Iterable[Sequence[Image.Image]]) -> None:  # noqa: B027 (optional, not abstract)
        """Look at all images of a set before the first caption of it, batch by batch; ``batches`` are opened as read.

        What a set shares may be its look, which no caption should name. A captioner that sees each image by itself
        reads none here.
        """

    @abstractmethod
    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """Return a caption for each of a batch of upright RGB images; empty where the model cannot tell."""


def caption_images(
    captioner: Captioner, images: Sequence[Image.Image], batch_size: int = 8, on_progress: OnProgress = unwatched
) -> list[str]:
    """Return a caption for each image of a set, by ``batch_size`` images at a time; ``on_progress`` counts images."""
    found: list[str] = []
    captioner.survey(batches(images, batch_size))
    for batch in batches(images, batch_size):
        found += captioner.captions(batch)
        on_progress(len(found), len(images))
    return found
