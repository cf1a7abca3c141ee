"""Count the bytes that a forward pass saves for the backward pass: the same on every device.

Two counts that know nothing of each other. ``KeptEnergy`` asks autograd, through its hooks, for every tensor that it
saves, and by which layer. ``Alive`` watches every operation and counts what it made and somebody still holds: it sees
too what a custom function holds in other ways. A storage counts once, with all its bytes; weights do not count.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "convolution": (nn.Conv2d,),
    "norm": (nn.GroupNorm, nn.LayerNorm),
    "SiLU": (nn.SiLU,),
    "GEGLU": (GEGLU,),
    "linear": (nn.Linear,),
    "attention": (Attention,),
}
LORA, REST, OTHERWISE = "LoRA", "rest", "not through autograd"
"""``REST`` is what is saved outside of such layers: the inputs of checkpoints, what sums and losses ask for."""


def kind_of(running: list[nn.Module]) -> str:
    """Return the kind of a tensor that is saved while these modules run, the innermost last."""
    for inner, outer in reversed([*zip(running, [None, *running], strict=False)]):
        if isinstance(inner, BaseTunerLayer) or (
            isinstance(outer, BaseTunerLayer) and inner is not getattr(outer, "base_layer", None)
        ):
            return LORA
        for kind, classes in KINDS.items():
            if isinstance(inner, classes):
                return kind
    return REST


@contextmanager
def weightless() -> Iterator[None]:
    """Tensors made here have sizes and storages, but no contents: a full-size model in no memory, at no time.

    Modules stay where they are made: what has no contents cannot be moved.
    """
    with FakeTensorMode(), patch.object(nn.Module, "to", lambda module, *_, **__: module):
        yield


class Kept:
    """Bytes that autograd saves while ``counting``, by kind of layer."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self.models = list(models)
        self.bytes: Counter[str] = Counter()
        self._running: list[nn.Module] = []
        self._seen: dict[int, torch.Tensor] = {}

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    @contextmanager
    def counting(self) -> Iterator["Kept"]:
        own = weights(self.models)
        handles = []
        for model in self.models:
            for module in model.modules():
                handles.append(module.register_forward_pre_hook(lambda module, _: self._running.append(module)))
                handles.append(module.register_forward_hook(self._left, always_call=True))

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            key = storage_of(tensor)
            if key not in own and key not in self._seen:
                self._seen[key] = tensor.detach()  # Held, so that no other storage takes its place.
                self.bytes[kind_of(self._running)] += tensor.untyped_storage().nbytes()
            return tensor

        try:
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def _left(self, *_: Any) -> None:
        self._running.pop()


class Alive(TorchDispatchMode):
    """Storages that were made in this context, and those of them that are still held."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self._own = weights(models)
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and storage_of(tensor) not in self._own:
                storage = tensor.untyped_storage()
                self._made[storage_of(tensor)] = StorageWeakRef(storage), storage.nbytes()
        return made

    @property
    def bytes(self) -> int:
        return sum(size for reference, size in self._made.values() if not reference.expired())


def weights(models: Iterable[nn.Module]) -> set[int]:
    """The storages of all parameters and buffers."""
    return {storage_of(tensor) for model in models for tensor in (*model.parameters(), *model.buffers())}


def storage_of(tensor: torch.Tensor) -> int:
    """Return a number that identifies a tensor's storage."""
    return int(tensor.untyped_storage()._cdata)
