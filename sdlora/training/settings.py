"""Settings of length, speed and precision of training."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sdlora.adapters.targets import parse_pattern_values
from sdlora.data.settings import ImageSet, suggested_steps_together
from sdlora.errors import ConfigError
from sdlora.section import Section

SIZE = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*G(?:i?B)?\s*", re.IGNORECASE)
"""A size of memory."""
MOST_ACCUMULATED = 4096
Rate = Annotated[float, Field(ge=0, le=10)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Weighting = Literal["uniform", "debiased", "p2"]
Timesteps = Literal["uniform", "even", "logit-normal"]
Stop = Literal["never", "plateau", "held_out"]


def _rates(text: str) -> str:
    for pattern, rate in parse_pattern_values(text).items():
        if not 0 <= rate <= 10:
            raise ValueError(f"{pattern}={rate:g}: a learning rate is a number from 0 to 10")
    return text


def _memory(text: str) -> str:
    if text.lower() == "auto":
        return "auto"
    found = SIZE.fullmatch(text)
    if found is None or not 0.001 <= float(found[1]) <= 10_000:
        raise ValueError("give auto, or a size such as 8GB")
    return f"{float(found[1]):g}GB"


class Train(Section):
    """The training loop."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps. Suggested from the number of pictures if neither steps nor epochs are set."""

    epochs: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Passes over all pictures, instead of steps."""

    stop: Stop = "never"
    """End the run early: `never`, at a `plateau` (the loss ratio of trained pictures no longer falls), or if that of
    `held_out` pictures rises (needs `data.validation_share` or `data.validation_folder`). Measures more often, unless
    `monitor.every` says how often. A rate that decays (`linear`, `cosine`) is still high then: set `schedule.name` to
    constant, or train again with as many steps."""

    stop_patience: Annotated[int, Field(ge=1, le=100)] = 3
    """Measurements in a row that have to say so before `stop` ends the run. There are at least four times as many in a
    run, whatever they cost, unless `monitor.every` is set."""

    stop_tolerance: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Difference from the lowest loss ratio so far that counts for `stop`; 1 is the base's loss. At a plateau no
    measurement is lower by more than this, and held-out pictures have risen if all are higher by more than this."""

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Pictures per step, on each device."""

    gradient_accumulation: Annotated[int, Field(ge=1, le=MOST_ACCUMULATED)] = 1
    """Number of batches whose gradients are added up before each step."""

    learning_rate: Rate = 1e-4
    """Learning rate of the UNet's adapter."""

    text_encoder_learning_rate: Rate | None = None
    """Learning rate of the text encoders' adapter; the UNet's if not set, 0 leaves them untrained."""

    learning_rates: Annotated[str, AfterValidator(_rates)] = ""
    """Other learning rates for some layers: `unet.up_blocks=2e-4, *.attn1.*=0`; the longest matching name counts."""

    text_encoder_stop: Annotated[int, Field(ge=0)] | None = None
    """Step after which the text encoders' adapter stays as it is."""

    clip_skip: Annotated[int, Field(ge=1, le=100)] = 1
    """Text-encoder layer that is read, counted back from the one that the base was trained with, which is 1. Bases that
    descend from NovelAI's model take 2. Previews and class pictures follow."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradients, to which longer ones are clipped; 0 turns clipping off."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all randomness: the adapter's initial weights, order, noise, crops, dropout."""

    precision: Precision = "auto"
    """Precision of the frozen base: `auto` is bf16 (or fp16) on CUDA, fp32 elsewhere. Adapters are
    always fp32."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time."""

    offload: bool = False
    """Keep parts that do not train in main memory between uses: the VAE, and text encoders whose outputs are cached.
    Costs a moment at each preview; on a CPU it changes nothing."""

    memory: Annotated[str, AfterValidator(_memory)] | None = None
    """Memory that the run may use: `auto` is the device's free memory, else a size such as `8GB`. Settings that you did
    not set are then chosen to fit, in the order of docs/memory.md, and reported."""

    device: str = "auto"
    """Device to train on: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""

    tensorboard: bool = False
    """Log to TensorBoard too, in the run's folder; needs tensorboard."""

    wandb: bool = False
    """Log to Weights & Biases too; needs wandb. Settings, figures and previews are sent to its servers, unless
    `WANDB_MODE=offline` is set in the environment."""

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set steps or epochs, not both")
        return self

    def require_rate(self) -> None:
        """Raise ConfigError if every learning rate is 0."""
        others = parse_pattern_values(self.learning_rates).values()
        if not any((self.learning_rate, self.text_encoder_learning_rate, *others)):
            raise ConfigError("train.learning_rate: 0, and no other rate is set: nothing would be trained; try 1e-4")

    def planned_steps(self, sets: Sequence[ImageSet], micro_batches: int | None = None, processes: int = 1) -> int:
        """Return the optimizer steps of a run: as set, from epochs, or suggested for the images of each concept.

        ``micro_batches``: of all processes together in an epoch; without padding if not given.
        """
        if self.steps is not None:
            return self.steps
        per_step = self.batch_size * self.gradient_accumulation * processes
        if self.epochs is not None:
            images = sum(one.seen for one in sets)
            batches, each = (images, per_step) if micro_batches is None else (micro_batches, self.gradient_accumulation)
            return max(1, math.ceil(self.epochs * batches / each - 1e-9))  # The last step may begin another epoch.
        return suggested_steps_together(sets, per_step)


