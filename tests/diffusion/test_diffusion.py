"""The tensor maths of diffusion, against the papers' formulas and diffusers' schedulers."""

import pytest
import torch
from diffusers import DDPMScheduler

from sdlora.diffusion.noise import draw
from sdlora.diffusion.objective import squared_error, target
from sdlora.diffusion.schedule import NoiseSchedule
from sdlora.diffusion.weighting import min_snr_weight

SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0, 500, 999])


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_noising_and_velocity_equal_diffusers(beta_schedule, tensors):
    latents, noise, timesteps = tensors
    config = SD | {"beta_schedule": beta_schedule}
    reference = DDPMScheduler(**config)
    schedule = NoiseSchedule(config)
    torch.testing.assert_close(schedule.add_noise(latents, noise, timesteps), reference.add_noise(*tensors))
    torch.testing.assert_close(schedule.velocity(*tensors), reference.get_velocity(*tensors))
    assert target(schedule, "epsilon", *tensors) is noise


def test_min_snr_weight_is_one_below_gamma_and_falls_as_gamma_over_snr_above():
    snr = torch.tensor([0.1, 5.0, 50.0])
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "epsilon"), torch.tensor([1.0, 1.0, 0.1]))
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "v_prediction"), torch.tensor([0.1 / 1.1, 5 / 6, 5 / 51]))


def test_masked_error_counts_only_what_the_mask_shows(tensors):
    latents, noise, _ = tensors
    mask = torch.zeros(3, 1, 8, 8)
    mask[:, :, :2] = 1
    expected = ((latents - noise)[:, :, :2] ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(squared_error(latents, noise, mask), expected)


def test_error_of_half_precision_does_not_overflow():
    big = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)
    assert squared_error(big, -big).item() == 600.0**2


def test_draws_depend_on_the_place_alone_not_on_the_batch_it_is_in():
    together = draw((4, 8, 8), 1000, seed=3, number=7, places=[0, 1, 2, 3], noise_offset=0.1)
    apart = draw((4, 8, 8), 1000, seed=3, number=7, places=[2, 3], noise_offset=0.1)
    for whole, part in zip(together, apart, strict=True):
        assert torch.equal(whole[2:], part)
    assert not torch.equal(together[0][0], together[0][1])
    assert not torch.equal(together[0], draw((4, 8, 8), 1000, seed=3, number=8, places=[0, 1, 2, 3])[0])


def test_noise_offset_moves_each_channel_as_a_whole():
    plain = draw((4, 16, 16), 1000, seed=0, number=0, places=[0])[0]
    shifted = draw((4, 16, 16), 1000, seed=0, number=0, places=[0], noise_offset=0.5)[0]
    difference = (shifted - plain)[0]
    assert difference.std(dim=(1, 2)).max() < 1e-6
    assert difference.abs().max() > 0.01
