"""The inputs of an evaluation of adapter files, which are the candidates as a run's checkpoints are. No torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdlora.data.concepts import load_concepts
from sdlora.data.settings import Concept, Kind
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.filesystem.paths import safe_name
from sdlora.jobs.evaluation_plan import ConceptData
from sdlora.jobs.tool_process import ToolJob

RESULTS = "evaluations"
"""Folder of a data folder that has the evaluations of adapter files."""


@dataclass(frozen=True)
class AdapterFiles:
    """Adapter files to compare, what they were trained on, and their base."""

    files: Sequence[tuple[str, int, Path]]
    """Name, step and path of each."""
    base: str
    base_settings: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "style"
    trigger: str = ""
    class_name: str = ""
    images: Path | None = None
    prior_weight: float = 0.0

    def load(self) -> ConceptData:
        """Return the concept with its images, none without a folder. Raises DatasetError."""
        concept = Concept(
            folder=self.images or Path(), trigger=self.trigger, class_name=self.class_name,
            prior_weight=self.prior_weight,
        )  # fmt: skip
        return ConceptData(concept, () if self.images is None else load_concepts([concept]).examples)

    def folder(self, data_dir: Path) -> Path:
        """Return the folder of the evaluation of these files in ``data_dir``: the same for the same files."""
        return results_folder(self.files[0][0], [path for _, _, path in self.files], data_dir)


def results_folder(name: str, paths: Sequence[Path], data_dir: Path) -> Path:
    """Return the folder in ``data_dir`` of the evaluation of the files ``paths``, the first of them called ``name``."""
    joined = "\n".join(str(path.resolve()) for path in paths)
    short = safe_name(name, fallback="adapter")[:48]
    return data_dir / RESULTS / f"{short}-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"


class FileEvaluationJob(ToolJob):
    """Evaluate adapter ``files``, as ``settings`` say; ``data_dir`` has the devices' locks, and the result.

    The result is the path of ``evaluation.json``. What was generated before a stop stays, and the next one goes on.
    """

    STOPPED = "Stopped. The pictures made so far are kept; evaluate again to go on."

    def __init__(self, files: AdapterFiles, settings: EvaluationSettings, data_dir: Path):
        values = {"files": asdict(files), "settings": settings.to_json(), "data_dir": data_dir}
        super().__init__("evaluate_files", **values)


def read_files(values: Mapping[str, Any]) -> AdapterFiles:
    """Return the files of a job's request, which came as JSON."""
    files = [(name, step, Path(path)) for name, step, path in values["files"]]
    images = None if values["images"] is None else Path(values["images"])
    return AdapterFiles(**{**values, "files": files, "images": images})


def steps_of(headers: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the steps that files with these metadata were trained for: theirs where all tell different ones, else
    their numbers from 1.
    """
    found = [_number(header.get("ss_steps", "")) for header in headers]
    return found if all(found) and len({*found}) == len(found) else [*range(1, len(headers) + 1)]


def prior_weight(metadata: Mapping[str, str]) -> float:
    """Return the weight of the class images that an adapter was trained with; 0 without such."""
    if not _number(metadata.get("ss_num_reg_images", "")):
        return 0.0
    try:
        return min(100.0, max(0.0, float(metadata.get("ss_prior_loss_weight", ""))))
    except ValueError:
        return 0.0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0
