"""The base's small CLIP: contrastive on drawings and captions. Its text tower becomes the base's text encoder."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools.pocket import captions, vae
from tools.pocket.fit import Plan
from tools.pocket.pool import Pool

MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""The pixels' normalisation, the same as the VAE's: [0, 1] to [-1, 1]."""
MAX_LOGIT_SCALE = 4.6
"""The similarities are multiplied by at most e^4.6 = 100, as in CLIP."""
Wanted = tuple[str | None, ...]


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Text 128 wide, 4 layers; image 192 wide, 5 layers, patches of 16 in 128 px; both projected to 128."""
    text = dict(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=128,
    )  # fmt: skip
    image = dict(
        hidden_size=192, intermediate_size=768, num_hidden_layers=5, num_attention_heads=4,
        image_size=128, patch_size=16, projection_dim=128,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=128))


def tokens(tokenizer: CLIPTokenizer, texts: list[str], length: int = 77) -> torch.Tensor:
    """Ids (B, length), padded with the end token as Stable Diffusion does, too long texts cut."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def matches(labels: list[tuple[str, ...]], wanted: list[Wanted]) -> np.ndarray:
    """bool (images, captions): whether the caption, None being anything, is true of the image."""
    here, asked = np.array(labels)[:, None], np.array([[w or "" for w in row] for row in wanted])[None]
    return ((here == asked) | (asked == "")).all(-1)


def contrastive_loss(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy over (images, captions) where all true pairs share the target (arXiv:2103.00020)."""
    true = true.float()
    by_image = (true / true.sum(1, keepdim=True) * functional.log_softmax(logits, 1)).sum(1)
    by_text = (true / true.sum(0, keepdim=True) * functional.log_softmax(logits, 0)).sum(0)
    return -(by_image.mean() + by_text.mean()) / 2


def augmented(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirrored by half, moved by up to 6 px; (B, 3, 128, 128)."""
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    return torch.roll(functional.pad(pixels, (6,) * 4, mode="replicate"), tuple(rng.integers(-6, 7, 2)), (2, 3))[
        ..., 6:-6, 6:-6
    ]


def text_features(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> torch.Tensor:
    """Unit features (N, D) of texts of at most 24 tokens."""
    ids = tokens(tokenizer, texts, length=24).to(device)
    return functional.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=1)


class ClipLoss:
    """One step's loss: a batch of the world's pictures, each with a caption of its own. Both towers learn."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, work: Path, plan: Plan, device: torch.device):
        self.model, self.tokenizer, self.plan, self.device = model, tokenizer, plan, device
        self.pool = Pool(work / "pictures")

    def __call__(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([2, step])
        chosen = rng.integers(len(self.pool), size=self.plan.batch)
        labels = self.pool.labels(chosen)
        wanted = [captions.leave_out(rng, *label) for label in labels]
        pixels = augmented(vae.pixels(self.pool.pictures(chosen)), rng).to(self.device)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        with torch.autocast(self.device.type, torch.bfloat16):
            texts = [captions.phrase(rng, *w) for w in wanted]
            known = text_features(self.model, self.tokenizer, texts, self.device)
            images = functional.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=1)
        logits = self.model.logit_scale.exp() * images.float() @ known.float().T
        return contrastive_loss(logits, torch.from_numpy(matches(labels, wanted)).to(self.device))
