"""From what a user wrote for the base model (a name, a folder, a file, a hub id) to a loaded family."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdlora.errors import FormatError, ModelError
from sdlora.families.settings import Model
from sdlora.files import PICKLES, existing, read_safetensors_header

if TYPE_CHECKING:
    from sdlora.families.base import Family

BUNDLED = {"pocket": Path(__file__).parent.parent / "pocket"}
WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Of a family's parts those with weights."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PIPELINES = {
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionInpaintPipeline": "inpainting",
    "StableDiffusionXLInpaintPipeline": "inpainting",
}


@dataclass(frozen=True)
class Source:
    """Where a base model lies: a bundled or own folder, one file, or a repository of the hub."""

    kind: Literal["folder", "file", "hub"]
    location: str


def locate(base: str) -> Source:
    """Decide what ``base`` names, without loading it. Raises ModelError if it can be nothing."""
    if base in BUNDLED:
        return Source("folder", str(BUNDLED[base]))
    path, suffix = existing(base), Path(base).suffix.lower()
    if suffix in PICKLES:
        raise ModelError(f"{base}: this kind of file can run code when it is opened; convert it to .safetensors first")
    if path is not None and path.is_dir():
        return Source("folder", str(path))
    if path is not None and path.is_file():
        if suffix != ".safetensors":
            raise ModelError(f"{base}: is no base model; give a diffusers folder, a .safetensors file or a hub id")
        return Source("file", str(path))
    if HUB_ID.fullmatch(base) and suffix != ".safetensors":
        return Source("hub", base)
    near = difflib.get_close_matches(base, BUNDLED, n=1)
    kinds = f"give {', '.join(BUNDLED)}, a folder, a .safetensors file or a hub id"
    hint = f"did you mean {near[0]}?" if near else kinds
    raise ModelError(f"model.base: there is no {base!r}; {hint}")


def native_size(base: str) -> int:
    """The side in pixels that ``base`` draws best, as far as can be told without loading it.

    Raises ModelError for what can be no base model.
    """
    source = locate(base)
    if source.kind == "file":
        return 1024 if detect_file(Path(source.location)) == "sdxl" else 512
    if source.kind == "folder":
        with suppress(OSError, ValueError, KeyError, TypeError):  # Not all there: loading it will say what is missing.
            unet, vae = (json.loads(Path(source.location, part, "config.json").read_text()) for part in ("unet", "vae"))
            return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    return 1024 if "xl" in base.rpartition("/")[2].lower() else 512


def family_of(base: str) -> str:
    """The family of ``base`` without loading it: of a hub id, as its name suggests; empty for what cannot be told."""
    with suppress(ModelError, FormatError):
        source = locate(base)
        if source.kind == "folder":
            return detect_folder(Path(source.location))
        if source.kind == "file":
            return detect_file(Path(source.location))
        return "sdxl" if "xl" in base.rpartition("/")[2].lower() else ""
    return ""


def load(model: Model) -> "Family":
    """Load the base model. Weights come in float32 on the CPU; move them with ``Family.to``.

    Raises ModelError for what is missing, unknown, gated, offline or of a family not served.
    """
    source = locate(model.base)
    if source.kind == "hub":  # With the libraries' own bars: a download may take minutes.
        return _load_hub(model)
    with quiet_libraries():
        if source.kind == "folder":
            return _load_folder(Path(source.location), model)
        return _load_file(Path(source.location), model)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars for what takes a second, no advice on optional packages; errors are raised as ever."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def detect_folder(folder: Path) -> str:
    """The family of a diffusers folder, from its ``model_index.json`` and its UNet's config.

    Raises ModelError if it is no such folder.
    """
    index = _read_json(folder / "model_index.json", f"{folder}: has no model_index.json, so it is no diffusers model")
    family = PIPELINES.get(index.get("_class_name", ""), "")
    unet = _read_json(folder / "unet" / "config.json", f"{folder}: the part unet is missing (no unet/config.json)")
    if unet.get("in_channels") == 9:
        return "inpainting"
    if family == "sd1" and (unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024):
        return "sd2"  # SD 1.x projects with convolutions.
    return family or str(index.get("_class_name"))


def detect_file(file: Path) -> str:
    """The family of a single-file checkpoint of the original layout, from its tensors' names and shapes."""
    header = read_safetensors_header(file)
    if not any(key.startswith("model.diffusion_model.") for key in header):
        raise ModelError(f"{file}: holds no diffusion model (no model.diffusion_model.* tensors); is it an adapter?")
    entry = header.get("model.diffusion_model.input_blocks.0.0.weight", {})
    if len(entry.get("shape", [])) == 4 and entry["shape"][1] == 9:
        return "inpainting"
    if "conditioner.embedders.1.model.ln_final.weight" in header:
        return "sdxl"
    if any(key.startswith("conditioner.embedders.0.model.") for key in header):
        return "SDXL refiner"
    attention = header.get("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", {})
    return "sd2" if attention.get("shape", [0, 0])[1] == 1024 else "sd1"


