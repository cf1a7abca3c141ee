"""The original layout of Stable Diffusion's single files, made from diffusers' parts: the way back of a conversion.

Written after the modules of the original code (LDM's ``openaimodel.py``, ``model.py``; OpenCLIP's ``transformer.py``),
not after diffusers' tables, so that the two check each other.
"""

import json
import re
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sdlora.families.single_file import CONFIGS

LAYERS = 2
"""Residual blocks a level, in every family's UNet."""
RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
State = Mapping[str, Any]


def to_single_file(family: str, states: Mapping[str, State]) -> dict[str, Any]:
    """The tensors of a single file of ``family`` by name, from those of diffusers' parts by part and name."""
    unet = {f"model.diffusion_model.{name}": tensor for name, tensor in unet_names(states["unet"]).items()}
    vae = {f"first_stage_model.{name}": tensor for name, tensor in vae_names(states["vae"]).items()}
    text = states["text_encoder"]
    if family == "sd1":
        return unet | vae | clip("cond_stage_model.transformer.", text)
    if family == "sd2":
        return unet | vae | openclip("cond_stage_model.model.", text | further_layer(text))
    first = clip("conditioner.embedders.0.transformer.", text)
    return unet | vae | first | openclip("conditioner.embedders.1.model.", states["text_encoder_2"])


def write_single_file(path: Path, family: str, pipeline: Any, **save: Any) -> Path:
    """Write the parts of ``pipeline`` as one file; return its path."""

    parts = ("unet", "vae", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else []))
    tensors = to_single_file(family, {part: getattr(pipeline, part).state_dict() for part in parts})
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, **save)
    return path


def write_configs(folder: Path, pipeline: Any) -> Path:
    """Write what a pipeline's configs say, without weights and vocabularies, as the bundled ones are; return it."""
    pipeline.save_pretrained(folder)
    kept = {"config.json", "model_index.json", "scheduler_config.json", "tokenizer_config.json"}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in kept:
            path.unlink()
    return folder


def unet_names(state: State) -> dict[str, Any]:
    return {_unet_name(name, state): tensor for name, tensor in state.items()}


def _unet_name(name: str, state: State) -> str:
    for own, original in ENDS.items():
        if name.startswith(f"{own}."):
            return name.replace(own, original, 1)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, number, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_residual(rest, kind)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    assert found, name
    way, level, kind, number, rest = found.groups()
    first = int(level) * (LAYERS + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + LAYERS + 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":  # It stands behind the level's last attention, if there is one.
        place = 2 if any(other.startswith(f"up_blocks.{level}.attentions") for other in state) else 1
        return f"output_blocks.{first + LAYERS}.{place}.{rest}"
    blocks = f"input_blocks.{first + 1 + int(number)}" if way == "down" else f"output_blocks.{first + int(number)}"
    return f"{blocks}.{int(kind == 'attentions')}.{_residual(rest, kind)}"


def _residual(rest: str, kind: str) -> str:
    own, _, end = rest.partition(".")
    return f"{RESIDUAL[own]}.{end}" if kind == "resnets" else rest


def vae_names(state: State) -> dict[str, Any]:
    levels = 1 + max(int(found[1]) for name in state if (found := re.match(r"encoder\.down_blocks\.(\d)", name)))
    return dict(_vae_entry(name, tensor, levels) for name, tensor in state.items())


def _vae_entry(name: str, tensor: Any, levels: int) -> tuple[str, Any]:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)
    if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        side, own, end = found.groups()
        wide = tensor[:, :, None, None] if own != "group_norm" and end == "weight" else tensor  # a 1 x 1 convolution
        return f"{side}.mid.attn_1.{VAE_ATTENTION[own]}.{end}", wide
    return name, tensor


def clip(prefix: str, state: State) -> dict[str, Any]:
    """CLIP-L as transformers has it, with the positions' numbers that released files hold beside it."""
    tensors = {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    return tensors | {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def openclip(prefix: str, state: State) -> dict[str, Any]:
    """OpenCLIP's own names: the three projections of an attention in one tensor, the last one turned."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    width = bare["final_layer_norm.weight"].shape[0]
    found = {
        "token_embedding.weight": bare["embeddings.token_embedding.weight"],
        "positional_embedding": bare["embeddings.position_embedding.weight"],
        "ln_final.weight": bare["final_layer_norm.weight"],
        "ln_final.bias": bare["final_layer_norm.bias"],
        "text_projection": bare["text_projection.weight"].T if "text_projection.weight" in bare else torch.eye(width),
        "logit_scale": torch.tensor(4.6),
    }
    for name, tensor in bare.items():
        if not (layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)):
            continue
        number, own, end = layer.groups()
        block = f"transformer.resblocks.{number}"
        if own == "self_attn.q_proj":
            parts = [bare[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[f"{block}.attn.in_proj_{end}"] = torch.cat(parts)
        elif own in OPENCLIP:
            found[f"{block}.{OPENCLIP[own]}.{end}"] = tensor
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def further_layer(state: State) -> dict[str, Any]:
    """OpenCLIP-H's last layer, which SD 2.x does not read, and its files hold all the same."""
    numbers = {int(found[1]) for name in state if (found := re.search(r"encoder\.layers\.(\d+)\.", name))}
    last, first = max(numbers) + 1, "encoder.layers.0."
    return {
        name.replace(first, f"encoder.layers.{last}."): tensor.clone()
        for name, tensor in state.items()
        if first in name
    }


def write_header(path: Path, shapes: Mapping[str, Any]) -> Path:
    """A safetensors file that is all header: its tensors have names and shapes, and no bytes."""
    header = {name: {"dtype": "F16", "shape": [*shape], "data_offsets": [0, 0]} for name, shape in shapes.items()}
    content = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    return path


def fill_hub_cache(place: Path, repository: str, folder: Path, revision: str = "main") -> None:
    """Put the files of ``folder`` into the hub's cache ``place``, as a download of ``repository`` leaves them."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    own = place / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, own / "snapshots" / commit)
    (own / "refs").mkdir()
    (own / "refs" / revision).write_text(commit)


@cache
def full_size_shapes(name):
    """Names and shapes of a full-size single file, from the bundled configs."""
    return {key: list(tensor.shape) for key, tensor in to_single_file(name, full_states(name)).items()}


def full_states(name):
    """The parts' tensors on the meta device, by part and name."""
    return {part: module.state_dict() for part, module in full_models(name).items()}


def full_models(name):
    from diffusers import AutoencoderKL

    from sdlora.families.meta_model import build_meta_model

    models = build_meta_model(str(CONFIGS / name)).models
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / name / "vae"))
    return {**models, "vae": vae}


def write_full_size_vocabulary(folder: Path) -> Path:
    """A vocabulary of 49408 pieces of which only the first few are words: the released one is on the hub alone."""
    from transformers import CLIPTokenizer

    from tests.support.tiny_models import tiny_tokenizer

    small = tiny_tokenizer().get_vocab()
    names = sorted((name for name in small if not name.startswith("<|")), key=small.__getitem__)
    names += [f"unused{number}" for number in range(49406 - len(names))]
    vocabulary = {name: number for number, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    return folder
