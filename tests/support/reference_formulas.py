"""W' from an adapter file's own keys by the published formulas, without a line of the program: names, layouts, scales.

What is read: kohya's and LyCORIS's keys (github.com/kohya-ss/sd-scripts, networks/lora.py; LyCORIS, lycoris/modules),
diffusers' keys with PEFT's header, and PEFT's folders.
"""

import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).double() for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def kohya(path: Path, weights: dict[str, torch.Tensor], stems: dict[str, str], scale: float) -> dict[str, torch.Tensor]:
    """Changed weights by stem; ``stems`` gives each base weight's stem (``lora_unet_...``), as kohya calls it."""
    tensors, _ = load(path)
    layers: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        stem, _, name = key.partition(".")
        layers[stem][name] = tensor
    by_stem = {stem: weights[name].double() for name, stem in stems.items()}
    assert layers.keys() <= by_stem.keys()
    return {stem: by_stem[stem] + scale * (_changed(t, by_stem[stem]) - by_stem[stem]) for stem, t in layers.items()}


def _changed(t: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    alpha = float(t["alpha"]) if "alpha" in t else None
    if "on_input" in t:
        view = (1, -1) if bool(t["on_input"]) else (-1, 1)
        return weight * (1 + t["weight"].flatten().view(*view, *[1] * (weight.ndim - 2)))
    if "diff" in t:
        return weight + t["diff"].view(weight.shape)
    if "hada_w1_a" in t:
        rank = t["hada_w1_b"].shape[0]
        product = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return weight + (alpha / rank) * product.view(weight.shape)
    if "lokr_w1" in t:
        second, factor = t.get("lokr_w2"), 1.0
        if second is None:
            second, factor = t["lokr_w2_a"] @ t["lokr_w2_b"], alpha / t["lokr_w2_b"].shape[0]
        first, second = t["lokr_w1"], second.flatten(1)
        product = torch.einsum("ac,bd->abcd", first, second).reshape(len(first) * len(second), -1)
        return weight + factor * product.view(weight.shape)
    down, up = t["lora_down.weight"], t["lora_up.weight"]
    product = up.flatten(1) @ down.flatten(1)
    changed = weight + (alpha / down.shape[0]) * product.view(weight.shape)
    if "dora_scale" not in t:
        return changed
    lengths = t["dora_scale"]
    assert lengths.shape[0] == weight.shape[0] and lengths.ndim == weight.ndim
    norm = changed.flatten(1).pow(2).sum(1).sqrt().view(lengths.shape)
    return changed * (lengths / norm)


def diffusers(path: Path, weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Changed weights by ``component.path`` without ``text_model``."""
    tensors, header = load(path)
    config = json.loads(header["lora_adapter_metadata"])
    return _peft(tensors, weights, scale, lambda component, name: config.get(f"{component}.{name}"))


def peft(folder: Path, weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The same of a PEFT folder, component by component."""
    found: dict[str, torch.Tensor] = {}
    for component in sorted(path.name for path in folder.iterdir()):
        tensors, _ = load(folder / component / "adapter_model.safetensors")
        config = json.loads((folder / component / "adapter_config.json").read_text())
        named = {key.replace("base_model.model", component, 1): tensor for key, tensor in tensors.items()}
        found |= _peft(named, weights, scale, lambda _, name, config=config: config.get(name, config.get("alpha")))
    return found


def _peft(tensors, weights, scale, setting) -> dict[str, torch.Tensor]:
    layers: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        bare = key.removesuffix(".weight")
        path, _, name = bare.rpartition(".")
        layers[path][name] = tensor
    found = {}
    for path, t in layers.items():
        component, _, rest = path.partition(".")
        weight = weights[path].double()
        patterns = setting(component, "alpha_pattern") or {}
        alpha = next(
            (value for pattern, value in patterns.items() if rest.endswith(pattern)), setting(component, "lora_alpha")
        )
        if "ia3_l" in t:
            changed = weight * t["ia3_l"].view(*t["ia3_l"].shape, *[1] * (weight.ndim - t["ia3_l"].ndim))
        elif "lora_A" in t:
            product = (t["lora_B"].flatten(1) @ t["lora_A"].flatten(1)).view(weight.shape)
            changed = weight + alpha / t["lora_A"].shape[0] * product
            if "lora_magnitude_vector" in t:
                norm = changed.flatten(1).norm(dim=1)
                lengths = t["lora_magnitude_vector"].flatten() / norm
                changed = changed * lengths.view(-1, *[1] * (weight.ndim - 1))
        elif "lokr_w1" in t and "lokr_w2" in t:
            rank = max(t["lokr_w2"].shape[:2])
            assert setting(component, "r") == rank or (setting(component, "rank_pattern") or {}).get(rest) == rank
            assert alpha == rank
            changed = weight + torch.kron(t["lokr_w1"], t["lokr_w2"].flatten(1)).view(weight.shape)
        else:
            spelt = {name: tensor for name, tensor in t.items()} | {"alpha": torch.tensor(float(alpha))}
            changed = _changed(spelt, weight)
        found[path] = weight + scale * (changed - weight)
    return found
