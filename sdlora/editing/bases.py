"""The weights of a base's layers, where an adapter's update depends on them: read one by one."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sdlora.errors import MismatchError

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
    from sdlora.errors import ModelError
    from sdlora.families.weights import places

    paths = list(paths)
    try:
        found = places(base, paths)
    except ModelError as error:
        if "has no layer" in str(error):
            raise MismatchError(f"{error}; it is for another base") from None
        raise
    return lambda path: found[path].read().float()
