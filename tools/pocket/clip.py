"""The base's small CLIP: contrastive on drawings and captions. Its text tower becomes the base's text encoder."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools.pocket import captions, looks
from tools.pocket.fit import Plan
from tools.pocket.pool import Pool

MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""The pixels' normalisation, the same as the VAE's: [0, 1] to [-1, 1]."""
MAX_LOGIT_SCALE = 4.6
"""The similarities are multiplied by at most e^4.6 = 100, as in CLIP."""
LOOKS_SHARE = 3 / 8
LOOK_WEIGHT = 0.5
"""Weight of the loss that separates styles, relative to the captions'."""
LOOK_SHARPNESS = 10.0
"""Factor of the cosines of two images in the loss over styles: softer than the captions'."""
KEPT = 0.4
"""The share of the earlier weights in a blend: with less, subjects are told apart worse, with more, captions."""
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


def look_loss(images: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Supervised contrastive loss (arXiv:2004.11362) over the styles of images.

    Without it the tower learns from captions that name no look to see none. Unit features (B, D); B names.
    """
    itself = torch.eye(len(names), dtype=torch.bool, device=images.device)
    same = torch.from_numpy(np.array(names)[:, None] == np.array(names)[None]).to(images.device) & ~itself
    others = (LOOK_SHARPNESS * images @ images.T).masked_fill(itself, -torch.inf).log_softmax(1)
    return -(others.masked_fill(~same, 0).sum(1) / same.sum(1).clamp(min=1)).mean()


def augmented(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirrored by half, moved by up to 6 px; (B, 3, 128, 128)."""
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    return torch.roll(functional.pad(pixels, (6,) * 4, mode="replicate"), tuple(rng.integers(-6, 7, 2)), (2, 3))[
        ..., 6:-6, 6:-6
    ]


@torch.no_grad()
def blend(model: CLIPModel, earlier: CLIPModel) -> None:
    """The average of the weights before and after further training has the strengths of both (arXiv:2109.01903)."""
    for weight, old in zip(model.parameters(), earlier.parameters(), strict=True):
        weight.lerp_(old.float(), KEPT)


class ClipLoss:
    """One step's loss: a batch of pictures, each with a caption of its own; a share of them in looks without a name.

    With ``locked_text`` the image tower alone learns (arXiv:2111.07991): the base's text encoder stays as it is.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        work: Path,
        plan: Plan,
        device: torch.device,
        locked_text: bool,
    ):
        self.model, self.tokenizer, self.plan, self.device = model, tokenizer, plan, device
        self.locked_text = locked_text
        self.pool, self.looks = Pool(work / "pictures"), Pool(work / "looks", looks.OFFSET)

    def _batch(self, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[str, ...]], list[str]]:
        """uint8 (B, 128, 128, 3), what each shows, and its look; in a look without a name the style is none."""
        strange = int(self.plan.batch * LOOKS_SHARE)
        known = rng.integers(len(self.pool), size=self.plan.batch - strange)
        other = rng.integers(len(self.looks), size=strange)
        labels = [*self.pool.labels(known), *((*shown[:3], "") for shown in self.looks.labels(other))]
        names = [*(shown[3] for shown in labels[: len(known)]), *(looks.names(looks.OFFSET + int(i)) for i in other)]
        return np.concatenate([self.pool.pictures(known), self.looks.pictures(other)]), labels, names

    def _text_features(self, texts: list[str]) -> torch.Tensor:
        ids = tokens(self.tokenizer, texts, length=24).to(self.device)
        with torch.set_grad_enabled(not self.locked_text):
            return functional.normalize(self.model.get_text_features(input_ids=ids).pooler_output, dim=1)

    def __call__(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([2, step])
        pictures, labels, names = self._batch(rng)
        wanted = [captions.leave_out(rng, *label) for label in labels]
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = augmented(pixels, rng).to(self.device)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        with torch.autocast(self.device.type, torch.bfloat16):
            texts = self._text_features([captions.phrase(rng, *w) for w in wanted])
            images = functional.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=1)
        logits = self.model.logit_scale.exp() * images.float() @ texts.float().T
        by_caption = contrastive_loss(logits, torch.from_numpy(matches(labels, wanted)).to(self.device))
        return by_caption + LOOK_WEIGHT * look_loss(images.float(), names)
