"""The base's denoiser, trained on cached latents with the frozen text tower of the small CLIP."""

from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTokenizer

from tools.pocket import captions
from tools.pocket.clip import tokens
from tools.pocket.fit import Plan
from tools.pocket.pool import CHUNK, Pool, label
from tools.pocket.vae import pixels

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
EMPTY_SHARE = 0.1
"""Share of dropped captions, for classifier-free guidance (arXiv:2207.12598)."""
SNR_GAMMA = 5.0


def build() -> UNet2DConditionModel:
    """10.9 M parameters; attention from 8 x 8 down."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, pool: Pool, folder: Path, device: torch.device, batch: int = 32) -> None:
    """Per chunk one float16 array (CHUNK, 2, 4, 16, 16): mean and deviation of the latents, not yet scaled."""
    folder.mkdir(parents=True, exist_ok=True)
    mark, own = folder / "autoencoder.txt", str(crc32(vae.encoder.conv_in.weight.cpu().float().numpy().tobytes()))
    if mark.exists() and mark.read_text() != own:
        raise ValueError(f"{folder} holds another autoencoder's latents; delete it and encode anew")
    mark.write_text(own)
    for number in tqdm(range(len(pool.chunks)), desc="latents", unit="chunk", mininterval=10):
        path = folder / f"{number:05d}.npy"
        if path.exists():
            continue
        rows = []
        for first in range(0, CHUNK, batch):
            images = pixels(np.array(pool.chunks[number][first : first + batch])).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                latents = vae.encode(images).latent_dist
            rows.append(torch.stack([latents.mean, latents.std], 1).half().cpu().numpy())
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            np.save(file, np.concatenate(rows))
        part.replace(path)


def scaling_factor(folder: Path) -> float:
    """One over the latents' deviation, from the first chunk."""
    return round(1 / float(np.load(folder / "00000.npy")[:, 0].astype(np.float32).std()), 4)


class UnetLoss:
    """One step's loss: epsilon prediction (arXiv:2006.11239), min-SNR weights with gamma 5 (arXiv:2303.09556)."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text: torch.nn.Module,
        tokenizer: CLIPTokenizer,
        work: Path,
        plan: Plan,
        device: torch.device,
    ):
        self.unet, self.text, self.tokenizer, self.plan, self.device = unet, text.eval(), tokenizer, plan, device
        self.folder = work / "latents"
        self.latents: list[np.ndarray] = []
        self.scale = scaling_factor(self.folder)
        self.scheduler = DDPMScheduler(**SCHEDULE)
        alphas_cumprod = self.scheduler.alphas_cumprod
        snr = alphas_cumprod / (1 - alphas_cumprod)
        self.weight = (snr.clamp(max=SNR_GAMMA) / snr).to(device)

    def _batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled latents (B, 4, 16, 16) and the captions' hidden states (B, 77, 128)."""
        if rng.random() < 0.01 or not self.latents:  # more of them may have been encoded meanwhile
            self.latents = [np.load(path, mmap_mode="r") for path in sorted(self.folder.glob("?????.npy"))]
        chosen = rng.integers(len(self.latents) * CHUNK, size=self.plan.batch)
        mean, deviation = np.stack([self.latents[i // CHUNK][i % CHUNK] for i in chosen], 1).astype(np.float32)
        sampled = mean + deviation * rng.standard_normal(mean.shape, np.float32)
        texts = [
            "" if rng.random() < EMPTY_SHARE else captions.phrase(rng, *captions.leave_out(rng, *label(int(i))))
            for i in chosen
        ]
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.text(input_ids=tokens(self.tokenizer, texts).to(self.device)).last_hidden_state
        return torch.from_numpy(sampled).to(self.device) * self.scale, hidden.float()

    def __call__(self, step: int) -> torch.Tensor:
        latents, hidden = self._batch(np.random.default_rng([3, step]))
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(self.device.type, torch.bfloat16):
            predicted = self.unet(noisy, timesteps, hidden).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        return (error * self.weight[timesteps]).mean()
