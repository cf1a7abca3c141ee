"""What an adapter's tensors mean: which method they are, and the update of the layer's weight that they stand for.

W' = W + s · ΔW for every method, with W (out, in, ...) and s the scale at which the adapter is used. The tensors' names
are those of a ``ModuleState``; ``unscaled_delta`` and ``delta_weight`` are the published formulas and nothing else:
live layers, files and tools are all checked against them.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from sdlora.errors import FormatError

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, "torch.Tensor"]


class ParamLayout(NamedTuple):
    """How the tensors of one method look."""

    required: tuple[tuple[str, ...], ...]
    """Of each of these, one is there (names joined by ``+`` come together)."""
    optional: tuple[str, ...]
    ranked: tuple[str, ...]
    """Tensors whose first side is the rank; none of them there: there is no rank, and alpha means nothing."""
    leading: tuple[str, ...]
    """Of these the first that is there: ΔW is proportional to it."""


TINY = 1e-24
"""The square of the least length that DoRA divides by: outputs whose weights are all zero stay so."""

PARAM_LAYOUTS: Mapping[str, ParamLayout] = {
    "lora": ParamLayout((("down",), ("up",)), ("mid",), ("down",), ("up",)),
    "dora": ParamLayout((("down",), ("up",), ("magnitude", "input_magnitude")), ("mid",), ("down",), ("up",)),
    "loha": ParamLayout(
        (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)), ("hada_t1", "hada_t2"), ("hada_w1_b",),
        ("hada_w1_a",),
    ),
    "lokr": ParamLayout(
        (("lokr_w1", "lokr_w1_a+lokr_w1_b"), ("lokr_w2", "lokr_w2_a+lokr_w2_b")), ("lokr_t2",),
        ("lokr_w2_b", "lokr_w1_b"), ("lokr_w1", "lokr_w1_a"),
    ),
    "ia3": ParamLayout((("output_scale", "input_scale"),), (), (), ("output_scale", "input_scale")),
    "full": ParamLayout((("diff",),), ("diff_b",), (), ("diff",)),
}  # fmt: skip
"""By method. Shapes, with r the rank:

lora    down (r, in, ...), up (out, r); with ``mid`` (r, r, ...), the Tucker form of a convolution, down is (r, in).
        arXiv:2106.09685, section 4.1; LoCon and its Tucker form: LyCORIS, arXiv:2309.14859, appendix A.
dora    the same, and magnitude (out,); or, as some files have it, input_magnitude (in,). arXiv:2402.09353, eq. 5.
loha    hada_w1_a, hada_w2_a (out, r), hada_w1_b, hada_w2_b (r, in · kernel); Tucker: ..._a (r, out), ..._b (r, in),
        hada_t1, hada_t2 (r, r, ...). FedPara, arXiv:2108.06098, eq. 2.
lokr    lokr_w1 (a, c), lokr_w2 (b, d, ...) with out = a · b and in = c · d, either one as a product ..._a (., r) and
        ..._b (r, .); Tucker: lokr_w2_a (r, b), lokr_w2_b (r, d), lokr_t2 (r, r, ...). KronA, arXiv:2212.10650.
ia3     output_scale (out,) or input_scale (in,): by how much the scale differs from 1; of a convolution (1, out, 1, 1)
        or (1, in, 1, 1), as LyCORIS keeps it. arXiv:2205.05638, section 3.3.
full    diff, of the weight's shape, and diff_b (out,) of the bias.
"""


def method_of(tensors: Collection[str]) -> str:
    """The method whose tensors these are, whole or not. Raises FormatError for names of none, or of several."""
    found = [method for method in PARAM_LAYOUTS if tensors and set(tensors) <= tensor_names(method)]
    if not found:
        raise FormatError(f"{', '.join(sorted(tensors))} do not go together: they are of several methods")
    return found[0]


def tensor_names(method: str) -> set[str]:
    """The names of all tensors that a layer of ``method`` can have."""
    form = PARAM_LAYOUTS[method]
    return {name for ways in form.required for way in ways for name in way.split("+")} | {*form.optional}


def missing_tensors(tensors: "Tensors") -> list[str]:
    """Names of the tensors that a layer lacks to be one of its method."""
    lacks: list[str] = []
    for ways in PARAM_LAYOUTS[method_of(tensors)].required:
        if not any(set(way.split("+")) <= tensors.keys() for way in ways):
            lacks += [name for name in ways[-1].split("+") if name not in tensors]
    return lacks


def rank(tensors: "Tensors") -> int | None:
    """The rank of a layer's update; None for a method, or a layer, that has none."""
    ranked = PARAM_LAYOUTS[method_of(tensors)].ranked
    return next((int(tensors[name].shape[0]) for name in ranked if name in tensors), None)


