"""The training step against its formula, worked out beside it in numpy on a model whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdlora.data.batches import Batch
from sdlora.diffusion.ddpm import DDPMProcess
from sdlora.families.base import Conditioning
from sdlora.training.settings import Loss
from sdlora.training.step import training_step

SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SEED, NUMBER, PLACES, INSTANCES = 5, 11, [2, 3, 6, 7], 2  # the share of the second of two processes
GAMMA = 1.0  # about half of all timesteps lie above it


class Known:
    """A family whose model answers a fixed multiple of what it is given, and keeps that."""

    device = torch.device("cpu")
    factor = 0.25

    def __init__(self):
        self.texts = []

    def predict(self, latents, timesteps, conditioning, framing=None):
        self.given = (latents, timesteps, conditioning.text)
        self.texts.append(conditioning.text)
        return self.factor * latents


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(
        mean=torch.randn(4, 4, 8, 6, generator=generator),
        std=torch.rand(4, 4, 8, 6, generator=generator),
        captions=["a", "bb", "ccc", "dddd"],
        mask=None,
        positions=PLACES,
        instances=INSTANCES,
    )


def step(batch, prediction_type="epsilon", prior_weight=1.0, **loss):
    family, process = Known(), DDPMProcess(SD | {"prediction_type": prediction_type})

    def encode(captions, chunks):
        return Conditioning(torch.tensor([float(len(caption)) for caption in captions]))

    given = training_step(family, process, batch, encode, Loss(**loss), prior_weight, SEED, NUMBER)
    return given.item(), family.given


def errors_by_hand(batch, prediction_type="epsilon", gamma=None, noise_offset=0.0):
    """The model's input and each example's error: DDPM eq. 4, the target, the mean square, min-SNR."""
    noise, spread, t = (
        x.double().numpy() for x in DDPMProcess(SD).sample((4, 8, 6), SEED, NUMBER, PLACES, noise_offset)
    )
    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[t.astype(int)].reshape(4, 1, 1, 1)
    latents = batch.mean.double().numpy() + batch.std.double().numpy() * spread
    noisy = np.sqrt(kept) * latents + np.sqrt(1 - kept) * noise
    wanted = noise if prediction_type == "epsilon" else np.sqrt(kept) * noise - np.sqrt(1 - kept) * latents
    square = (0.25 * noisy - wanted) ** 2
    mask = np.ones((4, 1, 8, 6)) if batch.mask is None else batch.mask.numpy()
    error = (square * mask).sum(axis=(1, 2, 3)) / (4 * mask.sum(axis=(1, 2, 3)))
    if gamma is not None:
        snr = (kept / (1 - kept)).reshape(4)
        assert snr.min() < gamma < snr.max()  # else the weight would show nothing
        error *= np.minimum(snr, gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    return noisy, t, error


@pytest.mark.parametrize("noise_offset", [0.0, 0.1])
def test_the_model_is_given_the_latents_drawn_noised_by_the_schedule(batch, noise_offset):
    _, (noisy, timesteps, text) = step(batch, noise_offset=noise_offset)
    expected, t, _ = errors_by_hand(batch, noise_offset=noise_offset)
    np.testing.assert_allclose(noisy.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert timesteps.tolist() == t.tolist()
    assert text.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, GAMMA])
@pytest.mark.parametrize("prior_weight", [0.3, 1.0])
def test_the_loss_is_the_instances_mean_and_the_classes_weighted(batch, prediction_type, gamma, prior_weight):
    loss, _ = step(batch, prediction_type, prior_weight, min_snr_gamma=gamma)
    _, _, error = errors_by_hand(batch, prediction_type, gamma)
    assert loss == pytest.approx(error[:2].mean() + prior_weight * error[2:].mean(), rel=1e-4)


def test_without_class_examples_the_loss_is_the_plain_mean(batch):
    whole = Batch(batch.mean, batch.std, batch.captions, None, PLACES, instances=4)
    loss, _ = step(whole, prior_weight=0.3)
    assert loss == pytest.approx(errors_by_hand(batch)[2].mean(), rel=1e-4)


def test_a_mask_weighs_the_places_of_its_own_example(batch):
    mask = torch.ones(4, 1, 8, 6)
    mask[0, :, :, 3:] = 0
    mask[1, :, :6] = 0.5
    masked = Batch(batch.mean, batch.std, batch.captions, mask, PLACES, INSTANCES)
    loss, _ = step(masked, prior_weight=0.3)
    _, _, error = errors_by_hand(masked)
    assert loss == pytest.approx(error[:2].mean() + 0.3 * error[2:].mean(), rel=1e-4)
    assert loss != pytest.approx(step(batch, prior_weight=0.3)[0], rel=1e-2)


def test_examples_that_preserve_the_base_have_its_prediction_as_their_target(batch):
    batch = replace(batch, from_base=[1, 3])
    loss, texts = step_with_base(batch)
    noisy, _, error = errors_by_hand(batch)
    by_base = ((0.25 * noisy - 0.75 * noisy) ** 2).mean(axis=(1, 2, 3))
    error[[1, 3]] = by_base[[1, 3]]
    assert loss == pytest.approx(error[:2].mean() + 0.3 * error[2:].mean(), rel=1e-4)
    assert texts == [2, 4]


def test_outside_its_mask_an_example_has_the_base_s_prediction_as_its_target(batch):
    mask = torch.ones(4, 1, 8, 6)
    mask[0, :, :, 3:] = 0
    masked = replace(batch, mask=mask)
    noisy, _, error = errors_by_hand(masked)
    outside = ((0.25 * noisy - 0.75 * noisy) ** 2)[0, :, :, 3:].mean()
    loss, _ = step_with_base(masked, outside_masks=0.5)
    assert loss == pytest.approx((error[:2].sum() + 0.5 * outside) / 2 + 0.3 * error[2:].mean(), rel=1e-4)


def step_with_base(batch, **options):
    """The loss where the base predicts 0.75 times what it is given, and the length of the captions that it read."""
    family, process = Known(), DDPMProcess(SD)

    class Disabled:
        """The context in which the model is the base."""

        def __enter__(self):
            family.factor = 0.75

        def __exit__(self, *error):
            family.factor = 0.25

    def encode(captions, chunks):
        return Conditioning(torch.tensor([float(len(caption)) for caption in captions]))

    loss = training_step(family, process, batch, encode, Loss(), 0.3, SEED, NUMBER, Disabled(), **options)
    return loss.item(), family.texts[-1].tolist()


def test_examples_of_several_concepts_have_weights_of_their_own_over_the_instances(batch):
    _, _, error = errors_by_hand(batch)
    weights = [2.0, 0.5, 1.5, 0.25]
    given, _ = step(replace(batch, weights=torch.tensor(weights)), prior_weight=99.0)
    assert given == pytest.approx(float((error * weights).sum() / INSTANCES), rel=1e-4)


def test_an_instance_without_a_class_example_adds_nothing_there(batch):
    _, _, error = errors_by_hand(batch)
    parts = {name: getattr(batch, name)[:3] for name in ("mean", "std", "captions", "positions")}
    given, _ = step(replace(batch, **parts, weights=torch.ones(3)))
    assert given == pytest.approx(float(error[:3].sum() / INSTANCES), rel=1e-4)
