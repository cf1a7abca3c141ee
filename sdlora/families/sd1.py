"""Stable Diffusion 1.x: one CLIP text encoder, its last layer normalised."""

from typing import Any

from sdlora.families.stable import StableDiffusion

WITHOUT_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
}


class SD1(StableDiffusion):
    """A loaded Stable Diffusion 1.x (or the bundled `pocket`, which is a small one)."""

    name = "sd1"
    extras = WITHOUT_CHECKER

    @classmethod
    def pipeline_class(cls) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline
