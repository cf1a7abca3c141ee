"""(IA)³: learnt scales of activations (arXiv:2205.05638)."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator

from sdlora.adapters.method import Method, validate_targets
from sdlora.adapters.state import ModuleState

if TYPE_CHECKING:
    import torch

FEED_FORWARD = (".ff.net.2", ".mlp.fc2")
"""Layers whose input is scaled, as the paper has it (section 3.3); of the others the output is."""


class Ia3(Method):
    """A scale for each channel of keys, values and what is between the layers of a feed-forward net."""

    method: Literal["ia3"] = "ia3"

    targets: Annotated[str, AfterValidator(validate_targets)] = "ia3"
    """Layers to adapt: `ia3` is the paper's choice; any other group or path is allowed."""

    def init_state(self, path: str, base: Any, generator: "torch.Generator") -> ModuleState:
        """No difference to a scale of 1."""
        import torch

        by_input = path.endswith(FEED_FORWARD)
        count, beside = base.weight.shape[1 if by_input else 0], base.weight.ndim - 2
        scale = torch.zeros(1, count, *[1] * beside) if beside else torch.zeros(count)
        return ModuleState({"input_scale" if by_input else "output_scale": scale})
