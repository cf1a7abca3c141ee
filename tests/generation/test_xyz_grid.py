"""Grids: what their cells are, and that drawing them in batches is drawing them one by one."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.errors import ConfigError, FileError, OutOfMemoryError
from sdlora.families.stable_diffusion import StableDiffusion
from sdlora.generation import studio, xyz_grid
from sdlora.generation.axes import Axis, parse_axis
from sdlora.generation.infotext import read_parameters
from sdlora.generation.settings import GenerationSettings
from sdlora.generation.studio import Studio
from sdlora.generation.xyz_grid import GridCell, ImageGrid
from tests.support.adapters import trained_state, with_uneven_ranks

START = GridCell(prompt="a red house on grass", steps=2, seed=7, adapter="a", sampler="Euler a", width=64, height=64)


@pytest.fixture(scope="module")
def two_adapters(tiny_base):
    """A studio with two adapters of all kinds of layers, the text encoder's among them."""
    two_adapters = Studio(str(tiny_base), device="cpu")
    two_adapters.add_adapter("a", trained_state(1, targets="linear+conv"), 0.0)
    two_adapters.add_adapter("b", with_uneven_ranks(trained_state(2, targets="linear+conv")), 0.0)
    return two_adapters


@pytest.fixture
def latents(monkeypatch):
    """The latents of every picture that is drawn, as they go to the decoder."""
    seen = []
    decode = StableDiffusion.decode
    monkeypatch.setattr(
        StableDiffusion, "decode", lambda family, latents: seen.append(latents.clone()) or decode(family, latents)
    )
    return seen


def apart(one, other):
    """The largest difference, as a part of the largest number."""
    return float((one - other).abs().max() / other.abs().max())


def test_in_batches_or_one_by_one_each_picture_comes_from_the_same_latents(two_adapters, latents):
    """Scale by checkpoint by prompt by seed, by parts too: what a picture is made from is its own alone."""
    scales = [-0.3, {"unet.up_blocks": 0.5, "text_encoder": 0.2}]
    prompts, seeds = ["a red house on grass", "a blue cat in snow"], [7, 8]
    orders = [
        two_adapters.image_spec(
            GenerationSettings(prompt=prompt, negative="a green tree", steps=2, seed=seed, sampler="Euler a"),
            {name: scale},
        )
        for prompt, seed, name, scale in product(prompts, seeds, "ab", scales)
    ]
    order: list[int] = []
    two_adapters.generate_specs(orders, lambda place, image: order.append(place), batch=8)
    together = [latent for _, latent in sorted(zip(order, latents, strict=True), key=lambda pair: pair[0])]
    assert order != sorted(order), "those with one adapter are made together"
    latents.clear()
    for one in orders:
        two_adapters.generate_specs([one], lambda place, image: None)
    assert len(latents) == len(orders) == 16
    assert max(apart(*pair) for pair in zip(together, latents, strict=True)) < 1e-5
    assert min(apart(*pair) for pair in pairwise(latents)) > 1e-2


def test_what_is_asked_for_twice_is_drawn_once_and_keeps_its_own_text(two_adapters, latents):
    """Without its adapter, every checkpoint draws the same."""
    cat = GenerationSettings(prompt="a cat", steps=1, seed=1)
    orders = [two_adapters.image_spec(cat, {name: 0.0}, {"X": name}) for name in "ab"]
    images = {}
    progress = []
    two_adapters.generate_specs(orders, images.__setitem__, lambda *at: progress.append(at))
    assert len(latents) == 1 and progress[-1] == (2, 2)
    assert (np.asarray(images[0]) == np.asarray(images[1])).all()
    assert images[0].info["parameters"].endswith("X: a") and images[1].info["parameters"].endswith("X: b")


def test_where_memory_runs_out_batches_are_halved(two_adapters, monkeypatch):
    sizes, room = [], 2
    draw = studio.sample_images

    def cramped(family, pictures, *rest):
        sizes.append(len(pictures))
        if len(pictures) > room:
            raise torch.OutOfMemoryError
        return draw(family, pictures, *rest)

    monkeypatch.setattr(studio, "sample_images", cramped)
    images = two_adapters.generate("a cat", steps=1, seed=1, count=6, batch=6)
    assert (len(images), sizes) == (6, [6, 3, 1, 1, 1, 1, 1, 1])
    room = 0
    with pytest.raises(OutOfMemoryError, match="an image of 64x64; take a smaller size"):
        two_adapters.generate("a cat", steps=1, seed=1, count=2, batch=2)


