"""Images generated with the adapter while it trains: the same prompts from the same noise, from step 0 on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdlora import failpoints
from sdlora.errors import ConfigError, SdloraError
from sdlora.events import Progress, SampleReady
from sdlora.families.base import Family
from sdlora.generation.generation_spec import SamplingParams, with_generation_defaults
from sdlora.generation.images import save_images
from sdlora.generation.settings import Sample
from sdlora.generation.studio import Studio
from sdlora.training.train_job import TrainJob


def require_previews(job: TrainJob, family: Family) -> None:
    """Raise ConfigError, naming the setting, if ``family`` cannot generate the previews of ``job``."""
    if job.sample.every and job.sample.prompts:
        with prefix_section("sample"):
            SamplingParams.resolve(family, preview_settings(job, family))


def preview_settings(job: TrainJob, family: Family) -> Sample:
    """Return the settings of previews: they read the text layer that is trained with, if no other is set."""
    return with_generation_defaults(job.sample, family, clip_skip=job.train.clip_skip)


@contextmanager
def prefix_section(section: str) -> Iterator[None]:
    """A ConfigError that begins with a setting's name begins with its ``section`` too: ``sample.clip_skip = 9: ...``"""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{section}.{error}") from None


class Previews:
    """Draws with the live model; leaves its modes and every random state as they were."""

    def __init__(self, job: TrainJob, family: Family):
        self.job = job
        self.studio, self.sample = Studio.from_family(family, job.model), preview_settings(job, family)

    def generate(self, step: int, again: bool = True) -> None:
        """Generate an image per prompt into ``samples``; fewer if a stop is asked for. A failure is reported only.

        An image that exists already is generated ``again``, or else only reported.
        """
        for index, prompt in enumerate(self.job.sample.prompts):
            path = self.job.output.sample(step, index)
            if again or not path.exists():
                self.job.on_event(Progress(phase="preview", done=index, total=len(self.job.sample.prompts)))
                try:
                    generated = self._generate(index, prompt, path)
                except (SdloraError, OSError) as error:  # Only of the picture: a journal that fails ends the run.
                    self.job.notice(f"no preview at step {step}: {error}")
                    return
                if not generated:
                    return
            self.job.on_event(SampleReady(step=step, index=index, prompt=prompt, path=self.job.output.relative(path)))

    def _generate(self, index: int, prompt: str, path: Path) -> bool:
        """Generate the picture of a prompt, and keep it at ``path``. False if stopped meanwhile."""
        sample = self.sample
        images = self.studio.generate(prompt, sample, seed=sample.seed + index, should_stop=self.job.should_stop)
        if images:
            path.unlink(missing_ok=True)  # A resumed run generates again what it had generated after its checkpoint.
            save_images(images, path)
            failpoints.point("preview.kept")
        return bool(images)
