"""What all tests share: no network, and a tiny base model."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Tiny models are faster, and two processes do not fight.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # Tiny models only wait for a second thread.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a tiny random SD 1.x (``tests.tiny``). Read only."""
    from tests.tiny import tiny_sd1

    return tiny_sd1(tmp_path_factory.mktemp("tiny-sd1"))
