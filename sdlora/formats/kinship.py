"""Which family of base models an adapter is for, as far as it tells."""

from collections.abc import Mapping

from sdlora.adapters.base import AdapterState
from sdlora.adapters.fit import cross_attention_width, input_widths

FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
DEEP = ".transformer_blocks.1."
"""In paths of SDXL's UNet alone: the others' attentions have one such block each."""
FAMILY_BY_VERSION = {"sd_v1": "sd1", "sd_v2": "sd2", "sdxl": "sdxl"}


def infer_family(state: AdapterState) -> str:
    """The family of bases that an adapter is for: by the width of the text, its components, or its header."""
    return infer_family_from_header(input_widths(state), state.metadata)


def infer_family_from_header(widths: Mapping[str, int], metadata: Mapping[str, str]) -> str:
    """As ``family_of``, from what a file's header tells: the inputs' widths of its layers by path, and its metadata."""
    if any(path.startswith("text_encoder_2.") or DEEP in path for path in widths):
        return "sdxl"
    if family := FAMILY_BY_WIDTH.get(cross_attention_width(widths) or 0):
        return family
    version = metadata.get("ss_base_model_version", "")
    if family := next((name for start, name in FAMILY_BY_VERSION.items() if version.startswith(start)), ""):
        return family
    own = {width for path, width in widths.items() if path.endswith(".q_proj")}
    return next((FAMILY_BY_WIDTH[width] for width in sorted(own) if width in FAMILY_BY_WIDTH), "")
