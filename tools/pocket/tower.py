"""CLIP's image tower alone, trained to know the world's things in any look: smaller patches, the text tower locked.

Locked-image tuning the other way round (arXiv:2111.07991): the text tower is the base's text encoder and must stay.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools.pocket import captions, clip, looks, vae
from tools.pocket.fit import Plan
from tools.pocket.pool import Pool

PATCH = 8
"""Side of a patch in pixels: lines and dots are lost in patches of 16."""
LOOK_WEIGHT = 0.5
"""Weight of the loss that separates looks, relative to the captions'."""
LOOK_SHARPNESS = 10.0
"""Factor of the cosines of two images in the loss over looks: softer than the captions'."""
MIDDLE_WEIGHT = 8.0
"""Weight of the loss that keeps the middle layer as a teacher's is: subjects are told apart there."""
GROUP = 4
"""Images of each look in a batch."""
SHARES = {"pictures": 3 / 16, "soft-pictures": 1 / 8, "looks": 3 / 8, "soft-looks": 5 / 16}
"""Shares of the pools in a batch. Soft ones have gone through the autoencoder, as all that a base draws has."""
DROPPED, DROPPING = 0.5, 0.85
"""Share of the patches that the tower does not see (arXiv:2212.00794), in that share of the steps, from the first."""


def begun(model: CLIPModel, patch: int = PATCH) -> CLIPModel:
    """Return a CLIP that begins where ``model`` is, its text tower locked, with patches of another size.

    The kernels are shrunk, the positions interpolated.
    """
    config = CLIPConfig.from_dict(model.config.to_dict())
    before, config.vision_config.patch_size = config.vision_config.patch_size, patch
    made, state = CLIPModel(config), model.state_dict()
    kernel, positions = (f"vision_model.embeddings.{name}.weight" for name in ("patch_embedding", "position_embedding"))
    shrunk = functional.interpolate(state[kernel].float(), size=(patch, patch), mode="area")
    state[kernel] = shrunk * (before / patch) ** 2
    first, rest = state[positions].float().split([1, len(state[positions]) - 1])
    side, larger = round(len(rest) ** 0.5), config.vision_config.image_size // patch
    grid = rest.T.reshape(1, -1, side, side)
    grid = functional.interpolate(grid, size=(larger, larger), mode="bicubic", align_corners=False)
    state[positions] = torch.cat([first, grid.flatten(2)[0].T])
    made.load_state_dict({name: value for name, value in state.items() if "position_ids" not in name}, strict=False)
    made.text_model.requires_grad_(False)
    made.text_projection.requires_grad_(False)
    return made


def soften(
    model: torch.nn.Module, pool: Pool, folder: Path, chunks: int, device: torch.device, batch: int = 32
) -> None:
    """Write the pool's first ``chunks`` once more as they come out of the autoencoder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, chunk in enumerate(pool.chunks[:chunks]):
        path = folder / f"{number:05d}.npy"
        if path.exists():
            continue
        made = []
        for first in range(0, len(chunk), batch):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                true = vae.pixels(chunk[first : first + batch]).to(device)
                pixels = model.decode(model.encode(true).latent_dist.mode()).sample
            levels = (pixels.float().clamp(-1, 1) + 1) * 127.5
            made.append(levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            np.save(file, np.concatenate(made))
        part.replace(path)
        print(f"{folder.name} {number + 1}/{chunks}", flush=True)


def image_features(model: CLIPModel, pixels: torch.Tensor, dropped: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features (B, D) of images that are seen without a share of their patches, and the middle layer's (B, W)."""
    tower = model.vision_model
    patches = tower.embeddings(pixels)
    if dropped:
        count = patches.shape[1] - 1
        order = torch.rand(len(patches), count, device=patches.device).argsort(1)[:, : round(count * (1 - dropped))] + 1
        order = torch.cat([torch.zeros_like(order[:, :1]), order], 1)[..., None].expand(-1, -1, patches.shape[2])
        patches = patches.gather(1, order)
    hidden, layers = tower.pre_layrnorm(patches), tower.encoder.layers
    for number, layer in enumerate(layers, 1):
        hidden = layer(hidden, None)
        if number == len(layers) // 2:
            middle = tower.post_layernorm(hidden[:, 0])
    return functional.normalize(model.visual_projection(tower.post_layernorm(hidden[:, 0])), dim=1), middle


