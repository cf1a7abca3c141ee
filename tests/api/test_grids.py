"""Grids of a run, drawn by the drawing process, and the best picture's checkpoint kept as the adapter."""

import base64
import io
import json
import shutil

import pytest
import torch
from PIL import Image

from sdlora.api.adapters import list_adapters, preferred_weight
from sdlora.api.grids import (
    AxisSpec,
    begin_grid,
    best_checkpoint_grid,
    grid_folder,
    keep_best,
    list_grids,
    plan_grid,
)
from sdlora.api.training import prepare_run
from sdlora.cli.main import main
from sdlora.errors import ConfigError, FileError
from sdlora.filesystem.safetensors_header import read_metadata
from sdlora.formats import read_adapter, write_adapter
from sdlora.generation import xyz_grid
from sdlora.generation.infotext import read_parameters
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest
from sdlora.inference.inference_client import InferenceClient
from tests.support.adapters import random_lora
from tests.support.inference import wait_for_job

HEADER = {
    "ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "sks", "ss_output_name": "glass",
    "ss_sd_model_name": "tiny",
}  # fmt: skip


@pytest.fixture
def run(configure, tmp_path):
    """A run that has saved three checkpoints, as if it had trained."""
    config = configure(sample__prompts=["a red house", "a blue cat"], sample__steps=2, sample__seed=5)
    run = prepare_run(config, "glass", tmp_path)
    for seed, step in enumerate((2, 4, 6)):
        write_adapter(random_lora(seed=seed, **HEADER), run.checkpoint(step))
    write_adapter(random_lora(seed=2, **HEADER), run.adapter)
    return run


def test_the_grid_to_pick_the_best_from_is_checkpoints_by_scales_by_preview_prompts(run, tmp_path):
    request, wishes = best_checkpoint_grid(run)
    filling = begin_grid(tmp_path, request, wishes, run.name, run)
    grid = xyz_grid.read_grid(tmp_path / "creations" / "grids" / filling.grid.rpartition("/")[2])
    assert grid.labels == (
        ["scale 0.6", "scale 0.8", "scale 1", "scale 1.2"],
        ["step 2", "step 4", "step 6"],
        ["a red house", "a blue cat"],
    )
    assert filling.count == len(grid.cells) == 24
    assert {name: path.rpartition("/")[2] for name, path in grid.adapters.items()} == {
        f"glass-00000{step}": f"00000{step}.safetensors" for step in (2, 4, 6)
    }
    assert [adapter.scale for adapter in filling.adapters] == [0.0] * 3
    assert {(cell.seed, cell.steps) for cell in grid.cells} == {(5, 2)}
    assert list_grids(tmp_path) == [tmp_path / "creations" / "grids" / filling.grid.rpartition("/")[2]]


def test_a_long_run_shows_as_many_checkpoints_as_can_be_compared(run):
    for step in range(8, 80, 2):
        run.checkpoint(step).write_bytes(b"")
    request, wishes = best_checkpoint_grid(run)
    steps = wishes[1].values.split(", ")
    assert len(steps) == 8 and steps[0] == "2" and steps[-1] == "78"
    plan_grid(request, wishes, run.name, run)


def test_without_checkpoints_there_is_no_best(configure, tmp_path):
    with pytest.raises(ConfigError, match="no checkpoints yet"):
        best_checkpoint_grid(prepare_run(configure(), "fresh", tmp_path))


def test_the_drawing_process_fills_a_grid_and_the_best_is_kept(run, tmp_path):
    """Everything that other tools look for: card, picture, thumbnail, weight, name; and the tensors are the same."""
    creator = InferenceClient(tmp_path, "cpu")
    request, wishes = best_checkpoint_grid(run)
    wishes = [AxisSpec("scale", "0, 0.8"), AxisSpec("checkpoint", "2, 6")]
    filling = begin_grid(tmp_path, request, wishes, run.name, run)
    try:
        ticket, _ = wait_for_job(creator, creator.submit(filling).number)
    finally:
        creator.close()
    assert (ticket.state, ticket.paths) == ("done", ()), ticket
    [folder] = list_grids(tmp_path)
    assert len(list(folder.glob("0-*.png"))) == 4 and (folder / "sheet.png").is_file()
    assert read_parameters(folder / "0-001-001.png").prompt == "a red house <lora:glass-000006:0.8>"

    path = keep_best(tmp_path, folder, "0-001-001.png", "my best")
    assert path == tmp_path / "adapters" / "my-best.safetensors"
    kept, source = read_adapter(path), read_adapter(run.checkpoint(6))
    assert all(
        torch.equal(kept.modules[key].tensors["up"], source.modules[key].tensors["up"]) for key in source.modules
    )
    metadata = read_metadata(path)
    assert (metadata["ss_output_name"], metadata["modelspec.title"]) == ("my-best", "my-best")
    assert metadata["modelspec.trigger_phrase"] == "sks"
    start, _, picture = metadata["modelspec.thumbnail"].partition("base64,")
    assert start == "data:image/jpeg;" and json.loads(metadata["ssmd_cover_images"]) == [picture]
    with Image.open(io.BytesIO(base64.b64decode(picture))) as thumbnail:
        assert thumbnail.format == "JPEG" and max(thumbnail.size) <= 256
    card = json.loads(path.with_suffix(".json").read_text())
    assert (card["preferred weight"], card["activation text"], card["sd version"]) == (0.8, "sks", "SD1")
    assert path.with_suffix(".png").read_bytes() == (folder / "0-001-001.png").read_bytes()
    assert preferred_weight(path) == 0.8 and preferred_weight(run.adapter) == 1.0
    assert {"glass", "my-best"} <= {name for name, *_ in list_adapters(tmp_path)}

    with pytest.raises(ConfigError, match=r"my-best.safetensors: is there already; choose another name"):
        keep_best(tmp_path, folder, "0-000-001.png", "my best")
    (folder / "0-000-000.png").unlink()
    with pytest.raises(ConfigError, match="not drawn yet"):
        keep_best(tmp_path, folder, "0-000-000.png", "other")
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == [
        "my-best.check.json", "my-best.json", "my-best.png", "my-best.safetensors",
    ]  # fmt: skip


