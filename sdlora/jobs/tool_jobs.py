"""The tools of ``sdlora.jobs.tool_process``, by their names. These need torch.

Each takes its request, a dictionary that came as JSON, and a listener for its progress. What it returns is its result.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from sdlora import editing
from sdlora.adapters.state import AdapterState
from sdlora.captioning.caption_folder import caption_folder
from sdlora.captioning.settings import CaptionSettings
from sdlora.captioning.sources import load_captioner
from sdlora.editing import layer_spectrum
from sdlora.editing.low_rank import Cut, needs_base
from sdlora.editing.merge_methods import MergeOptions
from sdlora.editing.overlap import describe_overlap
from sdlora.events import Notice, OnEvent, Progress, Result, report_progress
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.filesystem.writing import TEMPORARY, pack_folder
from sdlora.formats import export_adapter, read_adapter
from sdlora.formats.adapter_check import TargetBase, check_adapter
from sdlora.generation.device import choose_device
from sdlora.jobs.class_image_tool import class_images
from sdlora.jobs.evaluation_tool import evaluate, evaluate_files
from sdlora.jobs.held_device import hold_device
from sdlora.masking.mask_folder import mask_folder
from sdlora.masking.settings import MaskSettings
from sdlora.masking.sources import load_segmenter

Request = Mapping[str, Any]


def run_tool(name: str, request: Request, report: OnEvent) -> None:
    """Run the tool called ``name``, and report its result. Raises what it raises."""
    result = TOOLS[name](request, report)
    if result is not None:
        report(Result(value=result))


def check(request: Request, report: OnEvent) -> None:
    """Check adapter files; a result for each, as it is known."""
    name = request["base"]
    base = TargetBase(Path(name).name, *build_meta_model(name)) if name else None
    for path in request["files"]:
        report(Result(value=asdict(check_adapter(Path(path), base))))


def export(request: Request, report: OnEvent) -> str:
    """Write an adapter in another format."""
    state, output = _read(request["file"], report), Path(request["output"])
    report(Progress(phase="writing, and reading it back"))
    if request["format"] != "peft":
        return str(export_adapter(state, output, request["format"], request["dtype"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=output.parent) as beside:
        folder = Path(beside, output.stem.replace(".", "_"))  # PEFT's folders have no ending.
        proof = export_adapter(state, folder, "peft", request["dtype"])
        pack_folder(folder, output)
    return str(proof)


def merge(request: Request, report: OnEvent) -> dict[str, Any]:
    """Combine adapters into one."""
    report(Progress(phase="reading the adapters"))
    named = [(name, _read(path, report), scale) for name, path, scale in request["adapters"]]
    base, cut = _base(request, *(state for _, state, _ in named)), _cut(request)
    progress = report_progress(report, "adding up layers")
    options = MergeOptions(*(request.get(name, default) for name, default in MergeOptions()._asdict().items()))
    merged = editing.merge_by(options, named, cut, base, progress)
    return {**_write(merged.state, request, report), "kept": merged.kept if cut else None}


def overlap(request: Request, report: OnEvent) -> list[dict[str, Any]]:
    """Compare each two of several adapters; for each pair a sentence, and the figures by block."""
    report(Progress(phase="reading the adapters"))
    named = [(name, _read(path, report)) for name, path in request["adapters"]]
    base, found = _base(request, *(state for _, state in named)), []
    for one, other in combinations(named, 2):
        pair = editing.overlap(one, other, base, report_progress(report, "comparing layers"))
        groups = {"all layers": pair.whole, **pair.blocks}
        rows = [{"block": name, **group._asdict()} for name, group in groups.items()]
        found.append({"adapters": list(pair.names), "sentence": describe_overlap(pair), "blocks": rows})
    return found


def resize(request: Request, report: OnEvent) -> dict[str, Any]:
    """Give an adapter another rank."""
    report(Progress(phase="reading the adapter"))
    state = _read(request["file"], report)
    cut, progress = Cut(request["rank"], request["energy"]), report_progress(report, "cutting layers")
    resized = editing.resize(state, cut, _base(request, state), progress)
    return {**_write(resized.state, request, report), "kept": resized.kept}


def extract(request: Request, report: OnEvent) -> dict[str, Any]:
    """Make an adapter of the difference of two models."""
    report(Progress(phase="opening both models"))
    state = editing.extract(
        request["base"], request["tuned"], Cut(request["rank"], request["energy"]), request["targets"],
        request["text_encoder"], report_progress(report, "comparing layers"),
        lambda message: report(Notice(message=message)),
    )  # fmt: skip
    return _write(state, request, report)


def bake(request: Request, report: OnEvent) -> None:
    """Fold adapters into a base."""
    adapters = [(name, Path(path), scale) for name, path, scale in request["adapters"]]
    model = Model.model_validate(request["model"])
    report(Progress(phase="loading the base model"))
    editing.bake(model, adapters, Path(request["output"]), request["dtype"], report)


def inspect_layers(request: Request, report: OnEvent) -> list[list[Any]]:
    """Measure an adapter's layers, and plot them."""
    report(Progress(phase="reading the adapter"))
    state = read_adapter(Path(request["file"]))
    layers = layer_spectrum.spectrum(state, _base(request, state), report_progress(report, "looking at layers"))
    report(Progress(phase="drawing them"))
    layer_spectrum.save_spectrum_plot(layers, Path(request["plot"]))
    ordered = sorted(layers, key=lambda one: -one.norm)
    return [[one.path, one.norm, one.rank, one.effective, one.needed] for one in ordered]


