"""Class pictures before a run: listed without making any, made as the run would make them, and then used by it."""

import pytest
import torch

from sdlora.errors import BusyError, ConfigError
from sdlora.events import Progress
from sdlora.filesystem.locks import hold_lock
from sdlora.jobs import class_image_tool
from sdlora.jobs.class_image_tool import class_images
from sdlora.jobs.tool_process import class_images_job
from sdlora.storage.device_lock import device_lock
from tests.support.training import events_of, train_in_process


@pytest.fixture
def tool(tmp_path):
    """Run the tool on a config, with the data folder of ``train_in_process``."""

    def run(config, make):
        return class_images(
            {"config": config.model_dump(mode="json"), "data_dir": str(tmp_path), "make": make}, events.append
        )

    events = run.events = []
    return run


PRIOR = {"prior__weight": 1.0, "prior__class_prompt": "a house", "prior__count": 3, "prior__steps": 1}


def test_they_are_listed_made_and_then_used_by_the_run(configure, tmp_path, tool):
    config = configure(**PRIOR)
    assert tool(config, make=False) == {"count": 3, "missing": 3, "folders": [], "images": []}
    assert not (tmp_path / "cache").exists()
    made = tool(config, make=True)
    assert (made["count"], made["missing"], len(made["folders"])) == (3, 0, 1)
    assert [prompt for _, prompt in made["images"]] == ["a house"] * 3
    assert tool(config, make=False) == made
    more = tool(configure(**{**PRIOR, "prior__count": 4}), make=False)
    assert more["missing"] == 1 and more["images"] == made["images"]
    _, events, _ = train_in_process(config, tmp_path / "run")
    assert "making class pictures" not in {event.phase for event in events_of(Progress, events)}


def test_the_pictures_of_a_folder_are_listed_first(configure, tmp_path, tool, pictures):
    found = tool(configure(**{**PRIOR, "prior__count": 8, "prior__folder": str(pictures)}), make=False)
    assert (found["count"], found["missing"], found["folders"]) == (8, 2, [str(pictures)])
    assert found["images"][0] == [str(pictures / "0.png"), "a red house on grass 0"]


def test_a_run_without_them_says_how_to_have_some(configure, tmp_path):
    with pytest.raises(ConfigError, match=r"prior\.weight is 0.* set it to 1"):
        class_images_job(configure(), tmp_path)


def test_none_are_made_while_another_process_has_the_device(configure, tmp_path, tool, monkeypatch):
    monkeypatch.setattr(class_image_tool, "WAIT_SECONDS", 0.1)
    with hold_lock(device_lock(tmp_path, torch.device("cpu")), "the device cpu"):
        with pytest.raises(BusyError, match="cpu"):
            tool(configure(**PRIOR), make=True)
        assert tool(configure(**PRIOR), make=False)["missing"] == 3
