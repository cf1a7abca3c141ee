"""Ways to merge, held against small matrices worked by hand and against what each promises."""

import json

import pytest
import torch

from sdlora import editing
from sdlora.adapters.state import AdapterState, ModuleState, build_adapter_state
from sdlora.adapters.targets import adaptable_layers
from sdlora.editing.low_rank import Cut
from sdlora.editing.merge_methods import (
    METHODS,
    MergeOptions,
    Update,
    dare,
    directions,
    orthogonal,
    select,
    ties,
    weighted_sum,
)
from sdlora.errors import ConfigError
from tests.support.adapters import random_adapter, reference_delta, reference_weight, tiny_networks
from tests.support.tiny_models import write_tiny_model

PATH, ALONE = "unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_out"


def matrix(*rows: tuple[float, ...]) -> Update:
    return Update(torch.tensor(rows))


def product(out: int, rank: int, size: int, seed: int) -> Update:
    draw = torch.Generator().manual_seed(seed)
    return Update(torch.randn(out, rank, generator=draw), torch.randn(rank, size, generator=draw))


def close(found: Update, expected) -> bool:
    wanted = expected.matrix if isinstance(expected, Update) else torch.tensor(expected)
    return torch.allclose(found.matrix, wanted, atol=1e-5)


def as_state(**layers: Update) -> AdapterState:
    paths = {"shared": PATH, "alone": ALONE}
    return build_adapter_state(
        {
            paths[name]: ModuleState({"up": update.up, "down": update.down}, float(len(update.down)))
            for name, update in layers.items()
        }
    )


def test_ties_trims_elects_a_sign_and_averages_those_that_agree():
    one, other = matrix((4.0, -1.0), (3.0, 0.5)), matrix((2.0, 3.0), (-5.0, 0.1))
    # All entries: the signs of the sums 6, 2, -2, 0.6; the mean of 4 and 2, 3 alone, -5 alone, the mean of 0.5 and 0.1.
    assert close(ties([one, other], density=1.0), ((3.0, 3.0), (-5.0, 0.3)))
    # Half of them: 4 and 3 are left of the first, 3 and -5 of the second.
    assert close(ties([one, other], density=0.5), ((4.0, 3.0), (-5.0, 0.0)))


def test_ties_of_equal_updates_is_one_of_them_trimmed():
    one = product(6, 2, 5, seed=1)
    assert close(ties([one, one, one], density=1.0), one)
    found = ties([one, one], density=0.2).matrix
    kept = one.matrix.abs() >= one.matrix.abs().flatten().sort(descending=True).values[5]
    assert torch.allclose(found, one.matrix * kept) and int(kept.sum()) == 6  # 20 % of 30.
    level = matrix((2.0, -2.0), (2.0, 2.0))
    assert close(ties([level, level], density=0.25), level)  # Of equal size: none is less than another.


def test_dare_drops_a_share_and_has_the_sum_as_its_mean():
    one, other = product(4, 2, 5, seed=1), product(4, 2, 5, seed=2)
    alone = dare([one], density=0.25, seed=3).matrix
    kept = alone != 0
    assert torch.allclose(alone[kept], one.matrix[kept] / 0.25) and 0 < int(kept.sum()) < 12
    assert torch.equal(alone, dare([one], density=0.25, seed=3).matrix)
    assert not torch.equal(alone, dare([one], density=0.25, seed=4).matrix)
    drawn = torch.stack([dare([one, other], density=0.5, seed=seed).matrix for seed in range(4000)])
    # The variance of an entry is Σ w² (1 - d) / d: five standard errors of the mean of 4000.
    error = 5 * (one.matrix.square() + other.matrix.square()).sqrt() / 4000**0.5
    assert ((drawn.mean(0) - weighted_sum([one, other]).matrix).abs() < error).all()
    assert close(dare([one, other], density=1.0, seed=0), weighted_sum([one, other]))


def test_directions_count_alike_however_long_they_are():
    one, other = matrix((3.0, 0.0), (0.0, 1.0), (0.0, 0.0)), matrix((0.0, 4.0), (0.0, 2.0), (1.0, 1.0))
    # 5 along (1, 1); √5 along (0, 1); what only one has as it is.
    assert close(
        directions([one, other]), ((5 / 2**0.5, 5 / 2**0.5), (0.0, 5**0.5), (1.0, 1.0))
    )  # fmt: skip
    first, second = product(6, 2, 9, seed=1), product(6, 3, 9, seed=2)
    found = directions([first, second])
    assert found.rank == 5 and close(directions([Update(first.matrix), Update(second.matrix)]), found)


def test_later_updates_do_not_read_what_the_first_reads():
    one, other = Update(torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0, 0.0, 0.0]])), product(2, 1, 3, seed=1)
    found = orthogonal([one, other], protect=1.0)
    changed = other.matrix.clone()
    changed[:, 0] = 0
    assert close(found, Update(one.matrix + changed)) and found.rank == 2
    assert torch.allclose(found.matrix[:, 0], one.matrix[:, 0])  # The inputs of the first: as it alone answers.
    apart = Update(torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0, 3.0, 1.0]]))
    assert close(orthogonal([one, apart], protect=1.0), weighted_sum([one, apart]))


