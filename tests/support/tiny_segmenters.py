"""Segmenters that are small enough to build and run within a second, or that need no model at all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from sdlora.masking.segmenter import Segmenter
from sdlora.masking.settings import MaskSettings
from tests.support import onnx_bytes

LEVELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def write_tiny_clipseg(folder: Path, seed: int = 0) -> Path:
    """Write a random ``CLIPSegForImageSegmentation`` for images of 32 px as a transformers folder; return it."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer

    names = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={
            **sizes, "vocab_size": len(names), "max_position_embeddings": 20, "bos_token_id": len(names) - 2,
            "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2], decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPSegForImageSegmentation(config)
        for parameter in model.parameters():  # As initialised, all places are about as likely.
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps({"size": 32, "resample": 2, **LEVELS}))
    return Path(folder)


def write_tiny_saliency(path: Path, side: int = 320, batch: int | str = 1) -> Path:
    """Write an ONNX model whose saliency is the mean of the normalised levels of a place; return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mean = onnx_bytes.node(
        "ReduceMean", ["input.1"], "found", onnx_bytes.attribute("axes", ints=(1,)),
        onnx_bytes.attribute("keepdims", number=1),
    )  # fmt: skip
    taken, given = onnx_bytes.value("input.1", batch, 3, side, side), onnx_bytes.value("found", batch, 1, side, side)
    path.write_bytes(onnx_bytes.model(13, [mean], [], taken, given))
    return path


class BrightSegmenter(Segmenter):
    """Finds what is bright."""

    title: ClassVar[str] = "brightness"

    def __init__(self) -> None:
        self.seen: list[int] = []
        """Number of images in each batch."""

    @classmethod
    def load(cls, path: Path, settings: MaskSettings, device: Any) -> "BrightSegmenter":
        return cls()

    def probabilities(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        self.seen.append(len(images))
        return [image.convert("L") for image in images]