def middle_loss(middle: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine of middle features (B, W) and a teacher's, both seen from the mean of the teacher's."""
    centre = taught.mean(0)
    return 1 - functional.cosine_similarity(middle - centre, taught - centre, dim=1).mean()


def look_loss(images: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Supervised contrastive loss (arXiv:2004.11362) over the looks of images.

    Without it the tower learns from captions that name no look to see none. Unit features (B, D); B names.
    """
    itself = torch.eye(len(names), dtype=torch.bool, device=images.device)
    same = torch.from_numpy(np.array(names)[:, None] == np.array(names)[None]).to(images.device) & ~itself
    others = (LOOK_SHARPNESS * images @ images.T).masked_fill(itself, -torch.inf).log_softmax(1)
    return -(others.masked_fill(~same, 0).sum(1) / same.sum(1).clamp(min=1)).mean()


def undecided(labels: list[tuple[str, ...]], wanted: list[clip.Wanted]) -> np.ndarray:
    """bool (images, captions): true but for a colour that the image, whose look has no true ones, cannot show."""
    lost = np.array([not colour for _, colour, _, _ in labels])[:, None]
    named = np.array([colour is not None for _, colour, _, _ in wanted])[None]
    without = [(thing, None, place, style) for thing, _, place, style in wanted]
    return lost & named & clip.matches(labels, without)


class TowerLoss:
    """One step's loss: pictures of the world and in looks, as drawn and softened, each with a caption of its own."""

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, work: Path, plan: Plan, device: torch.device,
        teacher: CLIPModel | None = None,
    ):  # fmt: skip
        self.model, self.tokenizer, self.plan, self.device, self.teacher = model, tokenizer, plan, device, teacher
        self.pools = {name: Pool(work / name, looks.OFFSET if "looks" in name else 0) for name in SHARES}

    def _batch(self, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[str, ...]], list[str]]:
        """uint8 (B, 128, 128, 3), what each shows ("" where no word is true of it), and the names of their looks."""
        pixels, labels, names = [], [], []
        for name, share in SHARES.items():
            pool, count = self.pools[name], round(self.plan.batch * share)
            if "looks" in name:
                groups = rng.integers(len(pool) // looks.SHARED, size=-(-count // GROUP))
                first = groups.repeat(GROUP)[:count] * looks.SHARED
                chosen = first + rng.integers(looks.SHARED, size=count)
                for index, (thing, colour, place, _) in zip(pool.offset + chosen, pool.labels(chosen), strict=True):
                    labels.append((thing, colour if looks.keeps_colour(int(index)) else "", place, ""))
                    names.append(str(looks.look_number(int(index))))
            else:
                chosen = rng.integers(len(pool), size=count)
                labels += pool.labels(chosen)
                names += [style for *_, style in pool.labels(chosen)]
            pixels.append(pool.pictures(chosen))
        return np.concatenate(pixels), labels, names

    def __call__(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([3, step])
        pictures, labels, names = self._batch(rng)
        wanted = []
        for thing, colour, place, style in labels:
            _, *said = captions.leave_out(rng, thing, colour, place, style)
            wanted.append((thing, *(word or None for word in said)))
        pixels = clip.augmented(vae.pixels(pictures), rng).to(self.device)
        dropped = DROPPED if step < DROPPING * self.plan.steps else 0.0
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=clip.MAX_LOGIT_SCALE)
                phrases = [captions.phrase(rng, *words) for words in wanted]
                texts = clip.text_features(self.model, self.tokenizer, phrases, self.device)
            images, middle = image_features(self.model, pixels, dropped)
            images = images.float()
        logits = self.model.logit_scale.exp() * images @ texts.float().T
        true, unclear = (torch.from_numpy(of(labels, wanted)).to(self.device) for of in (clip.matches, undecided))
        by_caption = clip.contrastive_loss(logits.masked_fill(unclear & ~true, -1e4), true)
        loss = by_caption + LOOK_WEIGHT * look_loss(images, names)
        if self.teacher is None:
            return loss
        plain = torch.tensor([bool(style) for *_, style in labels], device=self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
            _, taught = image_features(self.teacher, pixels[plain])
        return loss + MIDDLE_WEIGHT * middle_loss(middle[plain].float(), taught.float())
