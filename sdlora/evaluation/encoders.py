"""Models that compare images with images and with prompts, found by name and loaded as data alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image

from sdlora.data.settings import Kind
from sdlora.errors import ModelError
from sdlora.evaluation.fidelity import POCKET_CLIP, Clip, crop_levels
from sdlora.evaluation.names import POCKET
from sdlora.families.hub import fetch_files
from sdlora.families.hub_download import download_files
from sdlora.families.settings import Model, trimmed_base
from sdlora.families.untrusted_folder import read_config
from sdlora.formatting import first_line, one_line
from sdlora.vision.model_folder import load_weights, require_safe_model
from sdlora.vision.model_source import locate_model

if TYPE_CHECKING:
    from sdlora.events import OnEvent

HUB_FILES = (
    "config.json", "preprocessor_config.json", "tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip
KINDS = ("clip", "dinov2")
KINDS_ARE = "give pocket, or a folder or a hub id with a CLIP or a DINOv2"
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


class EncoderSource(NamedTuple):
    """Kind and folder of an encoder on this machine."""

    kind: str
    folder: Path


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


def load_encoders(encoder: str, clip: str, kind: Kind, device: torch.device, on_event: "OnEvent") -> Encoders:
    """Load the models called ``encoder`` and ``clip``, for an adapter of this ``kind``; the same one is loaded once.

    A CLIP compares subjects by the middle of its image tower where it is the bundled one, for which that is measured,
    else by its own image features. Raises ModelError for what is none, or cannot be fetched.
    """
    texts = _find(clip, on_event)
    if texts.kind == "dinov2":
        raise ModelError(f"{one_line(clip)!r}: is a DINOv2, which reads no prompts; give a CLIP as clip")
    reader = _load_clip(texts, device)
    looks = texts if encoder == clip else _find(encoder, on_event)
    if looks.kind == "dinov2":
        return Encoders(Dinov2(looks.folder, device), reader)
    seer = reader if looks == texts else _load_clip(looks, device)
    return Encoders(seer.subjects if kind == "subject" and looks.folder == POCKET_CLIP else seer.images, reader)


def locate_encoder(name: str) -> EncoderSource | None:
    """Find the encoder called ``name``, without loading it; None for a hub id. Raises ModelError for neither."""
    if trimmed_base(name) == POCKET:
        return EncoderSource("clip", POCKET_CLIP)
    folder = locate_model(name, f"is no model that compares images; {KINDS_ARE}")
    return EncoderSource(kind_of(folder), folder) if folder else None


def kind_of(folder: Path) -> str:
    """Return the kind of the encoder in ``folder``. Raises ModelError for any other model, and for none."""
    named = read_config(folder / "config.json").get("model_type")
    if named not in KINDS:
        raise ModelError(f"{folder}: is {one_line(str(named))!r}, which compares no images here; {KINDS_ARE}")
    return str(named)


def _find(name: str, on_event: "OnEvent") -> EncoderSource:
    """Return the encoder called ``name``; of a hub id, what says its kind is fetched before its weights."""
    if found := locate_encoder(name):
        return found
    model = Model(base=name)
    kind = kind_of(fetch_files(model, ("config.json",)))
    return EncoderSource(kind, download_files(model, HUB_FILES, on_event))


def _load_clip(source: EncoderSource, device: torch.device) -> Clip:
    if source.folder != POCKET_CLIP:
        require_safe_model(source.folder)
    return Clip(source.folder, str(device), BATCH)
