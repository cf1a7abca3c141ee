"""The training loop that diffusers' documentation teaches, to measure ours against.

DreamBooth with LoRA (https://huggingface.co/docs/diffusers/training/dreambooth, and its sister
https://huggingface.co/docs/diffusers/training/lora), in our own words: every step decodes, resizes and cuts its
files, runs the VAE and the text encoder, stacks the class pictures onto the batch, and reads its loss back.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from PIL import Image, ImageOps
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from sdlora.adapters import attach
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.adapters.targets import classic_prefix
from sdlora.config import TrainConfig
from sdlora.formats.storage import DTYPES

UNET_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
OUR_TARGETS = "attention"
"""Targets of the two lists above in our settings."""

ADAPTER = "reference"
"""Name under which PEFT keeps the adapter."""

Item = dict[str, torch.Tensor]


def files(folder: Path) -> list[Path]:
    """The pictures in ``folder``, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))


def captioned(folder: Path, prompt: str) -> tuple[list[Path], list[str]]:
    """The pictures in ``folder`` and what is said of each: its own caption file, or ``prompt``."""
    paths = files(folder)
    captions = (path.with_suffix(".txt") for path in paths)
    return paths, [text.read_text(encoding="utf-8").strip() if text.exists() else prompt for text in captions]


class DreamBoothDataset(Dataset):
    """An instance picture and a class picture under one number, each decoded anew whenever it is asked for."""

    def __init__(self, sides: Sequence[tuple[list[Path], list[str]]], tokenizer: Any, size: int):
        self.sides, self.tokenizer, self.size = sides, tokenizer, size

    def __len__(self) -> int:
        return max(len(paths) for paths, _ in self.sides)

    def __getitem__(self, index: int) -> list[Item]:
        return [
            {"pixels": self._pixels(paths[index % len(paths)]), "ids": self._ids(prompts[index % len(paths)])}
            for paths, prompts in self.sides
        ]

    def _pixels(self, path: Path) -> torch.Tensor:
        """(3, size, size) in [-1, 1]: the shorter side made ``size``, a square cut somewhere."""
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        scale = self.size / min(picture.size)
        width, height = (max(self.size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = random.randint(0, width - self.size), random.randint(0, height - self.size)
        picture = picture.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1

    def _ids(self, prompt: str) -> torch.Tensor:
        """(1, L) int64."""
        length = self.tokenizer.model_max_length
        options = {"truncation": True, "padding": "max_length", "max_length": length, "return_tensors": "pt"}
        return self.tokenizer(prompt, **options).input_ids


def collate(items: Sequence[list[Item]]) -> Item:
    """All instance pictures, then all class pictures: one forward pass serves both."""
    ordered = [item for side in zip(*items, strict=True) for item in side]
    pixels = torch.stack([item["pixels"] for item in ordered]).to(memory_format=torch.contiguous_format).float()
    return {"pixels": pixels, "ids": torch.cat([item["ids"] for item in ordered])}


class ReferenceLoop:
    """The documentation's loop for ``config``'s data and settings, over the model in ``folder`` (or a hub id)."""

    def __init__(self, config: TrainConfig, folder: str, precision: str):
        self.config = config
        on_cpu = config.train.device == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision.replace("fp32", "no"))
        self.dtype: torch.dtype = getattr(torch, DTYPES[precision])
        self._load(folder)
        self._add_adapters()
        self.parameters = [p for m in (self.unet, self.text_encoder) for p in m.parameters() if p.requires_grad]
        rate, section = config.train.learning_rate, config.optimizer
        betas = (section.beta1, section.beta2)
        optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=betas, weight_decay=section.weight_decay)
        scheduler = get_scheduler("constant", optimizer=optimizer)
        self.unet, self.text_encoder, self.optimizer, self.loader, self.lr_scheduler = self.accelerator.prepare(
            self.unet, self.text_encoder, optimizer, self._loader(), scheduler
        )
        self.unet.train()
        self.text_encoder.train()
        self._batches = self._endless()

    def _load(self, folder: str) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        self.tokenizer, self.vae = pipeline.tokenizer, pipeline.vae
        self.unet, self.text_encoder = pipeline.unet, pipeline.text_encoder
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        for module in (self.vae, self.text_encoder, self.unet):
            module.requires_grad_(False)
            module.to(self.accelerator.device, dtype=self.dtype)

    def adapter(self) -> AdapterState:
        """Return the adapter as it is now, read from PEFT's layers."""
        key, modules = attach.peft_key(ADAPTER), {}
        for component, model in (("unet", self.unet), ("text_encoder", self.text_encoder)):
            for path, layer in model.named_modules():
                if isinstance(layer, LoraLayer):
                    tensors = {"down": layer.lora_A[key].weight, "up": layer.lora_B[key].weight}
                    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
                    modules[f"{component}.{classic_prefix(model)}{path}"] = ModuleState(copies, layer.lora_alpha[key])
        return build_adapter_state(modules)

    def _add_adapters(self) -> None:
        rank = self.config.adapter.rank
        for module, targets in ((self.unet, UNET_TARGETS), (self.text_encoder, TEXT_TARGETS)):
            lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
            module.add_adapter(lora, adapter_name=attach.peft_key(ADAPTER))
        if self.dtype != torch.float32:
            cast_training_params([self.unet, self.text_encoder], dtype=torch.float32)

    def _loader(self) -> DataLoader:
        data, prior = self.config.data, self.config.prior
        assert data.resolution is not None
        sides = [captioned(data.folder, data.prompt)]
        if prior.weight:
            assert prior.folder is not None
            sides.append(captioned(prior.folder, prior.class_prompt))
        dataset = DreamBoothDataset(sides, self.tokenizer, data.resolution)
        return DataLoader(dataset, batch_size=self.config.train.batch_size, shuffle=True, collate_fn=collate)

    def _endless(self) -> Iterator[Item]:
        while True:
            yield from self.loader

    def step(self) -> float:
        """One optimizer step; its loss."""
        batch = next(self._batches)
        latents = self.vae.encode(batch["pixels"].to(self.accelerator.device, dtype=self.dtype)).latent_dist.sample()
        latents = latents * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        count = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, count, (len(latents),), device=latents.device).long()
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        hidden = self.text_encoder(batch["ids"].to(self.accelerator.device), return_dict=False)[0]
        predicted = self.unet(noisy, timesteps, hidden, return_dict=False)[0]

        predicted, target, weight = predicted.float(), noise.float(), self.config.prior.weight
        if weight:
            predicted, predicted_prior = predicted.chunk(2)
            target, target_prior = target.chunk(2)
        loss = functional.mse_loss(predicted, target)
        if weight:
            loss = loss + weight * functional.mse_loss(predicted_prior, target_prior)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, self.config.train.max_grad_norm)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        return loss.detach().item()
