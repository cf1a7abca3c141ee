"""Keys of sd-scripts' files, derived from the models' layouts, independent of the code under test.

networks/lora.py in github.com/kohya-ss/sd-scripts: linear layers and 1 x 1 convolutions in Transformer2DModel, and
with a ``conv_dim`` all of ResnetBlock2D, Downsample2D and Upsample2D; in text encoders CLIPAttention and CLIPMLP. The
layouts are those of the released models' configs (SDXL's: arXiv:2307.01952, table 1). SDXL's UNet has the names of its
original code.
"""

from collections.abc import Iterator

DEPTHS = {"sd1": (1, 1, 1, 0), "sd2": (1, 1, 1, 0), "sdxl": (0, 2, 10)}
"""Transformer blocks of each attention, by level from the top; the middle has those of the last level that has any."""
WIDTHS = {"sd1": (320, 640, 1280, 1280), "sd2": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}
DOWN, UP = 2, 3
"""Resnets a level, on the way down and up."""
TEXT = {
    "sd1": {"lora_te": 12},
    "sd2": {"lora_te": 23},
    "sdxl": {"lora_te1": 12, "lora_te2": 32},
}
"""Prefix and layers of each text encoder; SD 2.x reads the last layer but one, and the last is not there."""

Kernels = dict[str, int]
"""Kernel sizes by the stem of a layer's keys: 0 for a linear layer."""


def unet(family: str, conv: bool = False) -> Kernels:
    """Return the adapted layers of the UNet; with ``conv`` those of a ``conv_dim`` too."""
    walk = _sgm if family == "sdxl" else _diffusers
    found: Kernels = {}
    for stem, kind, size in walk(family):
        if kind == "attention":
            found |= _attention(stem, size, kernel=1 if family == "sd1" else 0)
        elif conv and kind == "resnet":
            found |= _resnet(stem, bool(size), sgm=family == "sdxl")
        elif conv and kind == "sampler":
            found[stem] = 3
    return found


def text(family: str) -> Kernels:
    """Return the adapted layers of the text encoders."""
    layers = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")
    return {
        f"{prefix}_text_model_encoder_layers_{number}_{layer}": 0
        for prefix, count in TEXT[family].items()
        for number in range(count)
        for layer in layers
    }


def _attention(stem: str, depth: int, kernel: int) -> Kernels:
    found = {f"{stem}_proj_in": kernel, f"{stem}_proj_out": kernel}
    for number in range(depth):
        block = f"{stem}_transformer_blocks_{number}"
        for attention in ("attn1", "attn2"):
            found |= {f"{block}_{attention}_{layer}": 0 for layer in ("to_q", "to_k", "to_v", "to_out_0")}
        found |= {f"{block}_ff_net_0_proj": 0, f"{block}_ff_net_2": 0}
    return found


def _resnet(stem: str, shortcut: bool, sgm: bool) -> Kernels:
    names = ("in_layers_2", "out_layers_3", "emb_layers_1", "skip_connection")
    first, second, time, skip = names if sgm else ("conv1", "conv2", "time_emb_proj", "conv_shortcut")
    found = {f"{stem}_{first}": 3, f"{stem}_{second}": 3, f"{stem}_{time}": 0}
    return found | ({f"{stem}_{skip}": 1} if shortcut else {})


def _diffusers(family: str) -> Iterator[tuple[str, str, int]]:
    """(stem, kind, size) of each part: an attention's depth; 1 for a resnet whose width changes."""
    depths, widths = DEPTHS[family], WIDTHS[family]
    levels, before = len(widths), widths[0]
    for level in range(levels):
        block = f"lora_unet_down_blocks_{level}"
        for number in range(DOWN):
            yield f"{block}_resnets_{number}", "resnet", int(before != widths[level])
            before = widths[level]
            if depths[level]:
                yield f"{block}_attentions_{number}", "attention", depths[level]
        if level < levels - 1:
            yield f"{block}_downsamplers_0_conv", "sampler", 0
    yield "lora_unet_mid_block_resnets_0", "resnet", 0
    yield "lora_unet_mid_block_attentions_0", "attention", max(depths)
    yield "lora_unet_mid_block_resnets_1", "resnet", 0
    for level in range(levels):
        block, depth = f"lora_unet_up_blocks_{level}", depths[levels - 1 - level]
        for number in range(UP):
            yield f"{block}_resnets_{number}", "resnet", 1  # What came down is put beside what goes up.
            if depth:
                yield f"{block}_attentions_{number}", "attention", depth
        if level < levels - 1:
            yield f"{block}_upsamplers_0_conv", "sampler", 0


def _sgm(family: str) -> Iterator[tuple[str, str, int]]:
    """The same, counted as the original code counts: every entry of its lists of blocks, from ``conv_in`` on."""
    depths, widths = DEPTHS[family], WIDTHS[family]
    place, before = 0, widths[0]
    for level, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for _ in range(DOWN):
            place += 1
            yield f"lora_unet_input_blocks_{place}_0", "resnet", int(before != width)
            before = width
            if depth:
                yield f"lora_unet_input_blocks_{place}_1", "attention", depth
        if level < len(widths) - 1:
            place += 1
            yield f"lora_unet_input_blocks_{place}_0_op", "sampler", 0
    yield "lora_unet_middle_block_0", "resnet", 0
    yield "lora_unet_middle_block_1", "attention", depths[-1]
    yield "lora_unet_middle_block_2", "resnet", 0
    place = 0
    for level, depth in enumerate(reversed(depths)):
        for number in range(UP):
            parts = 1
            yield f"lora_unet_output_blocks_{place}_0", "resnet", 1
            if depth:
                yield f"lora_unet_output_blocks_{place}_1", "attention", depth
                parts += 1
            if number == UP - 1 and level < len(depths) - 1:
                yield f"lora_unet_output_blocks_{place}_{parts}_conv", "sampler", 0
            place += 1
