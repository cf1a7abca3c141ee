"""How much adapters overlap, held against matrices whose overlap is known."""

import math

import pytest
import torch

from sdlora import editing
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.editing.low_rank import factorize_matrix
from sdlora.editing.overlap import compare_updates, describe_overlap, overlap_table
from sdlora.errors import ConfigError, MismatchError
from tests.support.adapters import random_adapter

PATH = "unet.mid_block.attentions.0.proj_in"


def layer(one, other):
    return compare_updates("a", *(factorize_matrix(torch.tensor(each)) for each in (one, other)))


def lora(*paths: str, out: int = 40, size: int = 60, rank: int = 4, seed: int = 0, like=None) -> AdapterState:
    """A LoRA of random numbers; ``like`` gives its ``down``."""
    draw = torch.Generator().manual_seed(seed)
    modules = {}
    for path in paths:
        down = like.modules[path].tensors["down"] if like else torch.randn(rank, size, generator=draw)
        modules[path] = ModuleState({"down": down, "up": torch.randn(out, rank, generator=draw)}, float(rank))
    return build_adapter_state(modules)


def test_an_update_and_a_multiple_of_it_overlap_completely():
    one = [[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]
    same = layer(one, [[-2 * value for value in row] for row in one])
    assert (same.cosine, same.inputs, same.outputs) == pytest.approx((-1, 1, 1))
    assert same.norms == pytest.approx((15**0.5, 2 * 15**0.5))


def test_by_hand_what_is_read_in_common_and_written_apart():
    """Rank one each: the same input, outputs at right angles, in 3 and 2 dimensions."""
    found = layer([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    assert found.cosine == pytest.approx(0)
    assert found.inputs == pytest.approx(1)
    assert found.outputs == pytest.approx((0 - 1 / 2) / (1 - 1 / 2))  # Chance is 1 / 2: they avoid each other.


def test_alignment_follows_the_matrices_themselves():
    one, other = (torch.randn(7, 9, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    found = compare_updates("a", factorize_matrix(one), factorize_matrix(other))
    assert found.cosine == pytest.approx(float((one * other).sum() / (one.norm() * other.norm())))
    for name, p, q in (("inputs", one.T @ one, other.T @ other), ("outputs", one @ one.T, other @ other.T)):
        scale = float(p.norm() * q.norm())
        raw, chance = float((p * q).sum()) / scale, float(p.trace() * q.trace()) / len(p) / scale
        assert getattr(found, name) == pytest.approx((raw - chance) / (1 - chance))


def test_random_directions_have_no_overlap_on_average():
    found = [
        editing.overlap(("a", lora(PATH, seed=seed)), ("b", lora(PATH, seed=1000 + seed))).whole for seed in range(60)
    ]
    for name in ("cosine", "inputs", "outputs"):
        values = torch.tensor([getattr(each, name) for each in found])
        assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(len(values)) + 1e-3, name
    assert float(torch.tensor([each.inputs for each in found]).abs().max()) < 0.2


def test_layers_of_one_alone_count_in_the_shares():
    one, other = lora(PATH, "text_encoder.a", seed=1), lora(PATH, seed=2, like=lora(PATH, seed=1))
    found = editing.overlap(("one", one), ("other", other))
    assert found.whole.layers == 1 and found.blocks["text encoder"].layers == 0
    assert found.whole.inputs > 0.5 > abs(found.whole.outputs)  # The same down, as two runs of one seed start with.
    norms = {each.path: each.norms for each in found.layers}
    first = norms[PATH][0] ** 2 / (norms[PATH][0] ** 2 + norms["text_encoder.a"][0] ** 2)
    assert found.whole.shared == pytest.approx((first + 1) / 2)
    assert found.blocks["mid"].cosine == pytest.approx(next(each.cosine for each in found.layers if each.path == PATH))
    assert abs(found.whole.cosine) < abs(found.blocks["mid"].cosine)


def test_the_sentence_fits_the_figures():
    one = lora(PATH, seed=1)
    opposite = build_adapter_state({PATH: one.modules[PATH].scaled_by(-1.0)})
    said = {
        name: describe_overlap(editing.overlap(("one", one), (name, state)))
        for name, state in (
            ("itself", one), ("opposite", opposite), ("random", lora(PATH, seed=2)),
            ("reads", lora(PATH, seed=3, like=one)), ("elsewhere", lora("unet.a", seed=2)),
            ("nothing", build_adapter_state({PATH: one.modules[PATH].scaled_by(0.0)})),
        )
    }  # fmt: skip
    assert "nearly the same change" in said["itself"]
    assert "opposite" in said["opposite"]
    assert "independent directions" in said["random"]
    assert "read partly the same directions, as adapters trained with one seed do" in said["reads"]
    assert "no layer in common" in said["elsewhere"] and "no layer in common" in said["nothing"]
    assert len(set(said.values())) == 6  # Each names its pair.


def test_a_table_has_a_line_for_each_block_and_layer():
    found = editing.overlap(
        ("one", random_adapter("lora", targets="cross-attention")),
        ("other", random_adapter("loha", seed=2, targets="cross-attention")),
    )
    lines = list(overlap_table(found))
    assert len(lines) == 2 + len(found.blocks) and "all" in lines[1]
    assert len(list(overlap_table(found, layers=True))) == len(lines) + len(found.layers)


def test_what_cannot_be_compared_is_told():
    with pytest.raises(MismatchError, match="for different bases"):
        editing.overlap(("a", lora(PATH)), ("b", lora(PATH, out=8)))
    with pytest.raises(ConfigError, match="name the base model"):
        editing.overlap(("a", random_adapter("lora")), ("b", random_adapter("dora")))
