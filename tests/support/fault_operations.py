"""Operations on a data folder, each in a process of its own: ``python -m tests.support.fault_operations NAME ROOT``.

``build_root`` makes the folder that they start from: ``ROOT/data``, and ``ROOT/in`` with files to hand in.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

from sdlora.api.adapters import export_adapter, use_checkpoint
from sdlora.api.grids import AxisSpec, begin_grid
from sdlora.api.training import prepare_run
from sdlora.config import TrainConfig
from sdlora.data.projects import Project, ProjectInfo
from sdlora.errors import SdloraError
from sdlora.filesystem.reading import find_matching
from sdlora.formats import read_adapter, write_adapter
from sdlora.formats.adapter_check import check_adapter
from sdlora.generation.images import save_images
from sdlora.inference.generation_request import GenerationRequest
from sdlora.jobs.training_queue import TrainingQueue
from sdlora.storage import gallery
from sdlora.storage.disk_usage import disk_usage, free_space
from sdlora.storage.library import Library
from sdlora.storage.run_folder import Run
from tests.support.images import noise_image
from tests.support.tiny_models import write_tiny_adapter

PROJECT, RUN, ADAPTER, OLD = "mine", "old", "style", 3
"""Content of the folder at the start: a project, a run, an imported adapter; and the number of the project's images."""


def build_root(root: Path, base: Path) -> Path:
    """Make the folder that operations start from; ``base`` is a tiny model elsewhere."""
    inputs, data = root / "in", root / "data"
    inputs.mkdir(parents=True)
    for number in range(4):
        noise_image(64, 64 + 16 * (number % 2), seed=number + 50).save(inputs / f"{number}.png")
        (inputs / f"{number}.txt").write_text(f"a new caption {number}")
    with ZipFile(inputs / "set.zip", "w") as pack:
        for path in sorted(inputs.glob("[23].*")):
            pack.write(path, path.name)
    for name in ("sent", "made"):
        write_tiny_adapter(inputs / f"{name}.safetensors", token=name)
    project = Project(data, PROJECT)
    images = [inputs / f"old{number}.png" for number in range(OLD + 1)]
    for number, image in enumerate(images):
        noise_image(64, 64, seed=number).save(image)
        image.with_suffix(".txt").write_text(f"an old caption {number}")
    project.add([file for image in images for file in (image, image.with_suffix(".txt"))])
    project.set_info(ProjectInfo("style", "ohwx"))
    project.remove(project.images()[-1])
    for path in inputs.glob("old*"):
        path.unlink()
    library = Library(data)
    library.copy_in(
        write_tiny_adapter(inputs / f"{ADAPTER}.safetensors", token="old"), "pocket", _check(inputs, ADAPTER)
    )
    save_images([noise_image(64, 64, seed=99)], gallery.images_folder(data) / "1.png")
    for name in (RUN, "waits", "also-waits"):
        run = prepare_run(TrainConfig.parse({}, "test", _settings(project, base)), name, data)
        for step in (1, 2):
            write_tiny_adapter(run.checkpoint(step), token=f"{name} {step}", ss_steps=str(step))
        if name != RUN:
            TrainingQueue(data).add(run)
            (run.states / "000002").mkdir()
    write_tiny_adapter(Run(data / "runs" / RUN).adapter, token="finished", ss_steps="2")
    library.delete_run(prepare_run(TrainConfig.parse({}, "test", _settings(project, base)), "deleted", data).name)
    return root


def _settings(project: Project, base: Path) -> dict[str, object]:
    return {
        "model.base": str(base), "data.folder": str(project.folder), "data.trigger": "ohwx", "adapter.rank": 4,
        "train.steps": 3, "train.device": "cpu", "train.batch_size": 1, "train.learning_rate": 1e-2,
        "checkpoint.every": 1, "checkpoint.keep": 1, "sample.every": 3, "sample.prompts": ["a red house"],
        "sample.steps": 1, "sample.width": 64, "sample.height": 64, "prior.weight": 0.5,
        "prior.class_prompt": "a house", "prior.count": 1, "prior.steps": 1, "adapter.dropout": 0.2,
    }  # fmt: skip


def _check(inputs: Path, name: str):
    return check_adapter(inputs / f"{name}.safetensors", None)


def _project(root: Path) -> Project:
    return Project(root / "data", PROJECT)


def _run(root: Path, name: str = RUN) -> Run:
    return Run(root / "data" / "runs" / name)


def upload(root: Path) -> object:
    return _project(root).add([root / "in" / name for name in ("0.png", "0.txt", "1.png")]).remarks


def upload_zip(root: Path) -> object:
    return Project(root / "data", "fresh").add([root / "in" / "set.zip"]).remarks


