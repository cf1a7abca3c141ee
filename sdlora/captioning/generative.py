"""Captioners that generate sentences: models of transformers, read as data alone."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image

from sdlora.captioning.caption_text import cut_sentence
from sdlora.captioning.captioner import Captioner
from sdlora.captioning.settings import CaptionSettings
from sdlora.errors import ModelError
from sdlora.formatting import first_line
from sdlora.vision.image_preparation import ImagePreparation
from sdlora.vision.model_folder import load_model, require_safe_model

BEAMS = 3
"""Sentences that are followed at once in beam search."""
TOKENS_A_WORD = 2
"""Tokens that a word may take when a caption's length is limited."""
SPARE_POSITIONS = 8
"""Positions of the text left for its beginning and its end."""


class GenerativeCaptioner(Captioner):
    """A model of transformers that generates a sentence from an image."""

    model_class: ClassVar[str]
    """Class of the model in transformers."""
    tokenizer_class: ClassVar[str]
    hub_files: ClassVar[tuple[str, ...]] = (
        "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
        "model*.safetensors", "model.safetensors.index.json",
    )  # fmt: skip

    def __init__(self, model: Any, tokenizer: Any, preparation: ImagePreparation, settings: CaptionSettings):
        self.model, self.tokenizer = model, tokenizer
        self.preparation, self.settings = preparation, settings

    @classmethod
    def load(cls, folder: Path, settings: CaptionSettings, device: torch.device) -> Self:
        require_safe_model(folder)
        preparation = ImagePreparation.read(folder)
        model, tokenizer = load_model(folder, cls.model_class, cls.tokenizer_class, cls.title, device)
        return cls(model, tokenizer, preparation, settings)

    @torch.no_grad()
    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        pixels = torch.stack([self.preparation.pixels(image) for image in images])
        try:
            ids = self.generate(pixels.to(self.model.device, self.model.dtype))
        except (IndexError, ValueError, RuntimeError, AttributeError) as error:  # Configs that contradict each other.
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ModelError(f"{self.title}: cannot caption an image: {first_line(error)}") from error
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [cut_sentence(text, self.settings) for text in texts]

    @abstractmethod
    def generate(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tokens (B, length) of a sentence for each of the prepared images (B, 3, H, W)."""

    @property
    def limits(self) -> dict[str, Any]:
        """Arguments of ``generate`` that bound its work, whatever the model's own configs say."""
        positions = int(self.model.config.text_config.max_position_embeddings)
        longest = max(1, min(TOKENS_A_WORD * self.settings.max_words, positions - SPARE_POSITIONS))
        return {"max_new_tokens": longest, "num_beams": BEAMS, "num_return_sequences": 1, "do_sample": False}
