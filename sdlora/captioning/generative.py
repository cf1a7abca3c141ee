"""Captioners that generate sentences: models of transformers, read as data alone."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from sdlora.captioning.caption_text import cut_sentence
from sdlora.captioning.captioner import Captioner
from sdlora.captioning.settings import CaptionSettings
from sdlora.errors import ModelError, SdloraError
from sdlora.families.loading import quiet_libraries
from sdlora.families.untrusted_folder import read_config, require_data_only_model
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.formatting import first_line
from sdlora.generation.device import choose_dtype

BEAMS = 3
"""Sentences that are followed at once in beam search."""
TOKENS_A_WORD = 2
"""Tokens that a word may take when a caption's length is limited."""
LARGEST_SIDE = 2048
"""Side in pixels above which no captioner sees images."""
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

    def __init__(self, model: Any, tokenizer: Any, preparation: "ImagePreparation", settings: CaptionSettings):
        self.model, self.tokenizer = model, tokenizer
        self.preparation, self.settings = preparation, settings

    @classmethod
    def load(cls, folder: Path, settings: CaptionSettings, device: torch.device) -> Self:
        require_data_only_model(folder)
        _require_weights(folder)
        preparation = ImagePreparation.read(folder)
        try:
            with quiet_libraries():
                tokenizer = _transformers(cls.tokenizer_class).from_pretrained(folder, local_files_only=True)
                model, found = _transformers(cls.model_class).from_pretrained(
                    folder, dtype=choose_dtype("auto", device), local_files_only=True, use_safetensors=True,
                    output_loading_info=True,
                )  # fmt: skip
        except (SdloraError, MemoryError):
            raise
        except Exception as error:  # A stranger's configs and tensors: the library raises almost anything.
            raise ModelError(f"{folder}: cannot be loaded as {cls.title}: {first_line(error)}") from error
        if missing := sorted(found["missing_keys"]):
            raise ModelError(f"{folder}: lacks {len(missing)} tensors of a {cls.title}, such as {missing[0]}")
        return cls(model.to(device).eval(), tokenizer, preparation, settings)

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


class ImagePreparation:
    """Size and levels of the images that a model sees, from its ``preprocessor_config.json``."""

    def __init__(self, width: int, height: int, mean: Sequence[float], deviation: Sequence[float]):
        self.width, self.height = width, height
        self.mean, self.deviation = (torch.tensor(list(values)).view(3, 1, 1) for values in (mean, deviation))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it from a model's folder. Raises ModelError if it is missing, or says nothing that can be done."""
        newer = folder / "processor_config.json"
        path = folder / "preprocessor_config.json"
        values = read_config(path) if path.exists() or not newer.exists() else read_config(newer)
        values = values.get("image_processor", values)
        try:
            size = values["size"]
            width, height = (int(size[side]) for side in ("width", "height"))
            found = cls(width, height, values["image_mean"], values["image_std"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: names no width and height, or no levels, of images: {error}") from None
        if not 1 <= min(width, height) <= max(width, height) <= LARGEST_SIDE or not (found.deviation > 0).all():
            raise ModelError(f"{path}: images of {width} x {height} with such levels are no captioner's")
        return found

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return an image as float32 (3, height, width), normalised; its shape is not kept, as in training."""
        resized = image.convert("RGB").resize((self.width, self.height), Image.Resampling.BICUBIC)
        levels = torch.from_numpy(np.asarray(resized, np.float32)).permute(2, 0, 1) / 255
        return (levels - self.mean) / self.deviation


def _require_weights(folder: Path) -> None:
    """Raise ModelError for a model without weights that can be read safely, FormatError for a file cut short."""
    files = [*folder.glob("*.safetensors")]
    if not files:
        pickled = any(folder.glob("*.bin"))
        found = "only .bin files, which can run code when they are opened" if pickled else "no .safetensors weights"
        raise ModelError(f"{folder}: has {found}; take one that has .safetensors, or convert it")
    for file in files:
        read_safetensors_header(file)


def _transformers(name: str) -> Any:
    import transformers

    return getattr(transformers, name)
