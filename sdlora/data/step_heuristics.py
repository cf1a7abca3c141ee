"""Heuristics for the number of optimizer steps that a set of images needs, from what other trainers publish."""

from typing import Literal, NamedTuple

Kind = Literal["style", "subject"]


class StepRule(NamedTuple):
    """Number of times that each image is seen, and bounds of images seen in total."""

    per_image: int
    least: int
    most: int


STEP_RULES: dict[Kind, StepRule] = {
    # diffusers' DreamBooth LoRA page: 5 pictures, batch 1, 500 steps; its full training: 800 to 1200
    "subject": StepRule(per_image=100, least=400, most=1500),
    # 1000 steps for a dozen pictures (cloneofsimo/lora); more images bring variety, and need fewer repetitions each
    "style": StepRule(per_image=80, least=600, most=4000),
}


def suggested_steps(images: int, kind: Kind, batch_size: int = 1) -> int:
    """Suggest optimizer steps for a number of images, rounded up to tens.

    ``batch_size`` counts all images of a step: with accumulation, on all processes.
    """
    rule = STEP_RULES[kind]
    seen = min(max(images * rule.per_image, rule.least), rule.most)
    return -(-seen // (10 * batch_size)) * 10
