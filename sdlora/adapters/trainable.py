"""Trained parts of a run, as the training loop sees them: the one protocol for all methods.

There are three kinds: layers added beside frozen weights (``TrainableLayers``), vectors of words added to a
vocabulary, and weights of the base itself (all of them, or the biases alone). The loop, the memory estimate and the
saving of adapters go through ``Trainable``, and know no method by name.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import nn

from sdlora.adapters import attach
from sdlora.adapters.state import AdapterState


@dataclass(frozen=True)
class TrainablePart:
    """One parameter that trains."""

    path: str
    """Classic path of its layer: the first step is the component."""
    name: str
    """Neutral name of the tensor."""
    parameter: nn.Parameter
    learning_rate: float
    weight_decay: float | None = None
    """None: that of the optimizer's settings."""
    first: int = 0
    """First step in which it trains."""
    last: int | None = None
    """Step before which it stops; None: it trains to the end."""

    def trains_at(self, step: int) -> bool:
        return self.first <= step and (self.last is None or step < self.last)

    def ending_at(self, step: int) -> "TrainablePart":
        """The same part, ending at ``step`` at the latest."""
        return replace(self, last=step if self.last is None else min(step, self.last))


class Trainable:
    """Parts that a method has put into live models to train.

    Shapes of parameters stay what they are for the whole run, as an optimizer holds them. Where ranks change, what
    falls away is zero in them, and ``state`` leaves it out.
    """

    def __init__(self, models: attach.Models) -> None:
        self.models = models

    def parts(self, rate: Callable[[str], float]) -> list[TrainablePart]:
        """Everything that trains, in a fixed order. ``rate(path)`` is the learning rate that the settings give."""
        raise NotImplementedError

    def state(self, metadata: Mapping[str, str] | None = None) -> AdapterState:
        """Return what is exported now, on the CPU."""
        raise NotImplementedError

    def assign(self, state: AdapterState) -> None:
        """Continue from an exported ``state``. Raises MismatchError if it is of another layout."""
        raise NotImplementedError

    def disabled(self) -> AbstractContextManager[None]:
        """Return a context, which may be entered again and again, in which the models are the base alone."""
        raise NotImplementedError

    def penalty(self) -> torch.Tensor | None:
        """Return a scalar to add to the loss, once in each step."""
        return None

    def before_step(self, step: int, steps: int) -> None:
        """Prepare the update of ``step`` (from 0) of ``steps``: gradients are averaged, unscaled and clipped."""

    def after_step(self, step: int, steps: int) -> None:
        """Follow up the update of ``step`` (from 0) of ``steps``; not called for a step that was left out."""

    def extra_state(self) -> dict[str, torch.Tensor]:
        """Return what a resume needs beside the parameters."""
        return {}

    def load_extra_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what ``extra_state`` gave. Raises KeyError or ValueError for that of something else."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that train, in the order of ``parts``."""
        return [part.parameter for part in self.parts(lambda path: 0.0)]

    @property
    def size(self) -> attach.AdapterSize:
        """Counts of its layers and parameters, and their share of the models that they are in."""
        layers: dict[str, list[nn.Parameter]] = {}
        for part in self.parts(lambda path: 0.0):
            layers.setdefault(part.path, []).append(part.parameter)
        return attach.size_of(self.models, layers)


class TrainableLayers(Trainable):
    """Adapter layers called ``name`` beside frozen weights."""

    def __init__(self, models: attach.Models, name: str, lr_multiplier: Callable[[str], float]) -> None:
        super().__init__(models)
        self.name, self.lr_multiplier = name, lr_multiplier

    def parts(self, rate: Callable[[str], float]) -> list[TrainablePart]:
        return [
            TrainablePart(path, tensor, parameter, usual * self.lr_multiplier(tensor))
            for path, layer in attach.attached_layers(self.models, self.name)
            for usual in [rate(path)]
            for tensor, parameter in layer.tensors.items()
        ]

    def state(self, metadata: Mapping[str, str] | None = None) -> AdapterState:
        return attach.read_state(self.models, self.name, metadata)

    def assign(self, state: AdapterState) -> None:
        attach.assign_state(self.models, state, self.name)

    def disabled(self) -> AbstractContextManager[None]:
        return attach.DisabledAdapters(self.models)
