import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdlora.errors import ConfigError, FileError
from sdlora.generation.images import save_images
from sdlora.generation.infotext import Parameters, format_parameters, parse_parameters, read_parameters

TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "Negative prompt:" not in text)
SETTINGS = st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9 /-]{0,10}[A-Za-z]", fullmatch=True), TEXT, max_size=5)


@given(TEXT, TEXT, SETTINGS)
def test_parameters_read_back_as_they_were_written(prompt, negative, settings):
    written = Parameters(prompt, negative, {"Steps": "25"} | settings)
    assert parse_parameters(format_parameters(written)) == written


@given(TEXT)
def test_any_text_reads_as_something(text):
    assert isinstance(parse_parameters(text), Parameters)


def test_the_text_of_another_tool_is_read():
    """The example of stable-diffusion-webui's own docstring, and a picture without a negative prompt."""
    text = (
        "girl, (beret:1.2),\nblue eyes\nNegative prompt: ugly, fat\n"
        "Steps: 20, Sampler: Euler a, Seed: 965400086, Size: 512x512"
    )
    assert parse_parameters(text) == Parameters(
        "girl, (beret:1.2),\nblue eyes",
        "ugly, fat",
        {"Steps": "20", "Sampler": "Euler a", "Seed": "965400086", "Size": "512x512"},
    )
    assert parse_parameters('a cat\nSteps: 20, Lora hashes: "a: 1, b: 2", CFG scale: 7').settings == {
        "Steps": "20",
        "Lora hashes": "a: 1, b: 2",
        "CFG scale": "7",
    }


@pytest.mark.parametrize("prompt", ["a red house", "ein Häuschen, 家, 🏠", "two\nlines", "nul \0 in it"])
def test_a_saved_picture_carries_its_parameters(tmp_path, prompt):
    image = Image.new("RGB", (8, 8), "red")
    parameters = Parameters(prompt, "blurry", {"Steps": "25", "Lora hashes": "a: 0123456789ab"})
    image.info["parameters"] = format_parameters(parameters)
    [path] = save_images([image], tmp_path / "out ü '.png")
    assert read_parameters(path) == parameters
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_lone_surrogate_does_not_lose_the_picture(tmp_path):
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = "bad \ud800 text"
    [path] = save_images([image], tmp_path / "out.png")
    assert read_parameters(path).prompt == "bad ? text"


def test_no_picture_is_overwritten(tmp_path):
    path = tmp_path / "new" / "out.png"
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    assert [saved.name for saved in save_images(images, path)] == ["out.png", "out-2.png", "out-3.png"]
    assert [saved.name for saved in save_images(images[:1], path)] == ["out-4.png"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["out-2.png", "out-3.png", "out-4.png", "out.png"]


def test_only_png_is_written_and_only_pictures_are_read(tmp_path):
    with pytest.raises(ConfigError, match=r"name it out\.png"):
        save_images([Image.new("RGB", (8, 8))], tmp_path / "out.jpg")
    (tmp_path / "fake.png").write_text("<html>")
    with pytest.raises(FileError, match=r"fake\.png"):
        read_parameters(tmp_path / "fake.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert read_parameters(tmp_path / "plain.png") is None
