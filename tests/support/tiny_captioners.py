"""Random captioners of the true classes, small enough to build and run within a second."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "cat", "house", "on", "grass", "red", "the")
LEVELS = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}


def write_tiny_blip(folder: Path, seed: int = 0) -> Path:
    """Write a ``BlipForConditionalGeneration`` for images of 32 px as a transformers folder; return it."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes, "encoder_hidden_size": 16, "vocab_size": len(names) + 1, "bos_token_id": len(names), "sep_token_id": 3,
        "pad_token_id": 0, "eos_token_id": 3, "max_position_embeddings": 40, "projection_dim": 16,
    }  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    return _write(folder, BlipForConditionalGeneration, config, tokenizer, {"height": 32, "width": 32}, seed)


def write_tiny_florence2(folder: Path, seed: int = 0) -> Path:
    """Write a ``Florence2ForConditionalGeneration`` for images of 64 px as a transformers folder; return it."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    tokenizer = _bart_tokenizer()
    vision = {
        "depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "num_groups": (1, 1, 2, 2),
        "window_size": 4, "projection_dim": 16, "max_position_embeddings": 10,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 64, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    }  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=image_token)
    return _write(
        folder, Florence2ForConditionalGeneration, config, tokenizer, {"height": 64, "width": 64}, seed,
        image_seq_length=5,
    )  # fmt: skip


def _bart_tokenizer() -> Any:
    """A ``BartTokenizer`` that spells letter by letter, with Florence-2's token of an image."""
    from tokenizers import pre_tokenizers
    from transformers import BartTokenizer

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = BartTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def _write(
    folder: Path, model: Any, config: Any, tokenizer: Any, size: dict[str, int], seed: int, **further: Any
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps({"size": size, **LEVELS, **further}))
    return Path(folder)
