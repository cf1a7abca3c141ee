"""Images that are held out of training, on which a run measures its loss.

They are chosen by their content, not by a run's seed: runs of other seeds and settings can be compared on them, and a
copy of a held-out image is held out with it. Front ends may import this: no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sdlora.data.dataset import Dataset, Example, load_dataset, summarize_names
from sdlora.data.settings import Data
from sdlora.errors import DatasetError
from sdlora.seeds import derive


class Split(NamedTuple):
    """Examples that are trained on, and those that are held out."""

    trained: tuple[Example, ...]
    held_out: tuple[Example, ...]


@dataclass(frozen=True)
class TrainingSet(Dataset):
    """Examples to train on, notices about them, and examples that are held out."""

    held_out: tuple[Example, ...] = ()


def held_out_count(images: int, share: float) -> int:
    """Return how many of so many different ``images`` are held out: the nearest number, at least one, never all."""
    return min(max(1, round(share * images)), images - 1) if share and images else 0


def split_share(examples: Sequence[Example], share: float) -> Split:
    """Hold out a ``share`` of the different images among ``examples``, chosen by their content; both keep the order."""
    digests = sorted({example.digest for example in examples}, key=lambda digest: derive("held out", digest))
    chosen = {*digests[: held_out_count(len(digests), share)]}
    trained = tuple(example for example in examples if example.digest not in chosen)
    return Split(trained, tuple(example for example in examples if example.digest in chosen))


def load_training_set(data: Data) -> TrainingSet:
    """Read the examples of ``data.folder``, without those that are held out, and these.

    Raises DatasetError for unusable files of either, and for a validation folder of which all images are trained on.
    """
    dataset = load_dataset(data)
    if data.validation_folder is None:
        trained, held_out = split_share(dataset.examples, data.validation_share)
        return TrainingSet(trained, (*dataset.notices, *held_out_notices(held_out)), held_out)
    try:
        found = load_dataset(data.model_copy(update={"folder": data.validation_folder}))
    except DatasetError as error:
        raise DatasetError(str(error).replace("data.folder", "data.validation_folder")) from None
    trained_on = {example.digest for example in dataset.examples}
    held_out = tuple(example for example in found.examples if example.digest not in trained_on)
    notices = [*dataset.notices, *found.notices, *held_out_notices(held_out)]
    if not held_out:
        raise DatasetError(f"{data.validation_folder}: all its pictures are trained on too; put others there")
    if len(held_out) < len(found.examples):
        copies = [example.path.name for example in found.examples if example.digest in trained_on]
        notices.append(f"Not measured as held out: {summarize_names(copies)}; they are trained on too.")
    return TrainingSet(dataset.examples, tuple(notices), held_out)


def held_out_notices(held_out: Sequence[Example]) -> list[str]:
    """Name the images that are held out; nothing without any."""
    names = summarize_names([example.path.name for example in held_out])
    return [f"Held out of training: {names}; the loss is measured on them."] if held_out else []
