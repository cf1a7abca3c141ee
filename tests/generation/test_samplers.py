import pytest
import torch

from sdlora.diffusion.ddpm import DDPMProcess
from sdlora.errors import ConfigError
from sdlora.generation import samplers
from sdlora.generation.settings import Sample

SD1 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_sampler_solves_a_problem_with_a_known_answer(name):
    """Were all data one point, the noise in z = a·x + s·e would be known exactly, and any sampler must end there.

    DDIM, PLMS and DEIS stop at the model's least noise, sqrt(1 - alpha_0) = 0.029, the others at none.
    """
    point = torch.tensor([0.3, -0.7]).view(1, 2, 1, 1)
    scheduler = samplers.make_scheduler(name, DDPMProcess(SD1))
    scheduler.set_timesteps(12)
    torch.manual_seed(0)  # For the samplers that add noise.
    z = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(z, t)
        alpha = _alpha_cumprod(t)
        noise = (seen - alpha.sqrt() * point) / (1 - alpha).sqrt()
        z = scheduler.step(noise, t, z, return_dict=False)[0]
    assert (z - point).pow(2).mean().sqrt() < 0.03


def _alpha_cumprod(t):
    """Product of 1 - beta up to ``t``; between whole timesteps by log sigma, as Karras schedules do."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    log_sigmas = ((1 - alphas) / alphas).sqrt().log()
    low = t.floor().long().clamp(0, 998)
    sigma = torch.lerp(log_sigmas[low], log_sigmas[low + 1], (t - low).double()).exp()
    return (1 / (1 + sigma**2)).float()


@pytest.mark.parametrize(
    ("given", "canonical", "parts"),
    [
        ("dpm++ 2m karras", "DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("Euler A", "Euler a", ("Euler a", "Automatic")),
        ("pndm", "PLMS", ("PLMS", "Automatic")),
        ("DDIM Automatic", "DDIM", ("DDIM", "Automatic")),
        ("Heun  SGM uniform", "Heun SGM Uniform", ("Heun", "SGM Uniform")),
    ],
)
def test_names_are_taken_in_any_case(given, canonical, parts):
    assert samplers.canonical_sampler(given) == canonical
    assert samplers.split_sampler(given) == parts
    assert Sample(sampler=given).sampler == canonical


def test_an_unknown_sampler_is_told_near_names():
    with pytest.raises(ConfigError, match=r"Euller.*Euler"):
        samplers.canonical_sampler("Euller")
    with pytest.raises(ValueError, match=r"sampler(?s:.)*'zzz'(?s:.)*DPM\+\+ 2M"):
        Sample(sampler="zzz")


def test_v_prediction_reaches_the_scheduler():
    scheduler = samplers.make_scheduler("DDIM", DDPMProcess({**SD1, "prediction_type": "v_prediction"}))
    assert scheduler.config.prediction_type == "v_prediction"
