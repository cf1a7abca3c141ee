"""Targets: the layers that each group and pattern names, on the true architectures."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.adapters.targets import adaptable_layers, matches, select_layers, split_targets
from sdlora.errors import ConfigError
from tests.support.adapters import tiny_networks
from tests.support.architectures import meta_models


# SD 1.x and 2.x have 16 transformer blocks, one an attention, SDXL 70 in 11; a block has two attentions of four layers
# and a feed-forward of two. Resnets: 22 with three layers each, 14 of them with a shortcut; 3 + 3 samplers.
# 192 and 72, and 722 and 264, are also what sd-scripts prints for SD 1.5 and SDXL.
@pytest.mark.parametrize(
    ("family", "group", "unet", "text"),
    [
        ("sd1", "cross-attention", 16 * 4, 12 * 4),
        ("sd1", "attention", 16 * 8, 12 * 4),
        ("sd1", "attention+ff", 16 * 10, 12 * 6),
        ("sd1", "linear", 16 * 10 + 16 * 2, 12 * 6),
        ("sd1", "linear+conv", 192 + 22 * 3 + 14 + 6, 12 * 6),
        ("sd2", "cross-attention", 16 * 4, 23 * 4),
        ("sd2", "linear", 192, 23 * 6),
        ("sdxl", "cross-attention", 70 * 4, (12 + 32) * 4),
        ("sdxl", "linear", 70 * 10 + 11 * 2, (12 + 32) * 6),
    ],
)
def test_groups_name_these_many_layers(family: str, group: str, unet: int, text: int) -> None:
    paths = select_layers(meta_models(family), group)
    assert (sum(path.startswith("unet.") for path in paths), sum(path.startswith("text_") for path in paths)) == (
        unet,
        text,
    )


def test_each_group_is_within_the_next() -> None:
    groups = ["cross-attention", "attention", "attention+ff", "linear", "linear+conv"]
    found = [set(select_layers(meta_models("sd1"), group)) for group in groups]
    assert all(smaller < larger for smaller, larger in pairwise(found))


def test_conv_in_and_time_embedding_are_in_no_group() -> None:
    rest = {path for path, _ in adaptable_layers(meta_models("sd1"))} - set(
        select_layers(meta_models("sd1"), "linear+conv")
    )
    assert rest == {"unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.time_embedding.linear_2"}


def test_text_encoder_paths_are_classic_whatever_transformers_calls_them() -> None:
    path = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    assert path in select_layers(meta_models("sd1"), "attention")
    assert path.replace("text_encoder.", "text_encoder_2.") in select_layers(meta_models("sdxl"), "attention")


def test_patterns_are_paths_beginnings_or_globs_and_join_with_commas() -> None:
    base = tiny_networks()
    everything = select_layers(base, "linear+conv")
    assert select_layers(base, "unet.up_blocks") == [path for path in everything if path.startswith("unet.up_blocks.")]
    assert select_layers(base, "*.attn2.to_[kv]") == [p for p in everything if p.endswith(("attn2.to_k", "attn2.to_v"))]
    assert select_layers(base, "unet.conv_in") == ["unet.conv_in"]
    assert select_layers(base, "cross-attention, unet.conv_in") == [
        "unet.conv_in",
        *select_layers(base, "cross-attention"),
    ]


def test_text_encoder_can_be_left_out() -> None:
    assert not any(path.startswith("text") for path in select_layers(tiny_networks(), "linear", text_encoder=False))
    with pytest.raises(ConfigError, match="matches no layer of the unet"):
        select_layers(tiny_networks(), "text_encoder", text_encoder=False)


def test_a_pattern_that_matches_nothing_names_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"'unet.up_block' matches no layer .*did you mean unet\.up_blocks"):
        select_layers(tiny_networks(), "unet.up_block")


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("cross_attention", "mean cross-attention"), ("", "take one of"), ("nonsense", "take one of")],
)
def test_what_can_name_nothing_is_refused_before_a_model_is_loaded(wrong: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        split_targets(wrong)


@given(st.lists(st.sampled_from(["unet", "up_blocks", "1", "11", "attn2", "to_k"]), min_size=1, max_size=6))
def test_a_beginning_ends_at_a_dot(steps: list[str]) -> None:
    path = ".".join(steps)
    assert matches(f"{path}.0", path)
    assert not matches(f"{path}0", path)
