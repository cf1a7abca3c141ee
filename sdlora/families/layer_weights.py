"""Single layers of a base model, read from its files on demand: the model itself is never loaded."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlora.errors import MismatchError, ModelError
from sdlora.families import FAMILIES, family_components
from sdlora.families.base_models import locate_base
from sdlora.families.hub import fetch_files
from sdlora.families.settings import Model
from sdlora.families.single_file import family_of_complete_file
from sdlora.families.untrusted_folder import read_index, require_data_only
from sdlora.filesystem.safetensors_header import read_safetensors_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Projections that OpenCLIP keeps in one tensor, one below the other."""
OPENCLIP_NAMES = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


STEM = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?")
"""Names of the files of a component's weights; others beside them (``non_ema``) are other weights."""


class TensorLocation(NamedTuple):
    """Location of a layer's weight: a file, a tensor's name in it, and one third of its rows (None: all)."""

    file: Path
    key: str
    third: int | None = None

    def read(self) -> "Tensor":
        """Return the weight, in the file's precision. Raises ModelError if the file cannot be read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="pt") as file:
                part = file.get_slice(self.key)
                rows = part.get_shape()[0] // 3
                own = part[:] if self.third is None else part[rows * self.third : rows * (self.third + 1)]
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelError(f"{self.file}: {self.key} cannot be read: {error}") from None
        tensor: Tensor = own
        return tensor


def locate_tensors(base: str, paths: Iterable[str]) -> dict[str, TensorLocation]:
    """Locate the weights of the layers at the classic ``paths`` in ``base``: a folder, a single file or a hub id.

    Raises ModelError for what is no base, MismatchError if it has no such layer.
    """
    source = locate_base(base)
    if source.kind == "file":
        return dict(_in_file(Path(source.location), paths))
    weighted = (name for name, component in family_components().items() if component.weights)
    wanted = ("model_index.json", "*/config.json", *(f"{part}/*.safetensors" for part in weighted))
    unwanted = ("*/*.non_ema.*", "*/*.fp16.*")
    folder = fetch_files(Model(base=base), wanted, unwanted) if source.kind == "hub" else Path(source.location)
    require_data_only(folder, read_index(folder))
    return dict(_in_folder(folder, paths))


def _in_folder(folder: Path, paths: Iterable[str]) -> Iterator[tuple[str, TensorLocation]]:
    found: dict[str, dict[str, Path]] = {}
    components = family_components()
    for path in paths:
        component, _, rest = path.partition(".")
        if component not in found:
            found[component] = _keys(folder / component)
        prefix = components[component].layers.prefix
        names = (f"{rest}.weight", f"{rest.removeprefix(prefix)}.weight")  # Older and newer transformers.
        key = next((name for name in names if name in found[component]), None)
        if key is None:
            raise MismatchError(f"{folder}: has no layer {path}; the adapter is for another base")
        yield path, TensorLocation(found[component][key], key)


def weight_files(part: Path, variant: str | None = None) -> list[Path]:
    """Return the weight files of a part's folder that diffusers loads: those of ``variant`` if there are some, else
    the plain ones, else the fp16 variant.
    """
    files = sorted(part.glob("*.safetensors"))
    endings = [f".{variant}", "", ".fp16"] if variant else ["", ".fp16"]
    found = ([file for file in files if STEM.fullmatch(file.stem.replace(end, "", 1))] for end in endings)
    return next(filter(None, found), [])


def stored_dtype(files: Iterable[Path]) -> "torch.dtype":
    """Return the type of all weights in safetensors ``files`` if all have one of 16 bits, else float32."""
    import torch

    narrow = {frozenset({"F16"}): torch.float16, frozenset({"BF16"}): torch.bfloat16}
    headers = (read_safetensors_header(file) for file in files)
    types = {entry["dtype"] for header in headers for key, entry in header.items() if key != "__metadata__"}
    return narrow.get(frozenset(types & {"F16", "BF16", "F32", "F64"}), torch.float32)


def _keys(part: Path) -> dict[str, Path]:
    """Return the file of each tensor of a part's folder."""
    return {key: file for file in weight_files(part) for key in read_safetensors_header(file)}


def _in_file(file: Path, paths: Iterable[str]) -> Iterator[tuple[str, TensorLocation]]:
    family, header = family_of_complete_file(file), read_safetensors_header(file)
    for path in paths:
        location = next(
            (TensorLocation(file, *name) for name in original_names(family, path) if name[0] in header), None
        )
        if location is None:
            raise MismatchError(f"{file}: has no layer {path}; the adapter is for another base")
        yield path, location


def original_names(family: str, path: str) -> Iterator[tuple[str, int | None]]:
    """Yield the names that a layer's weight may have in single files of ``family``, and its third of the tensor."""
    from sdlora.families.sgm_names import to_sgm

    component, _, rest = path.partition(".")
    prefix = FAMILIES[family].single_file_prefixes[component]
    assert isinstance(prefix, str)
    if component == FAMILIES[family].denoiser:
        name = f"{prefix}{to_sgm(rest) or rest}"
        yield f"{name}.weight", None
        if name.endswith(".2.conv"):  # Behind a level without attention.
            yield f"{name.removesuffix('.2.conv')}.1.conv.weight", None
    elif prefix.endswith("text_model."):
        yield f"{prefix.removesuffix('text_model.')}{rest}.weight", None
    else:
        yield _openclip(prefix, rest)


def _openclip(prefix: str, rest: str) -> tuple[str, int | None]:
    block, _, name = rest.removeprefix("text_model.encoder.layers.").partition(".")
    stem = f"{prefix}transformer.resblocks.{block}"
    _, _, projection = name.rpartition(".")
    if projection in PROJECTIONS:
        return f"{stem}.attn.in_proj_weight", PROJECTIONS.index(projection)
    return f"{stem}.{OPENCLIP_NAMES.get(name, name)}.weight", None


def group_by_tensor(found: Mapping[str, TensorLocation]) -> dict[str, list[tuple[str, TensorLocation]]]:
    """Group layers by the name of the tensor that holds them."""
    layers: dict[str, list[tuple[str, TensorLocation]]] = {}
    for path, location in found.items():
        layers.setdefault(location.key, []).append((path, location))
    return layers
