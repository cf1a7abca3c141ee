"""Models that compare images with images and with prompts, loaded as data alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from sdlora.data.settings import Kind
from sdlora.errors import ModelError
from sdlora.evaluation.encoder_sources import DINOV2, EncoderSource, EncoderSources
from sdlora.evaluation.fidelity import Clip, crop_levels
from sdlora.families.untrusted_folder import read_config
from sdlora.formatting import first_line
from sdlora.vision.model_folder import load_weights, require_safe_model

BATCH = 32
ImageFeatures = Callable[[Sequence[Image.Image]], torch.Tensor]
"""Function from N images to their features, unit vectors (N, D)."""


@dataclass(frozen=True)
class Encoders:
    """The models of one evaluation."""

    features: ImageFeatures
    """Features by which images are compared with one another."""
    clip: Clip
    """Model that compares images with prompts."""


class Dinov2:
    """A DINOv2 (arXiv:2304.07193) from a transformers folder. Its class token tells subjects apart, as DINO's does.

    DreamBooth prefers that to CLIP-I (arXiv:2208.12242, section 5): it is trained to keep what differs within a class.
    """

    def __init__(self, folder: Path, device: torch.device, batch: int = BATCH):
        """Load it; ``batch`` images are computed at once. Raises ModelError."""
        require_safe_model(folder)
        levels = read_config(folder / "preprocessor_config.json")
        try:
            self.side = int(levels["crop_size"]["height"])
            self.shortest = int(levels["size"]["shortest_edge"])
            mean, deviation = levels["image_mean"], levels["image_std"]
            self.mean, self.deviation = torch.tensor([mean, deviation]).view(2, 1, 3, 1, 1)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{folder}: its preprocessor_config.json names no sizes and levels: {error}") from None
        if not 8 <= self.side <= self.shortest <= 2048 or not (self.deviation > 0).all():
            raise ModelError(
                f"{folder}: images of {self.side} in {self.shortest} pixels with such levels fit no DINOv2"
            )
        self.model, self.batch = load_weights(folder, "Dinov2Model", "DINOv2", device), batch

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the class tokens (N, D) of images, as unit vectors."""
        found = []
        for first in range(0, len(images), self.batch):
            levels = [crop_levels(image, self.side, self.shortest) for image in images[first : first + self.batch]]
            pixels = (torch.stack(levels).permute(0, 3, 1, 2) / 255 - self.mean) / self.deviation
            try:
                read = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype)).pooler_output
            except (IndexError, ValueError, RuntimeError) as error:  # Configs that contradict each other.
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ModelError(f"DINOv2: cannot look at an image: {first_line(error)}") from error
            found.append(torch.nn.functional.normalize(read.float(), dim=1).cpu())
        return torch.cat(found)


def load_encoders(sources: EncoderSources, kind: Kind, device: torch.device) -> Encoders:
    """Load the models of ``sources`` for an adapter of this ``kind``; the same one is loaded once.

    A CLIP compares subjects by the middle of its image tower where it is the bundled one, for which that is measured,
    else by its own image features. Raises ModelError for what cannot be loaded.
    """
    reader = _load_clip(sources.clip, device)
    if sources.encoder.kind == DINOV2:
        return Encoders(Dinov2(sources.encoder.folder, device), reader)
    seer = reader if sources.encoder == sources.clip else _load_clip(sources.encoder, device)
    return Encoders(seer.subjects if kind == "subject" and sources.encoder.is_bundled else seer.images, reader)


def _load_clip(source: EncoderSource, device: torch.device) -> Clip:
    if not source.is_bundled:
        require_safe_model(source.folder)
    return Clip(source.folder, str(device), BATCH)
