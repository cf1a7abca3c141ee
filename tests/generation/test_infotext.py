import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.errors import ConfigError, FileError
from sdlora.generation import prompt_weighting
from sdlora.generation.infotext import LIMITS, Parameters, format_parameters, recall_image, recall_text

OURS = format_parameters(
    Parameters(
        "a sks cat <lora:cat:0.8> <lora:glass:-0.5>",
        "snow, ice",
        {
            "Steps": "7", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "4.5", "Seed": "123",
            "Size": "128x64", "Model hash": "0123456789", "Model": "pocket", "Clip skip": "2",
            "Lora hashes": "cat: 1, glass: 2",
        },
    )
)  # fmt: skip


def picture(path, **texts):
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def test_our_own_text_fills_every_field():
    read = recall_text(OURS, ["cat", "glass"])
    assert (read.prompt, read.negative, read.remarks) == ("a sks cat", "snow, ice", ())
    assert (read.sampler, read.model) == ("DPM++ 2M Karras", "pocket")
    assert read.scales == {"cat": 0.8, "glass": -0.5}
    assert read.numbers == {"steps": 7, "cfg": 4.5, "seed": 123, "width": 128, "height": 64, "clip_skip": 2}


@pytest.mark.parametrize(
    ("line", "sampler", "message"),
    [
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M Karras", ""),  # As A1111 wrote it before 1.9.
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a", ""),
        ("Sampler: Euler, Schedule type: Beta", "Euler", "Euler has no schedule type 'Beta' here"),
        ("Sampler: Restart, Schedule type: Karras", "", "no sampler 'Restart' here"),
    ],
)
def test_samplers_of_any_age_are_read_and_unknown_ones_named(line, sampler, message):
    read = recall_text(f"a cat\nSteps: 7, {line}, Seed: 1", [])
    assert (read.sampler, read.numbers) == (sampler, {"steps": 7, "seed": 1})
    assert message in " ".join(read.remarks) and bool(read.remarks) == bool(message)


def test_what_cannot_be_taken_over_is_named_and_the_rest_is_filled_in():
    text = (
        "a cat <lora:gone:0.5> <lora:cat:0.5:0.25> <lora:glass:3>\nwith a hat\r\n"
        'Steps: 9999, CFG scale: x, Seed: 5, Size: big, Hires upscale: 2, Note: "a, b"'
    )
    read = recall_text(text, ["cat", "glass"])
    assert read.prompt == "a cat \nwith a hat <lora:cat:0.5:0.25> <lora:glass:3>"  # No slider holds these two.
    assert (read.scales, read.numbers, read.negative) == ({}, {"seed": 5}, "")
    message = " ".join(read.remarks)
    for part in (
        "no adapter 'gone'",
        "steps = 9999: give 1 to 1000",
        "cfg = x",
        "Size 'big' cannot",
        "Hires upscale, Note",
    ):
        assert part in message


def test_a_text_without_settings_is_a_prompt_and_no_text_is_an_error():
    assert recall_text("just words", []).prompt == "just words"
    assert "only the prompt" in recall_text("just words", []).remarks[0]
    assert "<lora:a:x>" in recall_text("b <lora:a:x>\nSteps: 3", []).prompt
    with pytest.raises(ConfigError, match="no text yet"):
        recall_text(" \n", [])


@given(st.text(st.sampled_from("abn <>:lora,0.5\n\"'x-Stepsd1\\{}()"), max_size=80))
def test_any_text_is_read_and_numbers_stay_in_their_limits(text):
    read = recall_text(f"x{text}\nSteps: 3, Seed: {text[:5]!r}", ["a"])
    assert all(LIMITS[name][0] <= number <= LIMITS[name][1] for name, number in read.numbers.items())


def test_a_picture_is_read_or_says_in_a_sentence_why_not(tmp_path):
    assert recall_image(picture(tmp_path / "a.png", parameters=OURS), ["cat"]).numbers["seed"] == 123
    with pytest.raises(FileError, match=r"comfy\.png: holds a ComfyUI workflow"):
        recall_image(picture(tmp_path / "comfy.png", prompt=json.dumps({"3": {}})), [])
    with pytest.raises(FileError, match=r"plain\.png: holds no settings"):
        recall_image(picture(tmp_path / "plain.png"), [])
    (tmp_path / "fake.png").write_text("<html>")
    with pytest.raises(FileError, match=r"fake\.png: is not a picture"):
        recall_image(tmp_path / "fake.png", [])


@pytest.mark.parametrize(
    "text",
    ["x" * 100_000, " " * 100_000 + "x", "aa: " * 25_000, ":" + "1" * 100_000 + "x", "Steps: 1, " + "x" * 100_000],
)
def test_a_strangers_long_text_stops_nobody(text):
    """Seconds where it took the square of its length: 40 of them, in which the whole page stood still."""
    before = time.process_time()
    recall_text(text, ())
    prompt_weighting.parse_weights(text)
    assert time.process_time() - before < 4
