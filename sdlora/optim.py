"""Optimizers from kept libraries, and learning-rate schedules that are functions of the step."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from sdlora.errors import ConfigError, missing_package
from sdlora.section import Section

if TYPE_CHECKING:
    import torch


class Optimizer(Section):
    """Optimizer of the adapter's parameters."""

    name: Literal["adamw", "adamw8bit", "prodigy", "lion", "adafactor", "schedulefree"] = "adamw"
    """Optimizer: `adamw`; `adamw8bit` (less memory; needs bitsandbytes); `prodigy` (finds the rate itself: set learning
    rates to 1); `lion` (a third of AdamW's rate); `adafactor` (less memory); `schedulefree` (AdamW whose running
    average is saved, arXiv:2405.15682: with a constant schedule)."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Decoupled weight decay."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the gradients' running mean."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the squared gradients' running mean."""

    @model_validator(mode="after")
    def _averages(self) -> "Optimizer":
        if self.name == "schedulefree" and not self.beta1:
            raise ValueError("schedulefree averages by beta1; give a number above 0, such as 0.9")
        return self

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """The optimizer over ``groups`` (each with ``params`` and ``lr``).

        Raises ConfigError if the library that it comes from is not installed, or cannot do what the groups ask for.
        """
        if self.name == "prodigy" and len({group["lr"] for group in groups}) > 1:
            raise ConfigError(
                "optimizer.name: prodigy moves everything at one rate; leave train.text_encoder_learning_rate unset, "
                "or set it to 0, and adapter.lora_plus_ratio at 1"
            )
        return _BUILDERS[self.name](self, groups)


def _adamw(section: Optimizer, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
    import torch

    betas = (section.beta1, section.beta2)
    return torch.optim.AdamW(groups, betas=betas, weight_decay=section.weight_decay, fused=True)


def _adamw8bit(section: Optimizer, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise missing_package("optimizer.name: adamw8bit", "bitsandbytes", "adamw") from error
    return AdamW8bit(groups, betas=(section.beta1, section.beta2), weight_decay=section.weight_decay)


def _from_pytorch_optimizer(class_name: str, **options: Any) -> Any:
    def build(section: Optimizer, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        import pytorch_optimizer

        betas = (section.beta1, section.beta2)
        cls = getattr(pytorch_optimizer, class_name)
        return cls(groups, betas=betas, weight_decay=section.weight_decay, **options)

    return build


_BUILDERS: Mapping[str, Any] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _from_pytorch_optimizer("Prodigy", bias_correction=True, safeguard_warmup=True),
    "schedulefree": _from_pytorch_optimizer("ScheduleFreeAdamW"),
    "lion": _from_pytorch_optimizer("Lion"),
    # Relative steps would ignore the learning rate that the user set.
    "adafactor": _from_pytorch_optimizer("AdaFactor", relative_step=False, scale_parameter=False),
}


@contextmanager
def averaged_parameters(optimizer: Any) -> Iterator[None]:
    """Swap in the parameters that ``optimizer`` would use for inference, for a ``with`` block.

    For most optimizers they are the current ones. A schedule-free one trains at other points than its average
    (arXiv:2405.15682, eq. 1 to 3). Afterwards the parameters are restored bit for bit: the optimizer's own way back
    rounds, and a run with previews would differ from one without.
    """
    own = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it, and gives every optimizer an `eval`.
    if not hasattr(own, "eval"):
        yield
        return
    before = [(p, p.detach().clone()) for group in own.param_groups for p in group["params"]]
    own.eval()
    try:
        yield
    finally:
        for parameter, value in before:
            parameter.data.copy_(value)
        for group in own.param_groups:
            group["train_mode"] = True


class Schedule(Section):
    """Schedule of the learning rate."""

    name: Literal["constant", "linear", "cosine", "cosine-restarts"] = "constant"
    """Learning-rate schedule: `constant`, `linear` (down to zero), `cosine` (down to zero), or `cosine-restarts`."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises from zero."""

    cycles: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of times that `cosine-restarts` decays to zero."""

    def factor(self, step: int, steps: int) -> float:
        """Return the multiplier (0 to 1) of the learning rate in step ``step`` (from 0) of ``steps``."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.name == "constant":
            return 1.0
        position = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        if self.name == "linear":
            return 1.0 - position
        if self.name == "cosine-restarts":
            position = position * self.cycles % 1.0
        return (1 + math.cos(math.pi * position)) / 2