def describe(root: Path) -> None:
    _project(root).set_info(ProjectInfo("subject", "sks", "dog"))


def write_caption(root: Path) -> None:
    project = _project(root)
    project.write_caption(project.folder / "001.png", "another caption")


def add_trigger(root: Path) -> None:
    _project(root).add_trigger()


def remove(root: Path) -> None:
    project = _project(root)
    project.remove(*(project.folder / f"{number:03d}.png" for number in (1, 2)))


def undo(root: Path) -> None:
    _project(root).undo()


def import_adapter(root: Path) -> object:
    check = _check(root / "in", "sent")
    if not check.refusal:
        Library(root / "data").copy_in(root / "in" / "sent.safetensors", "pocket", check)
    return filter(None, [check.refusal])


def make_adapter(root: Path) -> None:
    Library(root / "data").move_in(root / "in" / "made.safetensors", "made", "pocket")


def export(root: Path) -> None:
    export_adapter(str(root / "in" / "sent.safetensors"), root / "data" / "out.safetensors", "diffusers")


def export_folder(root: Path) -> None:
    export_adapter(str(root / "in" / "sent.safetensors"), root / "data" / "out", "peft")


def save(root: Path) -> None:
    write_adapter(read_adapter(root / "in" / "sent.safetensors"), root / "data" / "adapters" / "style.safetensors")


def delete_adapter(root: Path) -> None:
    Library(root / "data").delete_adapter(ADAPTER)


def delete_trained(root: Path) -> None:
    Library(root / "data").delete_adapter(RUN)


def delete_run(root: Path) -> None:
    Library(root / "data").delete_run(RUN)


def delete_project(root: Path) -> None:
    queue = TrainingQueue(root / "data")
    for run in queue.waiting():
        queue.cancel(run)
    Library(root / "data").delete_project(PROJECT)


def restore(root: Path) -> None:
    library = Library(root / "data")
    library.undo(next(find_matching(library.trash.folder, "*/")).name)


def empty_trash(root: Path) -> object:
    return [f"{Library(root / 'data').trash.empty()} were deleted"]


def bundle(root: Path) -> None:
    Library(root / "data").bundle(RUN, root / "data" / "out.zip")


def prepare(root: Path) -> None:
    prepare_run(_run(root).config, "fresh", root / "data")


def lengthen(root: Path) -> None:
    _run(root, "waits").lengthen(9)


def use(root: Path) -> None:
    use_checkpoint(_run(root), 1)


def queue_up(root: Path) -> None:
    TrainingQueue(root / "data").add(_run(root))


def queue_move(root: Path) -> None:
    TrainingQueue(root / "data").move(_run(root, "also-waits"), "first")


def queue_cancel(root: Path) -> None:
    TrainingQueue(root / "data").cancel(_run(root, "waits"))


def queue_stop(root: Path) -> None:
    TrainingQueue(root / "data").stop(_run(root, "waits"))


def save_generated(root: Path) -> None:
    image = noise_image(64, 64, seed=200)
    image.info["parameters"] = "a red house"
    save_images([image], gallery.images_folder(root / "data") / "2.png")


def delete_image(root: Path) -> None:
    gallery.trash_image(root / "data", "1.png")


def grid(root: Path) -> None:
    begin_grid(root / "data", GenerationRequest(prompt="a red house", seed=1), [AxisSpec("cfg", "1, 2")])


def look(root: Path) -> None:
    data = root / "data"
    queue, library = TrainingQueue(data), Library(data)
    [queue.state(run) for run in Run.all(data)]
    [library.image(entry) for entry in library.adapters()]
    [_project(root).caption(image) for image in _project(root).images()]
    gallery.newest_images(gallery.images_folder(data))
    disk_usage(data)


def free(root: Path) -> object:
    return [f"{free_space(root / 'data', ['trash', 'checkpoints', 'cache'])} bytes were freed"]


OPERATIONS: dict[str, Callable[[Path], object]] = {
    function.__name__: function
    for function in (
        upload, upload_zip, describe, write_caption, add_trigger, remove, undo, import_adapter, make_adapter, export,
        export_folder, save, delete_adapter, delete_trained, delete_run, delete_project, restore, empty_trash, bundle,
        prepare, lengthen, use, queue_up, queue_move, queue_cancel, queue_stop, save_generated, delete_image, grid,
        look, free,
    )
}  # fmt: skip


def main() -> int:
    try:
        remarks = OPERATIONS[sys.argv[1]](Path(sys.argv[2]))
        for remark in remarks or ():  # type: ignore[attr-defined]
            print(f"remark: {remark}")
    except SdloraError as error:
        print(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
