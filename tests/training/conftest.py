"""A small set of pictures, and short runs on the tiny base in this very process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from sdlora.config import TrainConfig
from sdlora.events import Event, StepDone
from sdlora.training.output import RunPaths
from sdlora.training.trainer import Trainer

STEPS = 6


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two shapes with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        size = (64, 64) if index % 3 else (96, 48)
        picture = Image.new("RGB", size, (40 * index, 255 - 40 * index, 90))
        ImageDraw.Draw(picture).ellipse((8, 8, 40, 40), fill=(200, 30 * index, 0))
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a red house on grass {index}")
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate() -> None:
    """Accelerate keeps one state a process; runs of other precision in the same process need a new one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def configure(tiny_base: Path, pictures: Path) -> Callable[..., TrainConfig]:
    """A config for a short run; dotted settings override."""

    def make(**overrides: Any) -> TrainConfig:
        values = {
            "model.base": str(tiny_base),
            "data.folder": str(pictures),
            "data.trigger": "sks",
            "adapter.rank": 4,
            "train.steps": STEPS,
            "train.batch_size": 2,
            "train.learning_rate": 1e-2,
            "train.device": "cpu",
            "checkpoint.every": 2,
            "sample.every": 0,
        }
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return TrainConfig.parse({}, "test", values | dotted)

    return make


def run_here(config: TrainConfig, folder: Path, stop_after: int | None = None) -> tuple[bool, list[Event], RunPaths]:
    """Train in this process, ``stop_after`` steps at most; whether it finished, what it told, where it wrote."""
    events: list[Event] = []
    sections = {name: getattr(config, name) for name in type(config).model_fields}
    output = RunPaths(folder)
    for path in (output.samples, output.checkpoints):
        path.mkdir(parents=True, exist_ok=True)

    def should_stop() -> bool:
        return stop_after is not None and sum(type(event) is StepDone for event in events) >= stop_after

    trainer = Trainer(
        **sections, output=output, cache=folder.parent / "cache", on_event=events.append, should_stop=should_stop
    )
    return trainer.run(), events, output
