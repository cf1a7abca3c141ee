"""Runs whose folders hold what a training would have left, without one."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora.config import TrainConfig
from sdlora.events import Event, Measured, RunFinished, RunStarted, SampleReady, StepDone
from sdlora.signals import PictureLoss, as_values
from sdlora.storage.run_folder import Run


def plain_config(folder: Path, **overrides: Any) -> TrainConfig:
    """Return a config of the bundled base that nothing is loaded for; dotted settings override."""
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return TrainConfig.parse({"adapter": {"rank": 4}}, "test", {"data.folder": str(folder), **dotted})


def write_journal(run: Run, events: Iterable[Event]) -> None:
    run.journal.write_text("".join(event.to_json() + "\n" for event in events))


def started(steps: int, step: int = 0) -> RunStarted:
    return RunStarted(
        step=step, steps=steps, device="cpu", precision="fp32", base="pocket", images=7, modules=1, parameters=10,
        share=0.1,
    )  # fmt: skip


def step_done(step: int, steps: int, **values: Any) -> StepDone:
    given = {"loss": 1.0 / step, "learning_rate": 1e-4, "seconds": 0.5, "left": 0.0, "gradient_norm": 0.25}
    return StepDone(step=step, steps=steps, **{**given, **values})


def measured(step: int, train: float, held_out: float | None = None) -> Measured:
    """Return a measurement with these ratios of adapted to base loss."""
    pictures = [PictureLoss("a.png", (1.0,), (train,))]
    pictures += [] if held_out is None else [PictureLoss("b.png", (1.0,), (held_out,), held_out=True)]
    return Measured(step=step, times=[500.0], pictures=as_values(pictures), updates=[])


def recorded_run(runs: Path, name: str, config: TrainConfig, steps: int = 4, prompt: str = "sks, a cat") -> Run:
    """Return a finished run of ``steps`` with a measurement and a preview."""
    run = Run.create(runs, name, config)
    Image.new("RGB", (64, 64), "teal").save(run.sample(steps, 0))
    run.adapter.write_bytes(b"0" * 2048)
    preview = SampleReady(step=steps, index=0, prompt=prompt, path=run.relative(run.sample(steps, 0)))
    write_journal(
        run,
        [
            started(steps),
            *(step_done(step, steps) for step in range(1, steps + 1)),
            measured(steps, 0.8, 0.9),
            preview,
            RunFinished(step=steps, adapter="adapter.safetensors", seconds=9.0),
        ],
    )
    return run


Record = Callable[..., Run]
