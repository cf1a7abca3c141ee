"""Names of a UNet's blocks in SDXL's original code (sgm), which kohya's files of SDXL adapters keep.

The same modules are numbered throughout there: ``down_blocks.1.attentions.0`` is ``input_blocks.4.1``. See
``unet_config`` in diffusers' loaders/lora_conversion_utils.py and sd-scripts' library/sdxl_model_util.py.
"""

import re

LAYERS = 3
"""Entries of ``input_blocks`` per level: two layers and the downsampler."""
RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
SINGLE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
STEPS = (
    "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection", "op",
    "out", "time_embed", "label_emb",
)  # fmt: skip
"""Path steps of these names that diffusers lacks."""
_RESNET_BACK = {sgm: diffusers for diffusers, sgm in RESNET.items()}
_SINGLE_BACK = {sgm: diffusers for diffusers, sgm in SINGLE.items()}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(attentions|resnets)\.(\d+)\.(.+)")
_COUNTED = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_COUNTED_MIDDLE = re.compile(r"middle_block\.(\d)\.(.+)")


def to_sgm(path: str) -> str | None:
    """Return the original name of a layer's path in diffusers' UNet; None for one that SDXL lacks."""
    if path in SINGLE:
        return SINGLE[path]
    if middle := _MIDDLE.fullmatch(path):
        kind, number, rest = middle[1], int(middle[2]), middle[3]
        return (
            f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * number}.{RESNET.get(rest, rest)}"
        )
    block = _BLOCK.fullmatch(path)
    if block is None:
        return None
    way, level, kind, number, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    if kind == "downsamplers":
        return f"input_blocks.{LAYERS * (level + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{LAYERS * level + 2}.2.{rest}"
    entry = (
        f"input_blocks.{LAYERS * level + number + 1}" if way == "down" else f"output_blocks.{LAYERS * level + number}"
    )
    return f"{entry}.1.{rest}" if kind == "attentions" else f"{entry}.0.{RESNET.get(rest, rest)}"


def from_sgm(path: str) -> str:
    """Return diffusers' path of an original name; ``path`` itself if it is none."""
    if path in _SINGLE_BACK:
        return _SINGLE_BACK[path]
    if middle := _COUNTED_MIDDLE.fullmatch(path):
        index, rest = int(middle[1]), middle[2]
        return (
            f"mid_block.attentions.0.{rest}" if index == 1
            else f"mid_block.resnets.{index // 2}.{_RESNET_BACK.get(rest, rest)}"
        )  # fmt: skip
    counted = _COUNTED.fullmatch(path)
    if counted is None:
        return path
    way, index, part, rest = counted[1], int(counted[2]), int(counted[3]), counted[4]
    level, number = divmod(index - 1 if way == "input" else index, LAYERS)
    blocks = f"{'down' if way == 'input' else 'up'}_blocks.{level}"
    if way == "input" and rest == "op":
        return f"{blocks}.downsamplers.0.conv"
    if way == "output" and rest == "conv":
        return f"{blocks}.upsamplers.0.conv"
    if part == 1:
        return f"{blocks}.attentions.{number}.{rest}"
    return f"{blocks}.resnets.{number}.{_RESNET_BACK.get(rest, rest)}"