def test_a_grid_of_a_name_elsewhere_is_refused(tmp_path):
    with pytest.raises(FileError, match="outside"):
        grid_folder(tmp_path, "../../x")


@pytest.mark.parametrize("text", ["heavy", "1e9", "nan"])
def test_a_preferred_weight_that_is_none_is_1(tmp_path, text):
    write_adapter(random_lora(**{"modelspec.lora_default_weight": text}), tmp_path / "a.safetensors")
    assert preferred_weight(tmp_path / "a.safetensors") == 1.0


def test_what_is_not_compared_keeps_its_scale(run):
    mixed = (AdapterChoice("glass", str(run.adapter), 0.7), AdapterChoice("other", "o.safetensors", 0.3))
    request = GenerationRequest(prompt="x", adapters=mixed, seed=1)
    grid, _ = plan_grid(request, [AxisSpec("cfg", "3, 5")], "glass", run)
    assert [cell.scales for cell in grid.cells] == [{"other": 0.3, "glass": 0.7}] * 2
    grid, filling = plan_grid(request, [AxisSpec("checkpoint", "2")], "glass", run)
    assert grid.cells[0].scales == {"other": 0.3, "glass-000002": 0.7}
    assert [adapter.name for adapter in filling.adapters] == ["other", "glass-000002"]
    with pytest.raises(ConfigError, match="into the prompt"):
        plan_grid(GenerationRequest(prompt=" ", adapters=mixed), [AxisSpec("cfg", "3, 5")], "glass", run)


def test_the_command_line_says_of_a_base_what_the_run_says(configure, tmp_path, capsys):
    """A run that was told of velocity is drawn from with velocity by ``compare``, ``generate`` and ``merge``."""
    config = configure(model__prediction_type="v_prediction", sample__prompts=["a red house"])
    run = prepare_run(config, "fast", tmp_path)
    write_adapter(random_lora(**HEADER, **{"modelspec.prediction_type": "v"}), run.adapter)
    shared = ["--data-dir", str(tmp_path), "--steps", "1", "--seed", "1", "--device", "cpu"]
    drawing = ["generate", "--base", config.model.base, "--prompt", "a red house", "--output"]
    assert main(["compare", "fast", *shared, "--x", "scale=0,1", "--output", str(tmp_path / "grid.png")]) == 0
    assert main([*drawing, str(tmp_path / "one.png"), "--adapter", "fast", *shared]) == 0
    output = ["--base", config.model.base, "--output", str(tmp_path / "merged")]
    assert main(["bake", "--adapter", "fast", "--data-dir", str(tmp_path), *output]) == 0
    assert "was trained with" not in capsys.readouterr().err
    for picture in (tmp_path / "grid" / "0-000-001.png", tmp_path / "one.png"):
        assert read_parameters(picture).settings["Prediction type"] == "v_prediction"
    scheduler = json.loads((tmp_path / "merged" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    alone = shutil.copy(run.adapter, tmp_path / "alone.safetensors")
    assert main([*drawing, str(tmp_path / "two.png"), "--adapter", str(alone), *shared]) == 0
    assert capsys.readouterr().err.count("note: adapter 'alone' was trained with prediction_type v_prediction") == 1
    decided = [*shared, "--prediction-type", "v_prediction"]
    assert main([*drawing, str(tmp_path / "three.png"), "--adapter", str(alone), *decided]) == 0
    assert "was trained with" not in capsys.readouterr().err
    one, two, three = (Image.open(tmp_path / f"{name}.png").tobytes() for name in ("one", "two", "three"))
    assert one == three != two


def test_the_command_line_draws_a_sheet(run, tmp_path, capsys):
    arguments = ["compare", "glass", "--data-dir", str(tmp_path), "--steps", "1", "--seed", "1"]
    output = tmp_path / "sheet.png"
    grid = ["--x", "scale=0,1", "--y", "checkpoint", "--output", str(output)]
    assert main([*arguments, *grid, "--prompt", "a red house", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip().endswith("sheet.png")
    assert output.is_file() and len(list((tmp_path / "sheet").glob("0-*.png"))) == 6
    tiled = [*grid[:-1], str(tmp_path / "tiled.png"), "--vae-tiling", "on", "--prediction-type", "v_prediction"]
    assert main([*arguments, *tiled, "--prompt", "a red house", "--device", "cpu", "--width", "128"]) == 0
    text = read_parameters(next((tmp_path / "tiled").glob("0-*.png"))).settings
    assert (text["Prediction type"], text["Size"]) == ("v_prediction", "128x64")
    capsys.readouterr()
    assert main([*arguments, "--x", "scale=much", "--output", str(output)]) == 2
    assert capsys.readouterr().err == "error: scale: 'much' is no number and no range, such as 0, 0.5, 0.75, 1\n"