def test_only_the_strong_inputs_of_the_first_are_protected():
    strong = Update(torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2, 3))  # 9 of 10 parts in the first input.
    later = Update(torch.ones(2, 1), torch.ones(1, 3))
    assert close(orthogonal([strong, later], protect=0.9), ((3.0, 1.0, 1.0), (0.0, 2.0, 1.0)))
    assert close(orthogonal([strong, later], protect=0.95), ((3.0, 0.0, 1.0), (0.0, 1.0, 1.0)))


def test_a_layer_goes_to_the_adapter_in_which_it_stands_out():
    one, other = matrix((4.0, 0.0), (0.0, 0.0)), matrix((3.0, 3.0), (3.0, 3.0))
    assert select([one, other], sizes=[1.0, 1.0]) is other  # 4 against 12: K is 2 x 2.
    assert select([one, other], sizes=[1.0, 4.0]) is one  # 4 against 3.
    single = Update(torch.tensor([[4.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
    flat = Update(torch.tensor([[3.0], [3.0]]), torch.tensor([[1.0, 1.0]]))
    assert select([single, flat], sizes=[1.0, 1.0]) is single  # K is 1: 4 against 3.
    assert select([single, flat], sizes=[0.0, 1.0]) is flat  # An adapter that changes nothing stands out nowhere.


@pytest.mark.parametrize("method", METHODS)
def test_what_has_a_layer_to_itself_stays_as_it_is(method):
    one = as_state(shared=product(6, 2, 5, seed=1), alone=product(6, 2, 7, seed=2))
    other = as_state(shared=product(6, 2, 5, seed=3))
    cut, options = Cut(energy=1.0), MergeOptions(method)
    for merged in (
        editing.merge([("one", one, 0.5)], cut, options=options),
        editing.merge([("one", one, 0.5), ("other", other, 1.0)], cut, options=options),
    ):
        assert torch.allclose(reference_delta(merged.modules[ALONE]), 0.5 * reference_delta(one.modules[ALONE]))
    alone = editing.merge([("one", one, 1.0)], cut, options=options)
    assert torch.allclose(reference_delta(alone.modules[PATH]), reference_delta(one.modules[PATH]), atol=1e-5)
    if not METHODS[method].full_rank:
        exact = editing.merge_by(options, [("one", one, 1.0), ("other", other, 1.0)])
        truncated = editing.merge([("one", one, 1.0), ("other", other, 1.0)], cut, options=options)
        assert exact.kept == 1.0
        for path, module in exact.state.modules.items():
            assert torch.allclose(reference_delta(module), reference_delta(truncated.modules[path]), atol=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("base") / "sd1", "sd1"))


@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_any_kinds_merge_by_every_method(method, base):
    parts = [(kind, random_adapter(kind, targets="cross-attention"), 0.5) for kind in ("lora", "dora", "loha")]
    progress: list[tuple[int, int]] = []
    found = editing.merge_by(MergeOptions(method), parts, Cut(rank=3), base, lambda *at: progress.append(at))
    assert {module.method for module in found.state.modules.values()} == {"lora"}
    assert 0.1 < found.kept < 1 and progress[-1] == (len(found.state.modules), len(found.state.modules))
    if method not in ("sum", "directions"):
        return
    weights = {path: layer.weight.detach() for path, layer in adaptable_layers(tiny_networks())}
    for path, module in found.state.modules.items():
        changes = [reference_weight(state.modules[path], weights[path]) - weights[path] for _, state, _ in parts]
        whole = METHODS[method].combine([Update(0.5 * change.flatten(1).float()) for change in changes]).matrix
        best = float(torch.linalg.svdvals(whole)[3:].norm())
        assert float((reference_delta(module).flatten(1) - whole).norm()) == pytest.approx(best, rel=1e-2)


def test_the_header_says_how_it_was_merged_and_what_the_cut_kept():
    one, other = as_state(shared=product(6, 2, 5, seed=1)), as_state(shared=product(6, 2, 5, seed=3))
    found = editing.merge_by(MergeOptions("dare", density=0.8), [("a", one, 1.0), ("b", other, 0.5)], Cut(rank=2))
    kept = json.loads(found.state.metadata["sdlora_merge_method"])
    assert kept == {"method": "dare", "density": 0.8, "seed": 0, "rank": 2, "kept": pytest.approx(found.kept, abs=1e-6)}
    again = editing.merge([("both", found.state, 1.0)])
    assert json.loads(again.metadata["sdlora_merge_method"]) == {"method": "sum", "kept": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MergeOptions("tie"), "no such way to merge; did you mean ties"),
        (MergeOptions("sum", density=0.5), "density: sum has no density; leave it out, or use ties and dare"),
        (MergeOptions("ties", seed=1), "seed: ties has no seed; leave it out, or use dare"),
        (MergeOptions("ties", density=0.0), "density = 0.0: give a share above 0"),
        (MergeOptions("orthogonal", protect=1.5), "protect = 1.5: give a share above 0, and 1 at most"),
        (MergeOptions("ties"), "its result has no small factors; give a rank such as 32, or a share of energy"),
    ],
)
def test_what_a_method_cannot_do_is_said_in_a_sentence(options, message):
    state = as_state(shared=product(6, 2, 5, seed=1))
    with pytest.raises(ConfigError, match=message):
        editing.merge([("a", state, 1.0), ("b", state, 1.0)], options=options)
