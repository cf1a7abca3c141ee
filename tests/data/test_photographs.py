"""Real photographs of odd sizes go all the way from their folder to batches."""

import warnings
from pathlib import Path

import pytest

from sdlora.data import buckets
from sdlora.data.batches import BatchLoader
from sdlora.data.cache import LatentCache
from sdlora.data.dataset import load_dataset
from sdlora.data.doctor import training_notices
from sdlora.data.settings import Data
from sdlora.data.tensor_store import TensorStore
from tests.support.images import PHOTO_FOLDER, PHOTO_SETS, block_means


@pytest.mark.parametrize("folder", PHOTO_SETS or [PHOTO_FOLDER], ids=lambda path: path.name)
def test_photographs_go_through_without_complaint(folder: Path, tmp_path: Path) -> None:
    if not PHOTO_SETS:
        reason = f"no photographs at {PHOTO_FOLDER}: set SDLORA_PHOTOS to a folder of folders of them"
        warnings.warn(reason, stacklevel=1)  # aloud: pytest does not show why it skips
        pytest.skip(reason)
    data = Data(folder=folder, trigger="sks", class_name="thing")
    found = load_dataset(data)
    assert found.notices == () and len(found.examples) >= 4
    sizes = buckets.assign_buckets(found.examples, 128, buckets.bucket_step(128))
    assert training_notices(data, 128, found.examples, sizes) == []
    batches = BatchLoader(found.examples, sizes, data, batch_size=1, seed=0)
    cache = LatentCache(TensorStore(tmp_path), "averages")
    assert cache.prepare(batches.views(0, batches.per_epoch), block_means)
    for n in range(batches.per_epoch):
        batch = batches.read(n, cache)
        assert batch.captions == ["sks thing"]
        assert 0.02 < batch.mean.std() < 1  # a picture, neither blank nor noise