class Monitor(Section):
    """Measurements of what a run learns, beside its steps: they change nothing of it."""

    every: Annotated[int, Field(ge=0)] | None = None
    """Steps between measurements of the loss on fixed noise, adapter against base; 0 turns them off. If not set, as
    often as costs about 4% of the run at most, or as `train.stop` needs; else runs too short for that have none."""

    images: Annotated[int, Field(ge=1, le=1000)] = 4
    """Largest number of pictures that each measurement covers, and of held-out ones. One, a sixth of the way, covers
    more, and so does the last one of a long run."""

    timesteps: Annotated[int, Field(ge=1, le=100)] = 3
    """Number of timesteps at which each picture is measured, evenly spread over those that are trained."""


class Loss(Section):
    """The loss that a step minimises."""

    min_snr_gamma: Annotated[float, Field(gt=0, le=100)] | None = None
    """Gamma of Min-SNR weighting (arXiv:2303.09556), 5 is usual; all timesteps count alike if not set."""

    weighting: Weighting = "uniform"
    """Weight of each timestep's error: `uniform`; `debiased` (1/sqrt(SNR), arXiv:2310.08442) or `p2` (1/(1 + SNR),
    arXiv:2204.00227), which both favour the noisier ones. Instead of `min_snr_gamma`."""

    timesteps: Timesteps = "uniform"
    """Distribution of timesteps: `uniform`; `even` (equally often, but spread over the batch and over steps, for less
    gradient noise); `logit-normal` (the middle ones more often, arXiv:2403.03206)."""

    min_timestep: Annotated[int, Field(ge=0, lt=1000)] = 0
    """Smallest timestep that is trained: large ones decide shapes, small ones textures."""

    max_timestep: Annotated[int, Field(ge=0, lt=1000)] | None = None
    """Largest timestep that is trained; the base model's last if not set."""

    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Constant noise added to each channel, for very dark or bright pictures; 0.05 is usual."""

    concept_overlap: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight of a penalty on how alike the adapter changes the words of two concepts, so that each trigger calls its
    own subject alone; try 0.01 if several concepts are confused. For LoRA."""

    @model_validator(mode="after")
    def _one_weighting(self) -> "Loss":
        if self.min_snr_gamma is not None and self.weighting != "uniform":
            raise ValueError("set min_snr_gamma or weighting, not both")
        if self.max_timestep is not None and self.max_timestep < self.min_timestep:
            raise ValueError(f"max_timestep {self.max_timestep} is below min_timestep {self.min_timestep}; raise it")
        return self
