"""Deleting, restoring and freeing for good, from many threads and processes at once.

``python -m tests.support.owner_siege DATA_DIR SEED ROUNDS``: unlike ``folder_siege``, everybody deletes only what is
their own, so that they know whether it must be there; the trash, the caches and the queue are everybody's.
"""

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora.api.adapters import run_checkpoints, use_checkpoint
from sdlora.api.grids import AxisSpec, begin_grid, keep_best
from sdlora.config import TrainConfig
from sdlora.data.projects import Project
from sdlora.errors import FileError, SdloraError
from sdlora.events import RunFinished
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.generation.images import save_images
from sdlora.generation.xyz_grid import read_grid
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.storage import gallery
from sdlora.storage.disk_usage import FREED, disk_usage, free_space
from sdlora.storage.run_folder import Run
from tests.support.folder_siege import Visitor, find_tokens, run_visitors, write_token_image
from tests.support.tiny_models import write_tiny_adapter

CHECKPOINTS = (1, 2, 3)
RESTORED_SHARE = 0.8


@dataclass
class Thing:
    """An adapter, image, run or project of one owner."""

    kind: str
    name: str
    tokens: list[str]
    alive: bool = True
    """False if it was moved to the trash, and not back."""
    best: list[str] = field(default_factory=list)
    """Adapters that were kept as the best of a grid of this run."""


class Owner(Visitor):
    """One thread with things of its own."""

    def __init__(self, data_dir: Path, name: str):
        super().__init__(data_dir, name)
        self.things: list[Thing] = []

    def round(self) -> None:
        """Make one thing, and then do something to one's own, and to what is everybody's."""
        make = self.random.choice((self.make_adapter_thing, self.make_image, self.make_run, self.make_project))
        self.things.append(make(f"own-{self.name}-{len(self.things)}"))
        for act in self.random.sample((self.delete, self.change_run, self.free, self.look), 2):
            try:
                act()
            except SdloraError as error:
                print(f"{act.__name__}: {error}", file=sys.stderr)

    def make_adapter_thing(self, name: str) -> Thing:
        token = self.token("adapter")
        file = write_tiny_adapter(self.own / f"{name}.safetensors", token=token)
        return Thing("adapter", self.library.move_in(file, name, "pocket"), [token])

    def make_image(self, _: str) -> Thing:
        image = Image.new("RGB", (8, 8))
        image.info["parameters"] = token = self.token("image")
        [path] = save_images([image], gallery.images_folder(self.data_dir) / f"{self.random.getrandbits(60)}.png")
        return Thing("image", path.name, [token])

    def make_project(self, name: str) -> Thing:
        token = self.token("project")
        files = [write_token_image(self.own / f"{name}.png", token), self.own / f"{name}.txt"]
        files[1].write_text(token)
        project = Project(self.data_dir, name)
        assert project.add(files).images == 1
        return Thing("project", project.name, [token])

    def make_run(self, name: str) -> Thing:
        token = self.token("run")
        run = Run.create(
            self.data_dir / "runs", name,
            TrainConfig.load("pocket-style", {"data.folder": self.own, "data.trigger": token, "train.steps": 3}),
        )  # fmt: skip
        for step in CHECKPOINTS:
            write_tiny_adapter(run.checkpoint(step), of=token, ss_steps=str(step))
        write_tiny_adapter(run.adapter, of=token, ss_steps="3")
        run.journal.write_text(RunFinished(step=3, adapter="adapter.safetensors", seconds=1.0).to_json() + "\n")
        return Thing("run", run.name, [token])

    def delete(self) -> None:
        """Delete something, and mostly change one's mind at once."""
        thing = self._one()
        if thing.kind == "adapter":
            item = self.library.delete_adapter(thing.name).folder.name
        elif thing.kind == "image":
            item = gallery.trash_image(self.data_dir, thing.name)
        elif thing.kind == "run":
            item = self.library.delete_run(thing.name).folder.name
        else:
            item = self.library.delete_project(thing.name).folder.name
        thing.alive = False
        if self.random.random() < RESTORED_SHARE:
            try:
                self.library.undo(item)
                thing.alive = True
            except FileError as error:  # Somebody has emptied the trash: it is gone for good, and stays so.
                assert "not in the trash any more" in str(error), error

    def change_run(self) -> None:
        """Use or delete a checkpoint, let it train longer, queue it, or keep the best of a grid."""
        thing = self._one("run")
        run = self.library.run(thing.name)
        act = self.random.choice(("use", "delete", "longer", "queue", "best", "best"))
        if act == "use":
            use_checkpoint(run, self.random.choice(CHECKPOINTS))
        elif act == "delete" and (steps := [*run_checkpoints(run)]):
            item = self.library.delete_checkpoint(run.name, run.checkpoint(steps[0]).name)
            self.library.undo(item.folder.name)
        elif act == "longer":
            run.lengthen(self.random.randint(4, 9))
        elif act == "queue":
            self.queue.add(run)
            self.queue.stop(run)
            self.queue.cancel(run)
        elif act == "best":
            thing.best.append(self._keep_best(run))

    def _keep_best(self, run: Run) -> str:
        """Make a grid of one finished image, and keep its adapter under a name that others want too."""
        choice = AdapterChoice(run.name, str(run.adapter))
        request = begin_grid(
            self.data_dir, GenerationRequest(prompt="x", adapters=(choice,)), [AxisSpec("scale", "1")], run.name, run
        )
        folder = Path(request.grid)
        cell = read_grid(folder).cells[0]
        write_token_image(folder / cell.file, "")
        return keep_best(self.data_dir, folder, cell.file, f"best-{self.random.randrange(1000)}").stem

    def free(self) -> None:
        """Empty the trash, or free some kinds of files for good."""
        if self.random.random() < 0.7:
            self.library.trash.empty()
        else:
            free_space(self.data_dir, self.random.sample([*FREED], 2))

    def look(self) -> None:
        disk_usage(self.data_dir)
        for entry in self.library.adapters():
            self.library.image(entry)

    def _one(self, kind: str = "") -> Thing:
        """Choose one of the own things that are there. Raises SdloraError if there is none."""
        fitting = [thing for thing in self.things if thing.alive and kind in ("", thing.kind)]
        if not fitting:
            raise SdloraError("nothing of that kind is left")
        return self.random.choice(fitting)

    def records(self) -> list[Any]:
        return [asdict(thing) for thing in self.things]


