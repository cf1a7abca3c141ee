"""How many optimizer steps a set of pictures asks for: a first suggestion, from what other trainers publish."""

from typing import Literal, NamedTuple

Kind = Literal["style", "subject"]


class StepRule(NamedTuple):
    """Times that each picture is seen, and the bounds of pictures seen in all."""

    per_image: int
    least: int
    most: int


STEP_RULES: dict[Kind, StepRule] = {
    # diffusers' DreamBooth LoRA page: 5 pictures, batch 1, 500 steps; its full training: 800 to 1200
    "subject": StepRule(per_image=100, least=400, most=1500),
    # 1000 steps for a dozen pictures (cloneofsimo/lora); more pictures bring variety, and need fewer looks each
    "style": StepRule(per_image=80, least=600, most=4000),
}


def suggested_steps(images: int, kind: Kind, batch_size: int = 1) -> int:
    """Optimizer steps for so many pictures; ``batch_size`` counts all pictures of a step (with accumulation, on all
    processes). Rounded up to tens.
    """
    rule = STEP_RULES[kind]
    seen = min(max(images * rule.per_image, rule.least), rule.most)
    return -(-seen // (10 * batch_size)) * 10
