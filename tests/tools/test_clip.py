"""The losses that the measuring CLIP is trained with, and the blend of its weights."""

import math

import pytest
import torch

from tools.pocket import clip, looks
from tools.pocket.world import STYLES

EAST, NORTH = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


@pytest.mark.parametrize(
    ("names", "together"),
    [(["ink", "ink", "dots", "dots"], True), (["ink", "dots", "ink", "dots"], False)],
    ids=["together", "apart"],
)
def test_pictures_of_one_look_shall_be_nearest(names, together):
    """Computed by hand: one of three others has the look; the softmax runs over their sharpened cosines."""
    features = torch.stack([EAST, EAST, NORTH, NORTH])
    near, far = math.exp(clip.LOOK_SHARPNESS), 1
    whole = near + 2 * far
    expected = -math.log((near if together else far) / whole)
    assert clip.look_loss(features, names).item() == pytest.approx(expected, abs=1e-4)


def test_a_look_that_is_alone_in_its_batch_pulls_nothing():
    features = torch.stack([EAST, EAST, NORTH]).requires_grad_()
    loss = clip.look_loss(features, ["ink", "dots", "blocks"])
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


def test_a_blend_lies_between_both():
    new, old = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = (1 - clip.KEPT) * new.weight + clip.KEPT * old.weight
    clip.blend(new, old)
    assert torch.allclose(new.weight, expected)


def test_looks_have_names_of_their_own():
    """None is a style of the world, a picture in two looks is a third look, and the number alone decides."""
    names = {looks.names(looks.OFFSET + i) for i in range(300)}
    assert {name for name in names if "+" not in name} == {look.__name__ for look in looks.LOOKS}
    assert any("+" in name for name in names)
    assert not names & set(STYLES)
    assert looks.picture(looks.OFFSET).tobytes() == looks.picture(looks.OFFSET).tobytes()