def leading_tensor(tensors: "Tensors") -> str:
    """The name of a tensor to which ΔW is proportional."""
    return next(name for name in PARAM_LAYOUTS[method_of(tensors)].leading if name in tensors)


def layer_size(tensors: "Tensors") -> tuple[int | None, int | None]:
    """Outputs, and inputs times the kernel's places, of the layer that these are for; None where they do not tell."""
    method = method_of(tensors)
    if method == "ia3":
        own = {name: tensor.numel() for name, tensor in tensors.items()}
        return own.get("output_scale"), own.get("input_scale")
    shape = unscaled_delta({name: tensor.to("meta") for name, tensor in tensors.items()}).shape
    return shape[0], math.prod(shape[1:])


def unscaled_delta(tensors: "Tensors") -> "torch.Tensor":
    """What ``tensors`` multiply out to (out, in, ...), without alpha / rank; of DoRA the low-rank part alone.

    LoHa without Tucker tensors gives (out, in · kernel). Raises ValueError for (IA)³, which scales a weight.
    """
    return _DELTAS[method_of(tensors)](tensors)


def delta_weight(tensors: "Tensors", scale: float, weight: "torch.Tensor") -> "torch.Tensor":
    """ΔW, float32, of the shape of the base's ``weight`` (out, in, ...); ``scale`` is alpha / rank."""
    import torch

    method, weight = method_of(tensors), weight.float()
    own = {name: tensor.to(weight.device, torch.float32) for name, tensor in tensors.items()}
    if method == "ia3":
        by_output = "output_scale" in own
        shape = (-1, *[1] * (weight.ndim - 1)) if by_output else (1, -1, *[1] * (weight.ndim - 2))
        return weight * own["output_scale" if by_output else "input_scale"].view(shape)
    change = scale * unscaled_delta(own).reshape(weight.shape)
    if method != "dora":
        return change
    axis = 0 if "magnitude" in own else 1
    changed, view = weight + change, [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    norm = changed.square().sum([dim for dim in range(weight.ndim) if dim != axis], keepdim=True).clamp(min=TINY).sqrt()
    return own["input_magnitude" if axis else "magnitude"].view(view) * changed / norm - weight


def _low_rank(tensors: "Tensors") -> "torch.Tensor":
    import torch

    down, up = tensors["down"], tensors["up"].flatten(1)
    if "mid" in tensors:
        return torch.einsum("op,pq...,qi->oi...", up, tensors["mid"], down.flatten(1))
    return (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def _hadamard(tensors: "Tensors") -> "torch.Tensor":
    import torch

    def factor(number: int) -> "torch.Tensor":
        a, b = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
        core = tensors.get(f"hada_t{number}")
        return a @ b if core is None else torch.einsum("po,pq...,qi->oi...", a, core, b)

    return factor(1) * factor(2)


def _kronecker(tensors: "Tensors") -> "torch.Tensor":
    import torch

    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    if "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    elif "lokr_t2" in tensors:
        factors = tensors["lokr_w2_a"], tensors["lokr_t2"], tensors["lokr_w2_b"]
        second = torch.einsum("po,pq...,qi->oi...", *factors)
    else:
        second = tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())


def _no_delta(tensors: "Tensors") -> "torch.Tensor":
    raise ValueError("(IA)³ has no update of its own: it scales the base's weight")


_DELTAS: "Mapping[str, Callable[[Tensors], torch.Tensor]]" = {
    "lora": _low_rank,
    "dora": _low_rank,
    "loha": _hadamard,
    "lokr": _kronecker,
    "ia3": _no_delta,
    "full": lambda tensors: tensors["diff"],
}
