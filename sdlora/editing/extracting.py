"""Extract the difference of two models as an adapter."""

from collections.abc import Callable

from torch import Tensor

from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.adapters.targets import ALL_LAYERS, select_layers
from sdlora.editing.low_rank import Cut, factorize_matrix
from sdlora.errors import ConfigError, MismatchError, NonFiniteError
from sdlora.events import OnProgress, unwatched
from sdlora.families import FAMILIES
from sdlora.families.layer_weights import TensorLocation, locate_tensors
from sdlora.families.meta_model import build_meta_model
from sdlora.formats.metadata import base_metadata

UNCHANGED = {"float32": 1e-6, "float16": 4e-4, "bfloat16": 4e-3}
"""Share of its norm below which a layer's difference counts as rounding, by the coarser of the two files' types: fp16
alone moves it by 2e-4, bf16 by 1.7e-3."""


def extract(
    base: str,
    tuned: str,
    cut: Cut,
    targets: str = ALL_LAYERS,
    text_encoder: bool = True,
    on_progress: OnProgress = unwatched,
    notice: Callable[[str], object] = str,
) -> AdapterState:
    """Return the LoRA that best approximates the change from ``base`` to ``tuned``: W_tuned - W_base of each layer, cut
    (``Cut``).

    Both are folders, single files or hub ids, and are read a layer at a time. Layers that are the same in both are left
    out, which is reported to ``notice``, as are layers beyond the ``targets`` that differ too. Raises ModelError,
    ConfigError for targets that name no layer or if nothing differs, MismatchError for models of different
    architectures.
    """
    cut.check()
    family, models = build_meta_model(base)
    paths = select_layers(models, targets, text_encoder)
    every = list(dict.fromkeys([*paths, *select_layers(models, ALL_LAYERS, text_encoder)]))
    before, after = locate_tensors(base, every), locate_tensors(tuned, every)
    made: dict[str, ModuleState] = {}
    taken, beyond = 0.0, []
    for number, path in enumerate(every):
        change = _change(path, before[path], after[path])
        if change is not None and path in paths:
            found = factorize_matrix(change.flatten(1))
            made[path] = found.module(cut.parts(found.values), tuple(change.shape[2:]))
            taken += float(change.norm() ** 2)
        elif change is not None:
            beyond.append(float(change.norm() ** 2))
        on_progress(number + 1, len(every))
    if not made:
        raise ConfigError(f"{tuned}: is the same as {base} in all {len(paths)} layers; there is nothing to extract")
    if len(made) < len(paths):
        notice(f"{len(paths) - len(made)} of {len(paths)} layers are the same in both models and are left out")
    if beyond:
        share = sum(beyond) / (taken + sum(beyond))
        notice(f"{len(beyond)} layers beyond {targets} differ too, with {share:.0%} of the squared norm: left out")
    return build_adapter_state(made, _metadata(family))


def _change(path: str, before: TensorLocation, after: TensorLocation) -> Tensor | None:
    """Return W_tuned - W_base in float32; None if it is only rounding. Raises MismatchError, NonFiniteError."""
    first, second = before.read(), after.read()
    if first.shape != second.shape:
        raise MismatchError(f"{path}: the base's is {tuple(first.shape)}, the tuned model's {tuple(second.shape)}")
    coarser = max(UNCHANGED.get(str(tensor.dtype).removeprefix("torch."), 0.0) for tensor in (first, second))
    change = second.float() - first.float()
    if not change.isfinite().all():
        raise NonFiniteError(f"{path}: one of the models is not finite there; take others")
    return change if change.norm() > coarser * first.float().norm() else None


def _metadata(family: str) -> dict[str, str]:
    """Return the header for bases of ``family``, of the first prediction type that it has."""
    bases = FAMILIES[family].adapter_naming.bases if family in FAMILIES else {}
    version = next((base_metadata(family, prediction) for prediction in bases), {})
    return {**version, "sdlora_extracted": "True"}
