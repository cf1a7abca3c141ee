"""The product's readers of each kind of foreign files, door by door, for fuzzing: they give values, or refuse."""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from sdlora import checkpoint, failpoints
from sdlora.api import adapters as adapter_api
from sdlora.api import grids
from sdlora.api.models import available_models
from sdlora.api.training import find_run, run_base
from sdlora.config import TrainConfig
from sdlora.data.dataset import load_dataset
from sdlora.data.doctor import check_dataset
from sdlora.data.images import inspect_image, open_image, open_mask, orientation
from sdlora.data.projects import Project, list_projects
from sdlora.data.settings import Data
from sdlora.data.tensor_store import TensorStore
from sdlora.data.uploads import UploadedFile
from sdlora.errors import SdloraError
from sdlora.evaluation.fidelity import Clip
from sdlora.families import base_models, clip_tokenizer, detect, single_file
from sdlora.families.loading import load_family
from sdlora.families.meta_model import build_meta_model
from sdlora.families.settings import Model
from sdlora.filesystem.locks import hold_lock
from sdlora.filesystem.paths import default_data_dir, safe_name
from sdlora.filesystem.safetensors_header import copy_with_metadata, read_metadata
from sdlora.formats import adapter_check, header_summary, infer_base, lora_tags
from sdlora.formats.inspection import inspect_adapter
from sdlora.formats.storage import open_adapter, write_adapter
from sdlora.generation import axes, infotext, prompt_weighting, xyz_grid
from sdlora.inference.device_requests import DeviceRequests
from sdlora.jobs import measurement as measurements
from sdlora.jobs.preflight import plan_from_measurement, plan_table
from sdlora.jobs.training_queue import TrainingQueue
from sdlora.storage.bundle import write_bundle
from sdlora.storage.journal import last_event
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from sdlora.ui import library_html
from sdlora.ui.images_tab import _uploads
from sdlora.ui.run_html import previews, run_card
from sdlora.ui.run_panel import log_end
from sdlora.ui.run_view import RunView, describe, fraction_done, loss_curve, short_status, stages


def every(acts: Iterable[Callable[[], Any]]) -> list[Any]:
    """Do all of ``acts``; return their values, or raise the first of their refusals in the end."""
    values, refusal = [], None
    for act in acts:
        try:
            values.append(act())
        except SdloraError as error:
            refusal = refusal or error
            if len(str(error)) > 600:
                raise
    if refusal:
        raise refusal
    return values


def adapter(folder: Path) -> object:
    """Lists, header, self-test, inspection, a copy with another header, and an export in each format."""
    path = folder / "a.safetensors"
    check = adapter_check.check_adapter(path)
    if len(check.refusal) > 600:
        return check.refusal[10**6]
    header_summary_ = lambda: header_summary.read_header_summary(path)  # noqa: E731
    return every([
        lambda: [check.refusal, check.facts, check.misfits, check.strange, check.said],
        lambda: infer_base.header_widths(path) and str(infer_base.incompatible(path, path)),
        lambda: [adapter_api.trigger_words(path), adapter_api.preferred_weight(path)],
        header_summary_,
        lambda: library_html.adapters([(entry, None) for entry in Library(_library(folder)).adapters("")], 1, ""),
        lambda: str(len(header_summary.read_cover_image(path))),
        lambda: infer_base.schedule_mismatch("a", read_metadata(path), {}),
        lambda: copy_with_metadata(path, folder / "copy.safetensors", {"a": "b"}),
        lambda: str(inspect_adapter(path)),
        lambda: write_adapter(open_adapter(path).state, folder / "out.safetensors"),
    ])  # fmt: skip


def _library(folder: Path) -> Path:
    (folder / "adapters").mkdir(exist_ok=True)
    with suppress(FileExistsError):
        os.link(folder / "a.safetensors", folder / "adapters" / "a.safetensors")
    return folder


def peft(folder: Path) -> object:
    check = adapter_check.check_adapter(folder)
    return every([lambda: [check.refusal, check.said], lambda: write_adapter(open_adapter(folder).state,
                                                                           folder / "x.safetensors")])  # fmt: skip


def base(folder: Path) -> object:
    """Whatever is asked of a base's folder without loading it."""
    (folder / "models").mkdir()
    return every([
        lambda: detect.folder_size(folder),
        lambda: base_models.inspect_model(folder, "x").problem[:10_000],
        lambda: base_models.family_of(str(folder)),
        lambda: base_models.native_size(str(folder)),
        lambda: str(build_meta_model(str(folder)).family),
    ])  # fmt: skip


def load_base(folder: Path) -> object:
    return str(load_family(Model(base=str(folder))).fingerprint)


def single_file_base(folder: Path) -> object:
    path = folder / "a.safetensors"
    return every([
        lambda: detect.detect_file(path),
        lambda: single_file.family_of_complete_file(path),
        lambda: single_file.schedule_of_file(path, Model()),
        lambda: base_models.inspect_model(path, "x").problem,
        lambda: base_models.native_size(str(path)),
        lambda: [model.problem for model in available_models(folder)],
    ])  # fmt: skip


