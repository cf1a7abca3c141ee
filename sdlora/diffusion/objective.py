"""What the UNet is asked to predict, and how wrong it was."""

import torch

from sdlora.diffusion.schedule import NoiseSchedule


def target(
    schedule: NoiseSchedule, prediction_type: str, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the UNet shall predict, (B, C, H, W): the noise, or the velocity of ``NoiseSchedule.velocity``.

    ``latents`` and ``noise`` are (B, C, H, W), ``timesteps`` (B,) int64.
    """
    assert prediction_type in ("epsilon", "v_prediction"), prediction_type
    return noise if prediction_type == "epsilon" else schedule.velocity(latents, noise, timesteps)


def squared_error(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of each example, (B,) float32; ``mask`` (B, 1, H, W) weights the places.

    float32: the squares overflow in float16. With a mask the mean is taken over its weight, so
    that a small subject counts as much as a large one.
    """
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    return (error * mask).mean(dim=(1, 2, 3)) / mask.mean(dim=(1, 2, 3)).clamp_min(1e-6)
