"""One training loop for all of the base's networks: AdamW, warm-up and cosine, averaged weights, atomic saves, resume.

Every step draws its randomness from its own number, so an interrupted run goes on as if nothing had happened.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Plan:
    """Length and learning rate: it rises over `warmup` steps, then falls by a cosine to a hundredth."""

    steps: int
    rate: float
    batch: int
    warmup: int = 200
    averaging: float = 0.999
    decay: float = 0.01
    save_seconds: float = 180.0

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _groups(model: torch.nn.Module, decay: float) -> list[dict]:
    """No decay on embeddings, norms and biases: rare tokens keep the embedding they were born with."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or "embed" in n]
    return [
        {"params": [p for n, p in named if p.ndim >= 2 and "embed" not in n], "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def save_atomically(state: dict, path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


class Averaged:
    """The moving average of a model's weights, with a short memory at the start."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.live = [p for p in model.parameters() if p.requires_grad]
        self.weights = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.weights, self.live, 1 - min(self.decay, (step + 1) / (step + 10)))

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        for parameter, weight in zip((p for p in model.parameters() if p.requires_grad), self.weights, strict=True):
            parameter.copy_(weight)


def load_average(path: Path, model: torch.nn.Module) -> int:
    """Put a run's averaged weights into `model`; returns the step they are from."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    average = Averaged(model, 0.0)
    average.weights = state["average"]
    average.copy_to(model)
    return state["step"]


def _resume(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Averaged) -> int:
    """Put all that a run has saved back; returns the step that comes next."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.weights = [w.to(p.device) for w, p in zip(state["average"], average.live, strict=True)]
    return state["step"]


def fit(name: str, model: torch.nn.Module, loss_of: Callable[[int], torch.Tensor], plan: Plan, work: Path) -> None:
    """Train `model` to `plan.steps`, resuming from `work/name.pt`; at the end it holds the averaged weights.

    `loss_of(step)` builds the step's batch and returns its mean loss.
    """
    optimizer = torch.optim.AdamW(_groups(model, plan.decay), lr=plan.rate, betas=(0.9, 0.98), fused=True)
    average, path = Averaged(model, plan.averaging), work / f"{name}.pt"
    first = _resume(path, model, optimizer, average) if path.exists() else 0
    model.train()
    started = saved = told = time.monotonic()
    smooth = None
    for step in range(first, plan.steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(average.live, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        now = time.monotonic()
        if now - told > 15 or step + 1 == plan.steps:
            told, speed = now, (now - started) / (step + 1 - first)
            left = time.strftime("%H:%M:%S", time.gmtime(speed * (plan.steps - step - 1)))
            print(
                f"{name} {step + 1}/{plan.steps} loss {smooth:.4f} {plan.batch / speed:.1f}/s {left} left", flush=True
            )
        if now - saved > plan.save_seconds or step + 1 == plan.steps:
            saved = now
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.weights,
                "step": step + 1,
            }
            save_atomically(state, path)
    average.copy_to(model)
