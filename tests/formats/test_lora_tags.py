"""The expected readings are those of stable-diffusion-webui's extra_networks_lora.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.errors import ConfigError
from sdlora.formats.lora_tags import lora_tag, parse_lora_tags


@pytest.mark.parametrize(
    ("prompt", "text", "scales"),
    [
        ("a red house", "a red house", {}),
        ("a  red house ", "a  red house ", {}),
        ("a red house <lora:glass:0.8>", "a red house", {"glass": 0.8}),
        ("<lora:glass> a red house", "a red house", {"glass": 1.0}),
        ("a red <lora:glass:-.5> house", "a red house", {"glass": -0.5}),
        ("a house <lora:glass:1>, at night", "a house, at night", {"glass": 1.0}),
        ("<lora:my style:2><LORA:b:0>x", "x", {"my style": 2.0, "b": 0.0}),
        ("x<lora:a:0.8:0.5>", "x", {"a": {"text_encoder": 0.8, "unet": 0.5}}),
        ("x<lora:a:te=0.5>", "x", {"a": 0.5}),
        ("x<lora:a:te=0.5:unet=1.5>", "x", {"a": {"text_encoder": 0.5, "unet": 1.5}}),
        ("x<lora:a:1><lora:a:0.2>", "x", {"a": 0.2}),
        ("a<b, <lora> <:x>", "a<b, <lora> <:x>", {}),
    ],
)
def test_tags_leave_the_prompt_and_become_scales(prompt, text, scales):
    assert parse_lora_tags(prompt) == (text, scales)


@pytest.mark.parametrize("bad", ["<lora:>", "<lora:a:x>", "<lora:a:nan>", "<lora:a:1:2:3>", "<lora:a:b=1>"])
def test_a_tag_that_cannot_be_read_is_named(bad):
    with pytest.raises(ConfigError, match=r"write <lora:name:0\.8>") as error:
        parse_lora_tags(f"a house {bad}")
    assert bad in str(error.value)


NUMBERS = st.floats(-4, 4)


@given(NUMBERS, NUMBERS)
def test_a_written_tag_reads_back(text, unet):
    scale = text if text == unet else {"text_encoder": text, "unet": unet}
    assert parse_lora_tags(lora_tag("a", scale)).scales == {"a": scale}