def caption(request: Request, report: OnEvent) -> dict[str, Any]:
    """Write captions for the images of a folder."""
    settings = CaptionSettings.checked(**request["settings"])
    device = choose_device(settings.device)
    with _hold_device(device, Path(request["data_dir"]), report):
        load = partial(load_captioner, settings, device, report)
        return asdict(caption_folder(Path(request["folder"]), settings, load, report))


def mask(request: Request, report: OnEvent) -> dict[str, Any]:
    """Write masks for the images of a folder."""
    settings = MaskSettings.checked(**request["settings"])
    device = choose_device(settings.device)
    with _hold_device(device, Path(request["data_dir"]), report):
        load = partial(load_segmenter, settings, device, report)
        return asdict(mask_folder(Path(request["folder"]), settings, load, report))


_FUNCTIONS: tuple[Callable[[Request, OnEvent], Any], ...] = (
    check, export, merge, overlap, resize, extract, bake, inspect_layers, caption, mask, class_images, evaluate,
    evaluate_files,
)  # fmt: skip
TOOLS: Mapping[str, Callable[[Request, OnEvent], Any]] = {function.__name__: function for function in _FUNCTIONS}


@contextmanager
def _hold_device(device: torch.device, data_dir: Path, report: OnEvent) -> Iterator[None]:
    """Hold a device's lock, as a training does, for a ``with`` block. A CPU is shared: a small model may run beside."""
    if device.type == "cpu":
        yield
        return
    with hold_device(device, data_dir, report):
        yield


def _read(path: str, report: OnEvent) -> AdapterState:
    return read_adapter(Path(path), lambda message: report(Notice(message=message)))


def _cut(request: Request) -> Cut | None:
    return None if request["rank"] is None and request["energy"] is None else Cut(request["rank"], request["energy"])


def _base(request: Request, *states: AdapterState) -> str:
    """Return the base where an adapter's updates depend on it; else nothing of it is read, and it need not exist."""
    return str(request["base"]) if any(map(needs_base, states)) else ""


def _write(state: AdapterState, request: Request, report: OnEvent) -> dict[str, Any]:
    """Write an adapter under its name; return the sentence of its round-trip check, and its ranks."""
    report(Progress(phase="writing, and reading it back"))
    metadata = {**state.metadata, "ss_output_name": request["name"], "modelspec.title": request["name"]}
    named = AdapterState(state.method, state.modules, metadata)
    proof = export_adapter(named, Path(request["output"]), "kohya", request["dtype"])
    ranks = sorted({module.rank for module in state.modules.values() if module.rank})
    return {"proof": str(proof), "layers": proof.layers, "ranks": [ranks[0], ranks[-1]] if ranks else []}