def test_cells_are_every_combination_row_by_row_and_share_a_seed():
    axes = [parse_axis("scale", "0, 1"), parse_axis("cfg", "3, 5, 7"), parse_axis("prompt", "one\ntwo")]
    cells = xyz_grid.grid_cells(GridCell(prompt="", adapter="a", others={"b": 0.5}), axes)
    assert len(cells) == 12 and len({cell.seed for cell in cells}) == 1 and cells[0].seed >= 0
    assert [(cell.place, cell.prompt, cell.cfg, cell.scales) for cell in cells[:3]] == [
        ((0, 0, 0), "one", 3.0, {"b": 0.5, "a": 0.0}),
        ((0, 0, 1), "one", 3.0, {"b": 0.5, "a": 1.0}),
        ((0, 1, 0), "one", 5.0, {"b": 0.5, "a": 0.0}),
    ]
    assert cells[-1].notes == {
        "X Type": "Adapter scale", "X Value": "1", "Y Type": "CFG scale", "Y Value": "7", "Z Type": "Prompt",
        "Z Value": "two",
    }  # fmt: skip
    assert len({cell.file for cell in cells}) == 12


def test_what_is_replaced_stands_in_the_prompt_of_another_axis():
    cells = xyz_grid.grid_cells(
        GridCell(prompt="", negative="red sky"),
        [parse_axis("replace", "red, blue"), parse_axis("prompt", "a red cat\na dog")],
    )
    assert [(cell.prompt, cell.negative) for cell in cells] == [
        ("a red cat", "red sky"), ("a blue cat", "blue sky"), ("a dog", "red sky"), ("a dog", "blue sky"),
    ]  # fmt: skip


def test_a_checkpoint_takes_the_adapters_place():
    axis = parse_axis("checkpoint", "", [100, 200])
    cells = xyz_grid.grid_cells(
        GridCell(prompt="x", adapter="run", scale=0.8), [axis], {"100": "run-000100", "200": "run-000200"}
    )
    assert [cell.scales for cell in cells] == [{"run-000100": 0.8}, {"run-000200": 0.8}]


@pytest.mark.parametrize(
    ("start", "axes", "message"),
    [
        (START, [("seed", "1-15"), ("cfg", "1-15")], "15 x 15 are 225 images, and a grid has at most 200"),
        (START, [("seed", "1-2"), ("seed", "3-4")], "two axes are Seed"),
        (START, [("replace", "dog, cat")], "'dog' stands in no prompt"),
        (GridCell(prompt="x"), [("scale", "0, 1")], "scale: choose the adapter"),
        (
            GridCell(prompt="x <lora:a:1>", adapter="a"),
            [("scale", "0, 1")],
            "<lora:a:...> sets the scale that is to be compared",
        ),
    ],
)
def test_a_grid_that_would_compare_nothing_or_too_much_is_refused(start, axes, message):
    with pytest.raises(ConfigError, match=message):
        xyz_grid.grid_cells(start, [parse_axis(*axis) for axis in axes])


@pytest.fixture
def folder(tmp_path):
    axes = (parse_axis("scale", "0, 0.5, 1"), parse_axis("seed", "1, 2"))
    grid = ImageGrid(axes, xyz_grid.grid_cells(START, axes), {"a": "a.safetensors"}, subject="a")
    return xyz_grid.write_declaration(grid, tmp_path / "grid")


def test_a_grid_is_read_back_as_it_was_laid_out(folder):
    grid = xyz_grid.read_grid(folder)
    assert grid.axes == (Axis("scale", ("0", "0.5", "1")), Axis("seed", ("1", "2")))
    assert grid.labels == (["scale 0", "scale 0.5", "scale 1"], ["seed 1", "seed 2"], [""])
    assert grid.cell("0-001-002.png").scales == {"a": 1.0}
    with pytest.raises(ConfigError, match="no such picture"):
        grid.cell("../x.png")
    (folder / "grid.json").write_text('{"axes": 1}')
    with pytest.raises(FileError, match="no grid"):
        xyz_grid.read_grid(folder)


def test_a_filled_grid_holds_its_pictures_and_a_sheet_and_goes_on_where_it_was_cut_short(folder, two_adapters):
    calls = iter(range(99))
    xyz_grid.generate_cells(two_adapters, folder, should_stop=lambda: next(calls) > 4)
    there = {path.name: path.stat().st_mtime_ns for path in folder.glob("0-*.png")}
    assert 1 <= len(there) < 6 and not (folder / "sheet.png").exists()
    assert two_adapters.adapters == {"a": 0.0, "b": 0.0}
    progress = []
    xyz_grid.generate_cells(two_adapters, folder, on_progress=lambda *at: progress.append(at))
    assert all((folder / name).stat().st_mtime_ns == time for name, time in there.items())
    assert progress[-1] == (progress[-1][1],) * 2 == (2 * (6 - len(there)),) * 2
    known = read_parameters(folder / "0-001-002.png")
    assert known.prompt == "a red house on grass <lora:a:1>"
    assert {name: known.settings[name] for name in ("Seed", "X Type", "X Value", "Y Value")} == {
        "Seed": "2", "X Type": "Adapter scale", "X Value": "1", "Y Value": "2",
    }  # fmt: skip
    [alone] = two_adapters.generate("a red house on grass <lora:a:1>", seed=2, steps=2, sampler="Euler a")
    with Image.open(folder / "0-001-002.png") as picture:
        assert (np.asarray(picture) == np.asarray(alone)).all()
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 3 * 64 and sheet.height > 2 * 64
    assert read_parameters(folder / "sheet.png").settings["X Values"] == "0, 0.5, 1"
