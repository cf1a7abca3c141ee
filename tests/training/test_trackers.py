"""Trackers: TensorBoard as it is, Weights & Biases by a module that stands in for the package."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from PIL import Image

from sdlora.errors import ConfigError
from sdlora.events import Notice, RunFinished
from sdlora.jobs import evaluation_tool
from sdlora.storage.run_folder import Run
from sdlora.training import trackers
from sdlora.training.run_paths import RunPaths
from sdlora.training.settings import Train
from sdlora.training.trackers import EVALUATION_SHEET, Trackers, open_trackers, reopened_trackers
from tests.support.recorded_runs import plain_config
from tests.support.training import events_of, train_in_process


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb that keeps what it is told."""
    fake = ModuleType("wandb")
    fake.started, fake.logged, fake.finished, fake.config = [], [], [], {}
    run = SimpleNamespace(
        log=lambda values, step=None: fake.logged.append((values, step)), finish=lambda: fake.finished.append(True)
    )
    fake.init = lambda **options: fake.started.append(options) or run
    fake.config = SimpleNamespace(update=lambda values, allow_val_change: fake.started[-1].update(config=values))
    fake.Image = lambda pixels: ("image", np.asarray(pixels))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    return fake


class Recorder(GeneralTracker):
    """A tracker of somebody else; it takes no images."""

    name, requires_logging_directory = "recorder", False

    def __init__(self):
        super().__init__()
        self.values = []

    @property
    def tracker(self):
        return self.values

    def log(self, values, step=None, **options):
        self.values.append((values, step))


class WithImages(Recorder):
    """The same with images."""

    def log_images(self, values, step=None, **options):
        self.values.append(({tag: images.shape for tag, images in values.items()}, step, options))


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    return RunPaths(folder)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (6, 4), "red").save(path)
    return path


def test_a_run_logs_scalars_and_previews_to_wandb(configure, tmp_path, wandb):
    config = configure(train__wandb=True, sample__every=2, sample__prompts=["sks"], sample__steps=1, monitor__every=2)
    _, events, output = train_in_process(config, tmp_path / "runs" / "mine")
    assert events_of(RunFinished, events)
    (started,) = wandb.started
    assert (started["project"], started["name"], started["resume"]) == ("sdlora", output.name, "allow")
    assert started["config"]["adapter"]["rank"] == 4 and started["config"]["train"]["seed"] == 0
    tags = {tag for values, _ in wandb.logged for tag in values}
    assert {"loss", "learning_rate", "gradient_norm", "loss_ratio/train", "preview/0"} <= tags
    (kind, pixels), *_ = next(values["preview/0"] for values, step in wandb.logged if "preview/0" in values and step)
    assert kind == "image" and pixels.ndim == 3 and pixels.dtype == np.uint8
    assert [step for values, step in wandb.logged if "loss" in values] == [1, 2, 3, 4, 5, 6][: config.train.steps]
    assert wandb.finished == [True]


def test_a_resumed_run_goes_on_in_the_same_record(output, wandb):
    for _ in range(2):
        open_trackers(Train(wandb=True), output).finish()
    assert wandb.started[0]["id"] == wandb.started[1]["id"]
    output.wandb_id.write_text("../../evil")
    open_trackers(Train(wandb=True), output).finish()
    assert trackers.ID.fullmatch(wandb.started[2]["id"])  # What somebody wrote there is no id.


def test_the_sheet_is_added_at_the_newest_step_of_wandb(output, wandb, picture):
    with reopened_trackers(Train(wandb=True), output) as opened:
        opened.log_image(EVALUATION_SHEET, picture, 4)
    ((values, step),) = wandb.logged
    assert [*values] == [EVALUATION_SHEET] and step is None and wandb.finished == [True]


def test_a_package_that_is_missing_is_one_sentence(output, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in ("wandb", "tensorboard"):
        with pytest.raises(
            ConfigError, match=f"^train.{name}: true needs {name}; run pip install {name}, or take false$"
        ):
            open_trackers(Train(**{name: True}), output)


def test_a_tracker_that_cannot_start_is_one_sentence_and_closes_the_others(output, wandb):
    def refuse(**options):
        raise RuntimeError("api_key not configured\nTraceback ...")

    wandb.init = refuse
    with pytest.raises(ConfigError, match=r"^train.wandb: true: it cannot start \(api_key not configured\)") as error:
        open_trackers(Train(wandb=True, tensorboard=True), output)
    assert "\n" not in str(error.value)


def test_tensorboard_gets_images(output, picture):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    opened = open_trackers(Train(tensorboard=True), output)
    opened.log({"loss": 0.5}, 3)
    opened.log_image("preview/0", picture, 3)
    opened.finish()
    found = EventAccumulator(str(output.tensorboard)).Reload()
    assert found.Tags()["images"] == ["preview/0"] and found.Tags()["scalars"] == ["loss"]
    (image,) = found.Images("preview/0")
    assert (image.step, image.width, image.height) == (3, 6, 4)


def test_any_tracker_gets_scalars_and_images_only_if_it_takes_them(picture):
    plain, full = Recorder(), WithImages()
    both = Trackers([plain, full])
    both.log({"loss": 1.0}, 2)
    both.log_image("preview/0", picture, 2)
    both.finish()
    assert plain.values == [({"loss": 1.0}, 2)]
    assert full.values == [({"loss": 1.0}, 2), ({"preview/0": (1, 4, 6, 3)}, 2, {})]


def test_an_evaluation_adds_its_sheet_to_the_trackers_of_the_run(tmp_path, picture, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path / "runs", "mine", plain_config(tmp_path, train__tensorboard=True))
    told = []
    evaluation_tool._track(run, picture, 6, told.append)
    found = EventAccumulator(str(run.tensorboard)).Reload()
    assert [image.step for image in found.Images(EVALUATION_SHEET)] == [6] and told == []
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    evaluation_tool._track(run, picture, 6, told.append)  # The evaluation is written: nothing of it is lost.
    (notice,) = events_of(Notice, told)
    assert notice.message.startswith("The sheet was not logged: train.tensorboard: true needs tensorboard")