def _family(name: str, place: str) -> Any:
    from sdlora.families import FAMILIES

    if name not in FAMILIES:
        served = ", ".join(FAMILIES)
        raise ModelError(f"{place}: is of the family {name}, which is not served yet; served: {served}")
    return FAMILIES[name]


def _load_folder(folder: Path, model: Model) -> "Family":
    family = _family(detect_folder(folder), model.base)
    missing = [part for part in family.parts if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"{model.base}: the part {', '.join(missing)} is missing in {folder}")
    for part in (part for part in WEIGHTED if part in family.parts):
        if not any((folder / part).glob("*.safetensors")):
            pickled = any((folder / part).glob("*.bin"))
            remedy = "holds only .bin files; convert them to .safetensors" if pickled else "has no .safetensors weights"
            raise ModelError(f"{model.base}: the part {part} {remedy}")
        for file in (folder / part).glob("*.safetensors"):
            read_safetensors_header(file)  # Raises for a file that is cut short, naming it.
    try:
        return family.load(folder, model.base, model.schedule, variant=model.variant, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{model.base}: cannot be loaded: {_first_line(error)}") from error


def _load_file(file: Path, model: Model) -> "Family":
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    family = _family(detect_file(file), model.base)
    try:
        return family.load_single_file(file, model.base, {**_told(file), **model.schedule})
    except (SingleFileComponentError, RuntimeError, KeyError) as error:
        raise ModelError(f"{model.base}: cannot be loaded: {_first_line(error)}") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model.base}: the tokenizer and the configs of a single file come from the hub or its cache, "
            f"and could not be had: {_first_line(error)}"
        ) from error


def _told(file: Path) -> dict[str, object]:
    """What a velocity fine-tune's file says of its schedule, by tensors of these names that hold nothing."""
    header = read_safetensors_header(file)
    velocity = {"prediction_type": "v_prediction"} if "v_pred" in header else {}
    return {**velocity, **({"rescale_betas_zero_snr": True} if "ztsnr" in header else {})}


def _load_hub(model: Model) -> "Family":
    """From a hub's repository, downloaded or cached. Only configs, the tokenizer and safetensors are fetched."""
    weights = f"*.{model.variant}.safetensors" if model.variant else "*.safetensors"
    others = () if model.variant else ("*/*.fp16.*", "*/*.non_ema.*")
    wanted = ("model_index.json", "*/*.json", "*/*.txt", *(f"{part}/{weights}" for part in WEIGHTED))
    folder = fetch(model, wanted, others)
    with quiet_libraries():
        return _load_folder(folder, model)


def fetch(model: Model, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    """The folder with those files of the hub's repository ``model.base`` that patterns ask for. Raises ModelError."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model.base, revision=model.revision, allow_patterns=[*wanted], ignore_patterns=[*unwanted]
        )
    except (OSError, ValueError) as error:
        raise ModelError(_hub_message(model, error)) from error
    return Path(folder)


def _hub_message(model: Model, error: BaseException) -> str:
    """What went wrong, from the first cause that the hub's library names."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    known = {  # Gated before unknown: the one is a kind of the other.
        GatedRepoError: "is gated; accept its terms on the hub, then log in with `hf auth login`",
        RevisionNotFoundError: f"the hub has no revision {model.revision} of it; check model.revision",
        RepositoryNotFoundError: "the hub has no such model (or it is private); check the spelling",
    }
    link: BaseException | None = error
    while link is not None:
        for kind, message in known.items():
            if isinstance(link, kind):
                return f"{model.base}: {message}"
        link = link.__cause__ or link.__context__
    return f"{model.base}: the hub cannot be reached and nothing is cached; go online once, or give a folder"


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(otherwise) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {_first_line(error)}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is no JSON object")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
