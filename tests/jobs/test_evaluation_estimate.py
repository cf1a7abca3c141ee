"""How many images an evaluation compares, and the time by the previews that the run has generated."""

import pytest

from sdlora.errors import ConfigError
from sdlora.evaluation.prompts import EvaluationPrompts
from sdlora.evaluation.settings import COPY_SEEDS, EvaluationSettings
from sdlora.events import Progress, SampleReady
from sdlora.jobs.evaluation_estimate import count_images, estimate_evaluation
from sdlora.storage.journal import Journal
from sdlora.storage.run_folder import Run
from tests.support.tiny_models import write_tiny_adapter


@pytest.fixture
def run(configure, tmp_path):
    """A run with checkpoints 2 and 4."""
    run = Run.create(tmp_path / "runs", "house", configure(sample__steps=10))
    for step in (2, 4):
        write_tiny_adapter(run.checkpoint(step))
    return run


def test_images_are_counted_as_the_job_generates_them():
    """The same numbers as tests/jobs/test_evaluation_tool.py finds."""
    prompts = EvaluationPrompts(("sks, a cat",), ("a cat",), ("a red house",), ("a", "b"))
    captioned = 3 * 2 * COPY_SEEDS
    settings = EvaluationSettings(scales=(0.5, 1.0), seeds=1)
    assert count_images(prompts, 2, settings) == 15 + captioned
    assert count_images(prompts, 2, EvaluationSettings(scales=(1.0,), seeds=3)) == 3 * 3 * 3 + captioned


def test_the_time_is_that_of_the_previews_at_their_steps(run):
    assert estimate_evaluation(run, EvaluationSettings()).seconds is None
    journal = Journal(run.journal)
    for began, seconds in ((100.0, 5.0), (200.0, 4.0), (300.0, 60.0)):
        journal(Progress(phase="preview", time=began))
        journal(SampleReady(step=0, index=0, prompt="x", path="samples/x.png", time=began + seconds))
    journal(SampleReady(step=0, index=0, prompt="x", path="samples/x.png", time=900.0))  # Reported again.
    journal.close()
    found = estimate_evaluation(run, EvaluationSettings(steps=20))
    assert found.seconds == pytest.approx(found.images * 2 * 5.0) and found.checkpoints == (2, 4)
    assert found.images == count_images(found.prompts, 2, EvaluationSettings())


def test_a_run_without_checkpoints_is_refused(run):
    for path in run.checkpoint_files().values():
        path.unlink()
    with pytest.raises(ConfigError, match="no checkpoints yet"):
        estimate_evaluation(run, EvaluationSettings())
