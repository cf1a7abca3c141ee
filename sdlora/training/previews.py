"""Pictures drawn with the adapter while it trains: the same prompts from the same noise, from step 0 on."""

from sdlora.events import OnEvent, Progress, SampleReady
from sdlora.families.base import Family
from sdlora.generation.images import save
from sdlora.generation.settings import Sample
from sdlora.generation.studio import Studio
from sdlora.training.output import RunPaths


class Previews:
    """Draws with the live model; leaves its modes and every random state as they were."""

    def __init__(self, sample: Sample, family: Family, output: RunPaths, on_event: OnEvent):
        self.sample = sample
        self.studio = Studio.over(family)
        self.output = output
        self.on_event = on_event

    def draw(self, step: int) -> None:
        """One picture a prompt, into ``samples``. Does nothing where previews are off."""
        if not self.sample.every:
            return
        for index, prompt in enumerate(self.sample.prompts):
            self.on_event(Progress(phase="preview", done=index, total=len(self.sample.prompts)))
            picture = self.studio.generate(
                prompt,
                negative=self.sample.negative,
                steps=self.sample.steps,
                cfg=self.sample.cfg,
                sampler=self.sample.sampler,
                seed=self.sample.seed + index,
                width=self.sample.width,
                height=self.sample.height,
            )[0]
            path = self.output.sample(step, index)
            path.unlink(missing_ok=True)  # A resumed run draws again what it had drawn after its checkpoint.
            save([picture], path)
            self.on_event(SampleReady(step=step, index=index, prompt=prompt, path=self.output.relative(path)))
