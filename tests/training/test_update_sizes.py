"""Norms and effective ranks of updates, against their definitions on the whole matrix."""

import math

import pytest
import torch

from sdlora.adapters.state import ModuleState, build_adapter_state
from sdlora.editing.low_rank import effective_rank
from sdlora.training.update_sizes import block_updates, singular_values


def low_rank(seed, rank=4, out=24, inputs=40):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, inputs, generator=generator)


def test_singular_values_are_those_of_the_product():
    up, down = low_rank(0)
    expected = torch.linalg.svdvals((up @ down).double())[:4]
    torch.testing.assert_close(singular_values(up, down).flip(0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "rank"), [([1.0, 1.0, 1.0, 0.0], 3.0), ([5.0, 0.0], 1.0), ([3.0, 1.0], 4 / 3**0.75), ([0.0, 0.0], 1.0)]
)
def test_the_effective_rank_of_known_spectra(values, rank):
    """exp(H): three equal values have 3; shares 3/4 and 1/4 have exp(ln 4 - 3/4 ln 3)."""
    assert effective_rank(torch.tensor(values, dtype=torch.float64)) == pytest.approx(rank)


def test_a_block_has_the_norm_of_all_its_layers_and_the_mean_rank_of_those_that_changed():
    unit = torch.eye(2)
    layers = {
        "unet.down_blocks.0.attentions.0.proj_in": ModuleState({"down": unit, "up": 3 * unit}, 4.0),
        "unet.down_blocks.0.attentions.0.proj_out": ModuleState({"down": unit, "up": 0 * unit}, 2.0),
        "unet.mid_block.attentions.0.proj_in": ModuleState({"down": unit, "up": 0 * unit}, 2.0),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": ModuleState({"down": unit[:1], "up": unit[:, :1]}, 1.0),
        "unet.up_blocks.1.attentions.0.proj_in": ModuleState({"diff": torch.ones(2, 2)}),
    }
    found = {one.block: (one.norm, one.rank) for one in block_updates(build_adapter_state(layers))}
    assert found == {
        "down 0": (pytest.approx(math.sqrt(2) * 6), pytest.approx(2.0)),  # alpha / rank = 2, of two singular values 3.
        "mid": (0.0, 0.0),
        "text encoder": (pytest.approx(1.0), pytest.approx(1.0)),
    }
