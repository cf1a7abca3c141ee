"""CLIP-I and CLIP-T: similarity of two sets of images, and of images to their prompts.

Both are cosines of CLIP features, as the DreamBooth paper defines them (arXiv:2208.12242, section 5): CLIP-I is the
mean over all pairs of a generated and a real image, CLIP-T the mean over generated images and their own prompts.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from sdlora.errors import ModelError
from sdlora.families.untrusted_folder import require_data_only_tokenizer
from sdlora.filesystem.reading import read_json
from sdlora.formatting import first_line

POCKET_CLIP = Path(__file__).parent.parent / "pocket" / "clip"
"""The bundled CLIP, trained on the same synthetic world as the bundled base model."""


class Clip:
    """A CLIP model from a transformers folder: features of images and texts as unit vectors (N, D)."""

    def __init__(self, folder: Path | str = POCKET_CLIP, device: str = "cpu", batch: int = 32):
        """Load it in float32; ``batch`` images or texts are computed at once. Raises ModelError where that fails."""
        from transformers import CLIPModel, CLIPTokenizer

        try:
            require_data_only_tokenizer(Path(folder))
            levels = read_json(Path(folder) / "preprocessor_config.json")
            self.mean, self.deviation = torch.tensor([levels["image_mean"], levels["image_std"]]).view(2, 1, 3, 1, 1)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        except Exception as error:  # A stranger's files: the library raises almost anything.
            raise ModelError(f"{folder}: is no folder with a CLIP model: {first_line(error)}") from error
        self.model = model.to(device).eval()
        self.side: int = model.config.vision_config.image_size
        self.batch = batch

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return features (N, D) of images of any size: shortest side scaled to CLIP's, then cropped at the centre."""
        return _unit([self.model.get_image_features(pixels).pooler_output for pixels in self._batches(images)])

    @torch.no_grad()
    def subjects(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return features (N, 2W) that tell one subject from others of its class: class tokens in the tower's middle.

        CLIP's last layers keep what captions name, and lose what makes a cat this cat. The tokens of the two layers
        around the middle count alike, of 5 layers the second's and the third's; each is normalised as the last one is.
        """
        layers = self.model.config.vision_config.num_hidden_layers
        middle = (layers // 2, (layers + 1) // 2)
        return _unit([self._class_tokens(pixels, middle) for pixels in self._batches(images)])

    def _class_tokens(self, pixels: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """Return the class tokens (B, L * W) behind some of the image tower's ``layers``, as unit vectors."""
        tower = self.model.vision_model
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        tokens = [tower.post_layernorm(hidden[layer][:, 0]) for layer in layers]
        return torch.cat([torch.nn.functional.normalize(token, dim=1) for token in tokens], 1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str], padding: Literal["max_length", "longest"] = "max_length") -> torch.Tensor:
        """Return features (N, D) of texts, each truncated to CLIP's length.

        Padded to the ``longest`` of them alone, short ones take a fraction of the time: CLIP's text tower looks back
        only, so that padding changes features by rounding alone.
        """
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt"
        ).input_ids.to(self.model.device)
        return _unit([self.model.get_text_features(part).pooler_output for part in ids.split(self.batch)])

    def _batches(self, images: Sequence[Image.Image]) -> Iterator[torch.Tensor]:
        """Yield the images as pixels for the model, ``batch`` at a time."""
        for start in range(0, len(images), self.batch):
            yield self._pixels(images[start : start + self.batch])

    def _pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return pixels (B, 3, side, side), normalised as in the model's training."""
        levels = torch.stack([crop_levels(image, self.side) for image in images]).permute(0, 3, 1, 2)
        return ((levels / 255 - self.mean) / self.deviation).to(self.model.device)


def clip_i(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Return the mean cosine over all pairs of image features, (N, D) and (M, D); -1 to 1."""
    return (generated @ real.T).mean().item()


def clip_t(images: torch.Tensor, prompts: torch.Tensor) -> float:
    """Return the mean cosine of image features (N, D) and their prompts' features (N, D), pair by pair; -1 to 1."""
    if images.shape != prompts.shape:
        raise ValueError(f"one prompt an image: {tuple(images.shape)} features against {tuple(prompts.shape)}")
    return (images * prompts).sum(1).mean().item()


def likeness(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the cosine (N,) of each image's features (N, D) to the mean feature of ``others`` (M, D)."""
    return images @ torch.nn.functional.normalize(others.mean(0), dim=0)


def likeness_within(images: torch.Tensor) -> torch.Tensor:
    """Return the cosine (N,) of each image's features (N, D) to the mean feature of all others of its set."""
    if len(images) < 2:
        raise ValueError("one image has no others to be compared with")
    others = images.sum(0) - images  # The mean's direction needs no division.
    return (images * torch.nn.functional.normalize(others, dim=1)).sum(1)


def _unit(features: "list[torch.Tensor]") -> torch.Tensor:
    return torch.nn.functional.normalize(torch.cat(features), dim=1).cpu()


def crop_levels(image: Image.Image, side: int, shortest: int | None = None) -> torch.Tensor:
    """Return the centre of an image as levels (side, side, 3), 0 to 255, scaled as CLIP's own preprocessing does.

    Its shortest side becomes ``shortest`` pixels long, by default ``side``.
    """
    image = image.convert("RGB")
    width, height = ((shortest or side) * length // min(image.size) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return torch.from_numpy(np.asarray(image.crop((left, top, left + side, top + side)), np.float32))