def vocabulary(folder: Path) -> object:
    return len(clip_tokenizer._tokenizer(folder, single_file.config_folder("sd1") / "tokenizer"))


def clip(folder: Path) -> object:
    return Clip(folder).side


def image(folder: Path) -> object:
    """All that reads pictures: of data sets, masks, covers, and of settings in them."""
    (path,) = folder.iterdir()
    return every([
        lambda: str(inspect_image(path)),
        lambda: str(open_image(path).rgb.size),
        lambda: str(open_mask(path).size),
        lambda: orientation(path),
        lambda: infotext.read_parameters(path),
        lambda: infotext.recall_image(path, ["a"]),
    ])  # fmt: skip


def data_folder(folder: Path) -> object:
    data = Data(folder=folder, trigger="sks")
    return every([
        lambda: [finding.__dict__ for finding in check_dataset(data, 512)] and None,
        lambda: [(example.caption, example.repeats) for example in load_dataset(data).examples],
    ])  # fmt: skip


def uploads(folder: Path) -> object:
    """Drop a zip on the page, and a folder of kohya's naming."""
    project = Project(folder / "data", "mine")
    added = project.add([folder / "a.zip"])
    said = [*added.remarks, str(added.folder_words), project.status()]
    if any(len(line) > 600 or not line.isprintable() for line in added.remarks):
        raise ValueError(f"a remark of {max(map(len, added.remarks))} letters, or with marks")
    return [*said, *(project.training_caption(image) for image in project.images())]


def _text(folder: Path) -> str:
    """Return the text, with lone surrogates if there are some, as JSON can bring them."""
    content = (folder / "a.txt").read_bytes()
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def prompt(folder: Path) -> object:
    text = _text(folder)
    tagged = lora_tags.parse_lora_tags(text)
    runs = prompt_weighting.parse_weights(tagged.text)
    prompt_weighting.split_chunks(runs, lambda words: [*words.encode("utf-8", "replace")], 75)
    return [lora_tags.lora_tag(name, scale) for name, scale in tagged.scales.items()] and None


def axis(folder: Path) -> object:
    text = _text(folder)
    return every(
        [lambda kind=kind: str(len(axes.parse_axis(kind, text, [1, 2]).values)) for kind in (*axes.AXIS_TYPES, "x")]
    )


def recall(folder: Path) -> object:
    found = infotext.recall_text(_text(folder), ["a"])
    if any(len(line) > 600 for line in found.remarks):
        raise ValueError("a long remark")
    return None


def preset(folder: Path) -> object:
    """A file of settings, read, saved and read again."""
    config = TrainConfig.load(folder / "a.toml")
    config.save(folder / "again.toml")
    return str(TrainConfig.load(folder / "again.toml"))


def run(folder: Path) -> object:
    """A run that somebody sent: its lists, its view, its queue, its log, its bundle and its state."""
    found = find_run("mine", folder / "data")
    view = RunView(found).refresh()
    library, queue = Library(folder / "data"), TrainingQueue(folder / "data")
    states = ("running", "finished", "stopped", "failed", "interrupted", "queued")
    return every([
        lambda: [run_card("x", view, state) for state in states],
        lambda: [str(show(view, state)) for show in (describe, short_status, stages,
        fraction_done) for state in states],
        lambda: [loss_curve(view.losses), previews([image for _, image in sorted(view.previews.items())])],
        lambda: [queue.state(found), run_base(found), str(queue.current()), str(queue.waiting())],
        lambda: queue.move(found, "down"),
        lambda: queue.cancel(found),
        lambda: queue.add(found),
        lambda: [str(last_event(found.journal)), *log_end(found, 9)],
        lambda: library_html.adapters([(entry, library.image(entry)) for entry in library.adapters("sks")], 1, ""),
        lambda: str(write_bundle(found, found.adapter, folder / "bundle.zip")),
        lambda: _resume(found),
        lambda: found.lengthen(1000),
    ])  # fmt: skip


def _resume(found: Run) -> None:
    """Read the state with checksums that are true of it, as who sends one can write them, and restore an optimizer."""
    from sdlora.training.prepare import TrainedParts, TrainState
    from sdlora.training.trainer import TrainLoop

    for state in found.states.iterdir():
        sums = {name: checkpoint.sha256(state / name) for name in (checkpoint.TENSORS, checkpoint.VALUES)}
        (state / checkpoint.MANIFEST).write_text(json.dumps(sums))
    newest = checkpoint.newest_state(found.states)
    if newest is None:
        return
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([parameter])
    trainable: Any = SimpleNamespace(load_extra_state=dict)
    trained = TrainedParts(trainable, [], optimizer, [1e-3], ["unet"])
    gang: Any = SimpleNamespace(restore_scaler=lambda state: None)
    ready = TrainState(None, None, (), None, None, trained, gang, 2, 64, None)  # type: ignore[arg-type]
    ready._order = dict  # type: ignore[method-assign]
    ready.restore(newest)
    parameter.sum().backward()
    loop: Any = SimpleNamespace(trained=trained, state=ready)
    TrainLoop._step_optimizer(loop, ready.start)


