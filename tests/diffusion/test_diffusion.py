"""The tensor maths of diffusion, against the papers' formulas and diffusers' schedulers."""

import pytest
import torch
from diffusers import DDPMScheduler

from sdlora.diffusion.ddpm import DDPMProcess, debiased_weight, min_snr_weight, p2_weight
from sdlora.seeds import derive
from sdlora.training.step import squared_error

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
    process = DDPMProcess(config)
    torch.testing.assert_close(process.add_noise(latents, noise, timesteps), reference.add_noise(*tensors))
    assert process.target(*tensors) is noise
    velocity = DDPMProcess(config | {"prediction_type": "v_prediction"})
    torch.testing.assert_close(velocity.target(*tensors), reference.get_velocity(*tensors))


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
    together = DDPMProcess(SD).sample((4, 8, 8), seed=3, number=7, positions=[0, 1, 2, 3], noise_offset=0.1)
    apart = DDPMProcess(SD).sample((4, 8, 8), seed=3, number=7, positions=[2, 3], noise_offset=0.1)
    for whole, part in zip(together, apart, strict=True):
        assert torch.equal(whole[2:], part)
    assert not torch.equal(together[0][0], together[0][1])
    assert not torch.equal(together[0], DDPMProcess(SD).sample((4, 8, 8), seed=3, number=8, positions=[0, 1, 2, 3])[0])


def test_noise_offset_moves_each_channel_as_a_whole():
    plain = DDPMProcess(SD).sample((4, 16, 16), seed=0, number=0, positions=[0])[0]
    shifted = DDPMProcess(SD).sample((4, 16, 16), seed=0, number=0, positions=[0], noise_offset=0.5)[0]
    difference = (shifted - plain)[0]
    assert difference.std(dim=(1, 2)).max() < 1e-6
    assert difference.abs().max() > 0.01


SNR = torch.tensor([100.0, 4.0, 1.0, 0.25])
PUBLISHED = {
    "debiased": (debiased_weight, [0.1, 0.5, 1.0, 2.0]),  # 1 / sqrt(SNR)
    "p2": (p2_weight, [1 / 101, 0.2, 0.5, 0.8]),  # 1 / (1 + SNR)
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_weighting_follows_its_formula_and_counts_a_velocitys_error_as_the_noises(name):
    weight, expected = PUBLISHED[name]
    assert weight(SNR, "epsilon").tolist() == pytest.approx(expected)
    # The error of v is that of the noise times (SNR + 1) / SNR (arXiv:2202.00512, appendix D).
    assert weight(SNR, "v_prediction").tolist() == pytest.approx((weight(SNR, "epsilon") * SNR / (SNR + 1)).tolist())


def timesteps(sampling, span=(0, None), numbers=range(500), places=range(4)):
    return torch.stack([DDPMProcess(SD).sample((4, 1, 1), 3, n, list(places), 0.0, sampling, span)[2] for n in numbers])


def test_uniform_timesteps_are_what_they_were_before_there_was_a_choice():
    generator = torch.Generator().manual_seed(derive(3, "noise", 7, 2))
    expected = torch.randint(1000, (1,), generator=generator), torch.randn(4, 8, 8, generator=generator)
    offset = torch.randn(4, 1, 1, generator=generator) * 0.0
    noise, spread, times = DDPMProcess(SD).sample((4, 8, 8), 3, 7, [2])
    assert torch.equal(times, expected[0])
    assert torch.equal(spread[0], expected[1])
    assert torch.equal(noise[0], torch.randn(4, 8, 8, generator=generator) + offset)


@pytest.mark.parametrize("sampling", ["uniform", "even", "logit-normal"])
def test_a_timestep_depends_on_seed_number_and_place_and_stays_in_its_span(sampling):
    times = timesteps(sampling, (200, 599))
    assert (times.min() >= 200) and (times.max() <= 599)
    assert len(times.unique()) > 150
    assert torch.equal(timesteps(sampling, (200, 599), [7], [2, 3])[0], times[7, 2:])
    assert not torch.equal(
        DDPMProcess(SD).sample((4, 1, 1), 4, 7, [0, 1, 2, 3], 0.0, sampling)[2], timesteps(sampling)[7]
    )


def test_even_timesteps_come_alike_often_and_keep_their_distance_in_a_batch():
    even, chance = timesteps("even"), timesteps("uniform")
    counts = torch.histc(even.float(), 20, 0, 1000)
    assert (counts - 100).abs().max() <= 5  # 2000 in 20 bins; chance alone would be off by 10 and more
    for batch in even.sort(dim=1).values:
        apart = torch.cat([batch.diff(), batch[:1] + 1000 - batch[-1:]])
        assert apart.min() > 140  # three-distance theorem: four points a golden turn apart, 0.146 at least
    means = [times.float().mean(1).view(50, 10).mean(1) for times in (chance, even)]  # over ten steps: Adam's memory
    assert means[0].std() > 3 * means[1].std()


def test_logit_normal_timesteps_are_a_sigmoid_of_normal_numbers():
    share = (timesteps("logit-normal").flatten().double() + 0.5) / 1000
    logit = (share / (1 - share)).log()
    assert logit.mean().abs() < 0.08
    assert logit.std().item() == pytest.approx(1, abs=0.08)
