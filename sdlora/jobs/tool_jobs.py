"""What the clerk does, in its own process: a table of errands by their names. These need torch.

Each takes what was asked for, a dictionary that came as JSON, and someone to tell how far it is; it returns its answer.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdlora import editing
from sdlora.adapters.state import AdapterState
from sdlora.editing import layer_spectrum as looks
from sdlora.editing.low_rank import Cut, needs_base
from sdlora.events import OnProgress
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.filesystem.writing import pack_folder
from sdlora.formats import export_adapter, read_adapter
from sdlora.formats.adapter_check import TargetBase, check_adapter
from sdlora.warning_capture import capture_warnings

TELL_SECONDS = 0.25
"""Between two messages of one phase's progress."""
Asked = Mapping[str, Any]


class ProgressReporter:
    """Tells the process that asked."""

    def __init__(self, send: Callable[[dict[str, Any]], None]):
        self.send = send

    def stage(self, phase: str, done: int = 0, total: int = 0) -> None:
        self.send({"stage": [phase, done, total]})

    def note(self, text: str) -> None:
        self.send({"note": text})

    def item(self, value: Any) -> None:
        self.send({"item": value})

    def progress(self, phase: str) -> OnProgress:
        """Tells of ``phase`` now and then, and at its end."""
        told = float("-inf")

        def tell(done: int, total: int) -> None:
            nonlocal told
            if done == total or time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                self.stage(phase, done, total)

        return tell


def run_tool(name: str, asked: Asked, send: Callable[[dict[str, Any]], None]) -> None:
    """Do the errand called ``name``, and send its answer. Raises what it raises."""
    tell = ProgressReporter(send)
    with capture_warnings(tell.note):
        send({"answer": TOOLS[name](asked, tell)})


def check(asked: Asked, tell: ProgressReporter) -> None:
    name = asked["base"]
    base = TargetBase(Path(name).name, *build_meta_model(name)) if name else None
    for path in asked["files"]:
        tell.item(asdict(check_adapter(Path(path), base)))


def export(asked: Asked, tell: ProgressReporter) -> str:
    state, output = read_adapter(Path(asked["file"]), tell.note), Path(asked["output"])
    tell.stage("writing, and reading it back")
    if asked["format"] != "peft":
        return str(export_adapter(state, output, asked["format"], asked["dtype"]))
    folder = output.with_name(output.stem.replace(".", "_"))  # PEFT's folders have no ending.
    try:
        proof = export_adapter(state, folder, "peft", asked["dtype"])
        pack_folder(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return str(proof)


def merge(asked: Asked, tell: ProgressReporter) -> dict[str, Any]:
    tell.stage("reading the adapters")
    named = [(name, read_adapter(Path(path), tell.note), scale) for name, path, scale in asked["adapters"]]
    base = _base(asked, *(state for _, state, _ in named))
    return _written(editing.merge(named, _cut(asked), base, tell.progress("adding up layers")), asked, tell)


def resize(asked: Asked, tell: ProgressReporter) -> dict[str, Any]:
    tell.stage("reading the adapter")
    state = read_adapter(Path(asked["file"]), tell.note)
    made = editing.resize(
        state, Cut(asked["rank"], asked["energy"]), _base(asked, state), tell.progress("cutting layers")
    )
    return {**_written(made.state, asked, tell), "kept": made.kept}


def extract(asked: Asked, tell: ProgressReporter) -> dict[str, Any]:
    tell.stage("opening both models")
    cut, progress = Cut(asked["rank"], asked["energy"]), tell.progress("comparing layers")
    models, targets = (asked["base"], asked["tuned"]), asked["targets"]
    return _written(editing.extract(*models, cut, targets, asked["text_encoder"], progress, tell.note), asked, tell)


def bake(asked: Asked, tell: ProgressReporter) -> None:
    adapters = [(name, Path(path), scale) for name, path, scale in asked["adapters"]]
    model = Model.model_validate(asked["model"])
    tell.stage("loading the base model")
    editing.bake(model, adapters, Path(asked["output"]), asked["dtype"], tell.progress("writing tensors"), tell.stage)


def look(asked: Asked, tell: ProgressReporter) -> list[list[Any]]:
    tell.stage("reading the adapter")
    state = read_adapter(Path(asked["file"]))
    layers = looks.spectrum(state, _base(asked, state), tell.progress("looking at layers"))
    tell.stage("drawing them")
    looks.save_spectrum_plot(layers, Path(asked["plot"]))
    ordered = sorted(layers, key=lambda one: -one.norm)
    return [[one.path, one.norm, one.rank, one.effective, one.needed] for one in ordered]


TOOLS: Mapping[str, Callable[[Asked, ProgressReporter], Any]] = {
    function.__name__: function for function in (check, export, merge, resize, extract, bake, look)
}


def _cut(asked: Asked) -> Cut | None:
    return None if asked["rank"] is None and asked["energy"] is None else Cut(asked["rank"], asked["energy"])


def _base(asked: Asked, *states: AdapterState) -> str:
    """The base, where an adapter's updates depend on it: else nothing of it is read, and it need not be there."""
    return str(asked["base"]) if any(map(needs_base, states)) else ""


def _written(state: AdapterState, asked: Asked, tell: ProgressReporter) -> dict[str, Any]:
    """Write what was made, under the name that was asked for; what the self-test found, and its ranks."""
    tell.stage("writing, and reading it back")
    metadata = {**state.metadata, "ss_output_name": asked["name"], "modelspec.title": asked["name"]}
    named = AdapterState(state.method, state.modules, metadata)
    proof = export_adapter(named, Path(asked["output"]), "kohya", asked["dtype"])
    ranks = sorted({module.rank for module in state.modules.values() if module.rank})
    return {"proof": str(proof), "layers": proof.layers, "ranks": [ranks[0], ranks[-1]] if ranks else []}
