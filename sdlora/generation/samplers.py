"""Samplers under the names that AUTOMATIC1111 gave them, and the diffusers schedulers that do their work.

A sampler may be followed by a schedule type: ``DPM++ 2M Karras``. The pairs follow diffusers' own table
(docs/source/en/api/schedulers/overview.md). Left out: LMS and the Beta schedule, which need scipy.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlora.errors import ConfigError
from sdlora.formatting import did_you_mean, one_line

if TYPE_CHECKING:
    from sdlora.diffusion.process import NoiseProcess


class Sampler(NamedTuple):
    """A scheduler class of diffusers, the options that make it this sampler, and the schedule types it takes."""

    scheduler: str
    options: Mapping[str, Any]
    schedules: tuple[str, ...] = ()


SIGMAS = ("Karras", "Exponential")
ALL = (*SIGMAS, "SGM Uniform")
# k-diffusion spaces its timesteps evenly over the whole range, both ends included. Latents are never clipped.
EVENLY = {"timestep_spacing": "linspace", "steps_offset": 1, "clip_sample": False}
# The latent diffusion paper's own: t = 1, 1 + T/n, ...
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}

SAMPLERS: Mapping[str, Sampler] = {
    "DPM++ 2M": Sampler("DPMSolverMultistepScheduler", EVENLY, ALL),
    "DPM++ 2M SDE": Sampler("DPMSolverMultistepScheduler", {**EVENLY, "algorithm_type": "sde-dpmsolver++"}, ALL),
    "DPM++ SDE": Sampler(
        "DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}, SIGMAS
    ),
    "Euler": Sampler("EulerDiscreteScheduler", EVENLY, ALL),
    "Euler a": Sampler("EulerAncestralDiscreteScheduler", EVENLY, ("SGM Uniform",)),
    "Heun": Sampler("HeunDiscreteScheduler", EVENLY, ALL),
    "DPM2": Sampler("KDPM2DiscreteScheduler", EVENLY, ALL),
    "DPM2 a": Sampler("KDPM2AncestralDiscreteScheduler", EVENLY, ALL),
    "UniPC": Sampler("UniPCMultistepScheduler", EVENLY, ALL),
    "DEIS": Sampler("DEISMultistepScheduler", EVENLY, ALL),
    "DDIM": Sampler("DDIMScheduler", LEADING),
    "PLMS": Sampler("PNDMScheduler", {**LEADING, "skip_prk_steps": True}),
}
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
}
ALIASES = {"pndm": "PLMS"}
NAMES = tuple(f"{name} {schedule}".strip() for name, row in SAMPLERS.items() for schedule in ("", *row.schedules))
_BY_LOWER = {name.lower(): name for name in NAMES} | ALIASES


def canonical_sampler(name: str) -> str:
    """Return ``name`` as the table spells it, whatever its case. Raises ConfigError, with near names, if unknown."""
    key = " ".join(name.lower().split()).removesuffix(" automatic")
    if key in _BY_LOWER:
        return _BY_LOWER[key]
    hint = did_you_mean(key, NAMES, f"take one of {', '.join(SAMPLERS)}", most=3)
    raise ConfigError(f"sampler {one_line(name, 60)!r} is unknown; {hint}")


def split_sampler(name: str) -> tuple[str, str]:
    """Split a name into sampler and schedule type: ``("DPM++ 2M", "Karras")``; the default type is "Automatic"."""
    name = canonical_sampler(name)
    if name in SAMPLERS:
        return name, "Automatic"
    schedule = next(schedule for schedule in SCHEDULES if name.endswith(f" {schedule}"))
    return name.removesuffix(f" {schedule}"), schedule


def require_sampler_support(name: str, process: "NoiseProcess") -> None:
    """Raise ConfigError, naming samplers that can, if sampler ``name`` cannot follow a model's noise ``process``."""
    able = [name for name, sampler in SAMPLERS.items() if process.supports_scheduler(sampler.scheduler)]
    if split_sampler(name)[0] not in able:
        raise ConfigError(f"sampler {name!r}: cannot generate with {process.title}; take {', '.join(able)}")


def make_scheduler(name: str, process: "NoiseProcess") -> Any:
    """Return the diffusers scheduler for sampler ``name`` and a model's noise ``process``.

    Raises ConfigError for a sampler that cannot follow it.
    """
    require_sampler_support(name, process)
    sampler, schedule = split_sampler(name)
    return process.scheduler(SAMPLERS[sampler].scheduler, {**SAMPLERS[sampler].options, **SCHEDULES.get(schedule, {})})
