"""The losses that the measuring CLIP is trained with, its looks, and how its image tower gets smaller patches."""

import math

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from tools.pocket import clip, exam_looks, looks, tower, world
from tools.pocket.captions import caption
from tools.pocket.measure import named
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
    near, far = math.exp(tower.LOOK_SHARPNESS), 1
    whole = near + 2 * far
    expected = -math.log((near if together else far) / whole)
    assert tower.look_loss(features, names).item() == pytest.approx(expected, abs=1e-4)


def test_a_look_that_is_alone_in_its_batch_pulls_nothing():
    features = torch.stack([EAST, EAST, NORTH]).requires_grad_()
    loss = tower.look_loss(features, ["ink", "dots", "blocks"])
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


def test_the_middle_layer_keeps_to_its_teachers_differences():
    """A part that all features share counts for nothing: the odd cat differs from cats by little of a feature."""
    shared, taught = 100 * EAST, torch.stack([EAST, NORTH, -EAST, -NORTH])
    same = tower.middle_loss(taught + shared, taught + shared)
    assert same.item() == pytest.approx(0, abs=1e-5)
    assert tower.middle_loss(shared - taught, taught + shared).item() == pytest.approx(2, abs=1e-5)


def test_a_caption_with_a_colour_is_neither_true_nor_false_of_an_image_without():
    labels = [("house", "", "on grass", ""), ("house", "red", "on grass", ""), ("cat", "", "on grass", "")]
    wanted = [("house", "red", None, None), ("house", None, "on grass", None), ("house", "red", "on snow", None)]
    assert tower.undecided(labels, wanted).tolist() == [
        [True, False, False], [False, False, False], [False, False, False],
    ]  # fmt: skip
    assert clip.matches(labels, wanted).tolist() == [[False, True, False], [True, True, False], [False, False, False]]


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    text = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    image = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=8)).eval()


def test_smaller_patches_see_what_larger_ones_did_and_the_text_tower_stays(small):
    made = tower.begun(small, patch=8)
    before, after = (model.vision_model.embeddings for model in (small, made))
    assert after.position_embedding.weight.shape == (1 + 16, 16)
    plain = torch.full((1, 3, 32, 32), 0.7)  # Of a plain image, a patch says the same whatever its size.
    torch.testing.assert_close(
        after.patch_embedding(plain)[..., :1, :1], before.patch_embedding(plain)[..., :1, :1], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(after.position_embedding.weight[0], before.position_embedding.weight[0])
    trained = {name.split(".")[0] for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trained == {"vision_model", "visual_projection", "logit_scale"}
    for name, weight in made.text_model.state_dict().items():
        assert torch.equal(weight, small.text_model.state_dict()[name])


def test_without_dropped_patches_an_image_has_the_towers_own_features_and_middle_layer(small):
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        own = torch.nn.functional.normalize(small.get_image_features(pixel_values=pixels).pooler_output, dim=1)
        found, middle = tower.image_features(small, pixels)
        torch.testing.assert_close(found, own)
        hidden = small.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(middle, small.vision_model.post_layernorm(hidden[1][:, 0]))
        assert not torch.allclose(tower.image_features(small, pixels, dropped=0.5)[0], own)


def test_a_look_is_shared_by_some_images_and_its_number_alone_decides():
    numbers = [looks.look_number(looks.OFFSET + i) for i in range(2 * looks.SHARED)]
    assert len({*numbers}) == 2
    assert looks.picture(looks.OFFSET).tobytes() == looks.picture(looks.OFFSET).tobytes()


def test_every_texture_and_colour_gives_an_image_whatever_it_is_given():
    """None leaves a picture as it is, or gives anything but finite levels of the same shape."""
    makers = {maker for family in looks.FAMILIES.values() for maker in family}
    makers |= {*looks.TRUE_COLOURS, *looks.OTHER_COLOURS}
    pixels = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    for maker in makers:
        made = maker(np.random.default_rng(1))(pixels.copy(), np.random.default_rng(2))
        assert made.shape == pixels.shape and np.isfinite(made).all(), maker.__name__
        assert not np.allclose(made, pixels), maker.__name__


def test_looks_without_true_colours_are_known_as_such():
    chosen = [looks.look(number) for number in range(400)]
    share = np.mean([each.keeps_colour for each in chosen])
    assert 0.4 < share < 0.8
    assert {each.paint for each in chosen if isinstance(each.paint, str)} == {*STYLES}


def test_the_looks_of_the_exam_are_no_looks_of_the_training():
    """Each is deterministic, and neither a painter of the world nor one of the random families."""
    scene = world.scene("house", "red", "on grass", 1)
    for name, painter in exam_looks.PAINTERS.items():
        one, again = (painter(scene, np.random.default_rng(3), 64) for _ in range(2))
        assert one.size == (64, 64) and one.tobytes() == again.tobytes()
        assert name not in {*looks.FAMILIES, *world.STYLES, *world.UNSEEN_STYLES}


def test_things_are_named_by_the_nearest_of_their_words():
    """A reader that is given the truth names all, one that sees nothing about as many as chance."""

    class Reader:
        def __init__(self, sees):
            self.sees = sees

        def images(self, drawn):
            return torch.eye(64)[: len(drawn)]

        def texts(self, texts):
            generator = torch.Generator().manual_seed(len(texts))
            right = torch.zeros(len(texts), 64)
            for number, words in enumerate(contents):
                right[:, number] = torch.tensor([float(text in truths(words)) for text in texts])
            return right if self.sees else torch.rand(right.shape, generator=generator)

    def truths(words):
        thing, colour, place = words
        return {caption(thing, None, None), caption(thing, colour, None), caption(thing, None, place)}

    choices, rng = world.combinations(kept_out=True), np.random.default_rng(4000)
    contents = [choices[i] for i in rng.integers(len(choices), size=60)]
    blank = lambda scene, rng, size: None  # noqa: E731 - what is drawn does not matter here
    assert named(Reader(True), blank, count=60) == {"object": 1.0, "colour": 1.0, "place": 1.0}
    guessed = named(Reader(False), blank, count=60)
    assert guessed["object"] < 0.25 and guessed["colour"] < 0.3 and guessed["place"] < 0.4