def find_losses(data_dir: Path, things: list[Thing]) -> list[str]:
    """Return what is not as its owner left it: lost, doubled, back without having been asked for, or torn."""
    outside, in_trash, wrong = Counter[str](), Counter[str](), list[str]()
    for folder in data_dir.iterdir():
        tokens, torn = find_tokens(folder)
        (in_trash if folder.name == "trash" else outside).update(tokens)
        wrong += torn
    for thing in things:
        for token in thing.tokens:
            found = (outside[token], in_trash[token])
            if found != (1, 0) if thing.alive else found not in ((0, 1), (0, 0)):
                wrong.append(f"{thing.kind} {thing.name}: {found} outside and inside the trash, alive: {thing.alive}")
        if thing.kind == "run" and thing.alive:
            run = Run(data_dir / "runs" / thing.name)
            if read_metadata(run.adapter).get("of") != thing.tokens[0] or run.state != "finished":
                wrong.append(f"run {thing.name}: has another's adapter, or lost its end")
        wrong += [
            f"{name}{ending}: was kept, and is gone" for name in thing.best
            for ending in (".safetensors", ".json", ".png") if not (data_dir / "adapters" / f"{name}{ending}").is_file()
        ]  # fmt: skip
    best = [name for thing in things for name in thing.best]
    return wrong + [f"{name}: was kept twice" for name, count in Counter(best).items() if count > 1]


if __name__ == "__main__":
    run_visitors(Owner)
