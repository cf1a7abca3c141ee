"""CLIPSeg (arXiv:2112.10003): the part of an image that words name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image

from sdlora.errors import ModelError
from sdlora.formatting import first_line
from sdlora.masking.segmenter import Segmenter
from sdlora.masking.settings import MaskSettings
from sdlora.masking.sources import require_words
from sdlora.vision.image_preparation import ImagePreparation
from sdlora.vision.model_folder import load_model, require_safe_model


class ClipSegmenter(Segmenter):
    """``CLIPSegForImageSegmentation``, asked for each thing by itself; a place counts for the likeliest of them."""

    title: ClassVar[str] = "CLIPSeg"
    hub_files: ClassVar[tuple[str, ...]] = (
        "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer*.json",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "model*.safetensors",
        "model.safetensors.index.json",
    )  # fmt: skip

    def __init__(self, model: Any, tokenizer: Any, preparation: ImagePreparation, settings: MaskSettings):
        self.model, self.preparation = model, preparation
        self._texts = self._embed(tokenizer, settings.asked)

    @classmethod
    def load(cls, path: Path, settings: MaskSettings, device: torch.device) -> Self:
        require_words(settings)
        require_safe_model(path)
        preparation = ImagePreparation.read(path, Image.Resampling.BILINEAR)
        model, tokenizer = load_model(path, "CLIPSegForImageSegmentation", "CLIPTokenizer", cls.title, device)
        try:
            return cls(model, tokenizer, preparation, settings)
        except (IndexError, ValueError, RuntimeError, AttributeError) as error:  # Configs that contradict each other.
            raise _unusable(error) from error

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        pixels = torch.stack([self.preparation.pixels(image) for image in images])
        pixels = pixels.to(self.model.device, self.model.dtype)
        try:
            likeliest = torch.stack([self._probabilities(pixels, text) for text in self._texts]).amax(0)
        except (IndexError, ValueError, RuntimeError, AttributeError) as error:  # As above.
            raise _unusable(error) from error
        return [Image.fromarray(levels.numpy()) for levels in likeliest.mul(255).round().byte().cpu()]

    def _probabilities(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (B, H, W), float32, that places of the images (B, 3, H, W) show ``text`` (D)."""
        logits = self.model(pixel_values=pixels, conditional_embeddings=text.expand(len(pixels), -1)).logits
        return logits.view(len(pixels), *logits.shape[-2:]).float().sigmoid()

    @torch.no_grad()
    def _embed(self, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings (N, D) of what the model is asked for."""
        longest = int(self.model.config.text_config.max_position_embeddings)
        tokens = tokenizer([*texts], padding=True, truncation=True, max_length=longest, return_tensors="pt")
        embeddings: torch.Tensor = self.model.get_conditional_embeddings(
            len(texts), tokens.input_ids.to(self.model.device), tokens.attention_mask.to(self.model.device)
        )
        return embeddings


def _unusable(error: Exception) -> Exception:
    """Return ``error`` as that of a model that cannot be used, unless memory is what lacks."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    return ModelError(f"CLIPSeg: cannot look at an image: {first_line(error)}")