def grid(folder: Path) -> object:
    """A grid that somebody sent: its axes, its sheet, and an adapter kept from it."""
    place = folder / "g"
    return every([
        lambda: str(xyz_grid.read_grid(place).labels),
        lambda: [cell.scales for cell in xyz_grid.read_grid(place).cells],
        lambda: str(xyz_grid.save_contact_sheet(place)),
        lambda: str(grids.keep_best(folder / "data", place, next(place.glob("0-*.png")).name, "best")),
    ])  # fmt: skip


def project(folder: Path) -> object:
    """A project's lists, captions, and the steps that can be undone."""
    (mine,) = list_projects(folder / "data") or [Project(folder / "data", "mine")]
    return every([
        lambda: [mine.status(), mine.info, str(mine.history.newest())],
        lambda: [mine.training_caption(image) for image in mine.images()],
        lambda: mine.add_trigger(),
        lambda: mine.replace("a", "b"),
        lambda: [mine.undo() for _ in range(5)],
        lambda: mine.set_info(mine.info) if mine.info else None,
    ])  # fmt: skip


def trash(folder: Path) -> object:
    library = Library(folder / "data")
    return every([
        lambda: library_html.trash(library.trash.items()),
        lambda: [entry.base for entry in library.adapters("")],
        lambda: library_html.adapters([(entry, library.image(entry)) for entry in library.adapters("")], 1, ""),
        lambda: [str(library.undo(item.folder.name)) for item in library.trash.items()],
        lambda: str(library.delete_adapter("a")),
        lambda: library.trash.empty(),
    ])  # fmt: skip


def request(folder: Path) -> object:
    requests = DeviceRequests(folder / "cpu-here.lock")
    lock = hold_lock(folder / "cpu-here.requests" / "1-1-1.lock", "it")
    try:
        requests.open()
        taken = requests.take()
        return [str(taken.request.model), str(taken.request.engine_settings)] if taken else None
    finally:
        lock.release()


def latents(folder: Path) -> object:
    return str(TensorStore(folder).get("ab" * 32))[:100]


def measurement(folder: Path) -> object:
    """An estimate in the cache, put where it is looked for."""
    config = TrainConfig.parse({"data": {"folder": str(folder)}}, "here")
    with mock.patch.object(measurements, "measurement_file", lambda config, data_dir: folder / "estimate.json"):
        found = measurements.cached_measurement(config, folder)
    return plan_table(plan_from_measurement(config, found)) if found else None


def variables(folder: Path) -> object:
    """Environment variables that name folders; the one of tests may refuse as it likes."""
    try:
        values = json.loads((folder / "variables.json").read_text("utf-8"))
        values = {name: os.fsdecode(os.fsencode(str(value).replace("\0", ""))) for name, value in values.items()}
    except (ValueError, AttributeError, RecursionError):
        return None
    allowed = {name: value for name, value in values.items() if name.startswith("SDLORA_")}
    with mock.patch.dict(os.environ, allowed):
        with suppress(ValueError):
            failpoints.Failpoint.parse(allowed.get("SDLORA_FAULT", ""))
        return every([
            lambda: [model.problem for model in available_models(folder)],
            lambda: str(base_models.model_folders(default_data_dir())),
            lambda: str(base_models.find_model("x/y", base_models.model_folders())),
        ])  # fmt: skip


def names(folder: Path) -> object:
    """Names of any text, for all that is named."""
    try:
        given = json.loads((folder / "names.json").read_text("utf-8"))
    except (ValueError, RecursionError):
        return None
    texts = [text for text in given if isinstance(text, str)][:6] if isinstance(given, list) else []
    sent = [str(text) for text in texts]
    library = Library(folder / "data")
    return every([act for text in texts for act in (
        lambda text=text: safe_name(text),
        lambda text=text: Project(folder / "data", text).name,
        lambda text=text: str(Run.find(folder / "data" / "runs", text)),
        lambda text=text: library.find(text).name,
        lambda text=text: library.choose_name(text, "x"),
        lambda text=text: str(library.trash.find(text)),
        lambda text=text: str(grids.grid_folder(folder / "data", text)),
        lambda text=text: str(adapter_api.find_adapter(text, folder / "data")),
        lambda text=text: str(base_models.locate_base(text)),
        lambda text=text: str(UploadedFile(Path("x"), _uploads(["x"], json.dumps([text]))[0].name).suffix),
        lambda: [str(each.name) for each in _uploads(sent, json.dumps(given))] and None,
    )])  # fmt: skip
