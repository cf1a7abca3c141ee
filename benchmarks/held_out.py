"""Held-out prompts for adapters of the bundled model, and the figures of the images.

No prompt of the style is among its pictures. CLIP-I to pictures of the style that the world draws for those same
prompts says how far the look moved, CLIP-T whether the prompts are still followed: beside what those pictures have when
they come out of the base's autoencoder, since CLIP reads some looks less well than others. Of the subject, likeness to
its own pictures with the trigger and without it says what was learnt, and what spilled over into the class.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image

from sdlora.config import TrainConfig
from sdlora.evaluation.fidelity import Clip, clip_i, clip_t
from sdlora.families.base_models import BUNDLED
from sdlora.generation.studio import Studio
from tools.make_sample_data import draw_truth
from tools.pocket.look_measure import SIZE, autoencoded

ROOT = Path(__file__).parents[1]
SEEDS = 4
STEPS, CFG = 25, 5.0
STYLE = "stained glass"
PLACES = ("on grass", "on sand", "on snow", "in the city")


class Evaluation:
    """``seeds`` pictures a prompt, drawn by ``studio`` with whatever adapters it has."""

    def __init__(self, clip: Clip, studio: Studio, seeds: int = SEEDS, steps: int = STEPS):
        self.clip, self.studio, self.seeds, self.steps = clip, studio, seeds, steps

    def draw(self, prompts: list[str]) -> list[Image.Image]:
        """The same pictures of the same noise, prompt by prompt."""
        return self.studio.generate(prompts, seed=100, count=self.seeds, steps=self.steps, cfg=CFG)

    def pictures(self) -> Any:
        """The answers."""
        raise NotImplementedError

    def figures(self, answers: Any) -> dict[str, float]:
        """Figures of the images."""
        raise NotImplementedError

    def evaluate(self, adapter: Path) -> dict[str, float]:
        """The figures with the adapter file ``adapter``, at scale 1."""
        self.studio.add_adapter("asked", adapter)
        try:
            return self.figures(self.pictures())
        finally:
            self.studio.remove_adapter("asked")


class StyleEvaluation(Evaluation):
    """The held-out prompts of ``pocket-style``."""

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        config = TrainConfig.load("pocket-style")
        self.prompts = list(config.sample.prompts)
        self.plain = [prompt.removeprefix(f"{config.data.trigger}, ") for prompt in self.prompts]
        truth = [draw_truth(STYLE, self.plain, seed=seed) for seed in range(900, 900 + 50 * SEEDS, 50)]
        self.truth = [picture for column in zip(*truth, strict=True) for picture in column]
        """The world's own, ``SEEDS`` a prompt."""
        self.goal = self.clip.images(self.truth)
        self.texts = self.clip.texts([text for text in self.plain for _ in range(self.seeds)])
        self.own = likeness_of_pairs(self.goal)
        self.true_clip_t = self._true_clip_t()
        self.base = self.pictures()
        features = self.clip.images(self.base)
        self.base_clip_i, self.base_clip_t = clip_i(features, self.goal), clip_t(features, self.texts)

    def _true_clip_t(self) -> float:
        """CLIP-T of the world's own pictures, as soft as those of the base: the most that an adapter can have."""
        through = autoencoded(AutoencoderKL.from_pretrained(BUNDLED["pocket"] / "vae").eval())
        softened = through([image.resize((SIZE, SIZE), Image.Resampling.BOX) for image in self.truth])
        return clip_t(self.clip.images(softened), self.clip.texts([text for text in self.plain for _ in range(SEEDS)]))

    def pictures(self) -> list[Image.Image]:
        return self.draw(self.prompts)

    def figures(self, answers: list[Image.Image]) -> dict[str, float]:
        features = self.clip.images(answers)
        image_score, text_score = clip_i(features, self.goal), clip_t(features, self.texts)
        return {
            "clip_i": image_score,
            "share_of_gap": (image_score - self.base_clip_i) / (self.own - self.base_clip_i),
            "clip_t": text_score,
            "clip_t_kept": text_score / self.true_clip_t,
        }


class SubjectEvaluation(Evaluation):
    """The subject, and its class, in four places."""

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        files = sorted((ROOT / "sample_data" / "subject").glob("*.png"))
        self.own = self.clip.subjects([Image.open(path) for path in files])
        self.prompts = {
            "trigger": [f"a sks cat {place}" for place in PLACES],
            "class": [f"a cat {place}" for place in PLACES],
        }
        self.base = self.pictures()
        self.ordinary = self.clip.subjects(self.base["class"])

    def pictures(self) -> dict[str, list[Image.Image]]:
        return {kind: self.draw(texts) for kind, texts in self.prompts.items()}

    def figures(self, answers: dict[str, list[Image.Image]]) -> dict[str, float]:
        return {
            "likeness_with_trigger": clip_i(self.clip.subjects(answers["trigger"]), self.own),
            "likeness_of_the_class": clip_i(self.clip.subjects(answers["class"]), self.own),
            "class_to_base": clip_i(self.clip.subjects(answers["class"]), self.ordinary),
        }


EVALUATIONS = {"style": StyleEvaluation, "subject": SubjectEvaluation}


def likeness_of_pairs(features: torch.Tensor) -> float:
    """Mean cosine over pairs of different pictures of one set, from their features (N, D), unit vectors; -1 to 1."""
    count = len(features)
    return ((features @ features.T).sum().item() - count) / (count * (count - 1))
