"""How like are two sets of pictures, and how well do pictures follow their prompts: CLIP-I and CLIP-T.

Both are cosines of CLIP features, as the DreamBooth paper defines them (arXiv:2208.12242, section 5): CLIP-I is the
mean over all pairs of a generated and a real picture, CLIP-T the mean over generated pictures and their own prompts.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdlora.errors import ModelError
from sdlora.families.untrusted_folder import require_data_only_tokenizer
from sdlora.filesystem.reading import read_json
from sdlora.formatting import first_line

if TYPE_CHECKING:
    from PIL import Image

POCKET_CLIP = Path(__file__).parent.parent / "pocket" / "clip"
"""The bundled CLIP, trained on the same drawn world as the bundled base model."""


class Clip:
    """A CLIP model from a transformers folder, and what it makes of pictures and texts: unit vectors (N, D)."""

    def __init__(self, folder: Path | str = POCKET_CLIP, device: str = "cpu", batch: int = 32):
        """Load it in float32; ``batch`` pictures or texts go through at once. Raises ModelError if it cannot be had."""
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
    def images(self, images: "Sequence[Image.Image]") -> torch.Tensor:
        """Features (N, D) of pictures of any size: shortest side scaled to CLIP's, then the middle cut out."""
        return _unit([self.model.get_image_features(pixels).pooler_output for pixels in self._batches(images)])

    @torch.no_grad()
    def subjects(self, images: "Sequence[Image.Image]") -> torch.Tensor:
        """Features (N, W) that tell one subject from others of its kind: the class token in the middle of the tower.

        CLIP's last layers keep what captions name, and forget what makes a cat this cat. Layers are counted up, so of
        5 it is the second; its token is normalised as the last one is.
        """
        tower = self.model.vision_model
        middle = self.model.config.vision_config.num_hidden_layers // 2
        return _unit(
            [
                tower.post_layernorm(tower(pixel_values=pixels, output_hidden_states=True).hidden_states[middle][:, 0])
                for pixels in self._batches(images)
            ]
        )

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features (N, D) of texts, each cut at CLIP's length."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids.to(self.model.device)
        return _unit([self.model.get_text_features(part).pooler_output for part in ids.split(self.batch)])

    def _batches(self, images: "Sequence[Image.Image]") -> Iterator[torch.Tensor]:
        """The pictures as the model takes them, ``batch`` at a time."""
        for start in range(0, len(images), self.batch):
            yield self._pixels(images[start : start + self.batch])

    def _pixels(self, images: "Sequence[Image.Image]") -> torch.Tensor:
        """(B, 3, side, side), normalised as the model was trained."""
        levels = torch.stack([_cut(image, self.side) for image in images]).permute(0, 3, 1, 2)
        return ((levels / 255 - self.mean) / self.deviation).to(self.model.device)


def clip_i(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Mean cosine over all pairs of picture features, (N, D) and (M, D); -1 to 1."""
    return (generated @ real.T).mean().item()


def clip_t(pictures: torch.Tensor, prompts: torch.Tensor) -> float:
    """Mean cosine of picture features (N, D) and the features of their prompts (N, D), pair by pair; -1 to 1."""
    if pictures.shape != prompts.shape:
        raise ValueError(f"one prompt a picture: {tuple(pictures.shape)} features against {tuple(prompts.shape)}")
    return (pictures * prompts).sum(1).mean().item()


def likeness(pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Cosine (N,) of each picture's features (N, D) to the mean feature of ``others`` (M, D)."""
    return pictures @ torch.nn.functional.normalize(others.mean(0), dim=0)


def likeness_within(pictures: torch.Tensor) -> torch.Tensor:
    """Cosine (N,) of each picture's features (N, D) to the mean feature of all the others: what is usual in the set."""
    if len(pictures) < 2:
        raise ValueError("one picture has no others to be like")
    others = pictures.sum(0) - pictures  # The mean's direction needs no division.
    return (pictures * torch.nn.functional.normalize(others, dim=1)).sum(1)


def _unit(features: "list[torch.Tensor]") -> torch.Tensor:
    return torch.nn.functional.normalize(torch.cat(features), dim=1).cpu()


def _cut(image: "Image.Image", side: int) -> torch.Tensor:
    """The middle of a picture as levels (side, side, 3), 0 to 255, as CLIP's own preprocessing cuts it."""
    import numpy as np
    from PIL import Image

    image = image.convert("RGB")
    width, height = (side * length // min(image.size) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return torch.from_numpy(np.asarray(image.crop((left, top, left + side, top + side)), np.float32))
