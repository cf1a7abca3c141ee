"""The weights of a base's layers, where an adapter's update depends on them: read one by one."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sdlora.adapters.base import AdapterState
from sdlora.adapters.fit import require_compatible

if TYPE_CHECKING:
    import torch

Weights = Callable[[str], "torch.Tensor | None"]
"""The base's weight of a layer by its classic path; None where no base is named."""


def weights_of(base: str, paths: Iterable[str]) -> Weights:
    """A reader of the layers at ``paths`` in ``base`` (a folder, a file or a hub id); of none if ``base`` is empty.

    Raises ModelError for what is no base, MismatchError if it has no such layer.
    """
    if not base:
        return lambda path: None
    from sdlora.families.weights import locate_tensors

    found = locate_tensors(base, list(paths))
    return lambda path: found[path].read().float()


def weights_for(base: str, *states: AdapterState) -> Weights:
    """A reader of the layers of ``states`` in ``base``. Raises MismatchError if one of them does not fit it."""
    if base:
        from sdlora.families.skeleton import build_meta_model

        models = build_meta_model(base).models
        for state in states:
            require_compatible(models, state)
    return weights_of(base, dict.fromkeys(path for state in states for path in state.modules))
