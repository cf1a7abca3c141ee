"""Inputs of an evaluation on the page: the checkpoints of a run, or an adapter file that has no run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sdlora.api import evaluation, file_evaluation
from sdlora.api.evaluation import EncoderNames, Evaluation, EvaluationEstimate, EvaluationJob, EvaluationSettings
from sdlora.api.file_evaluation import FileEvaluationJob, FileSettings
from sdlora.api.training import Run, TrainingQueue
from sdlora.data.projects import list_projects
from sdlora.data.settings import Concept
from sdlora.errors import ConfigError
from sdlora.ui.app_state import ACTIVE


class Evaluated(Protocol):
    """Checkpoints or a file for an evaluation to compare, and the place of the newest result.

    ``estimate``, ``encoders`` and ``job`` raise ConfigError, ModelError or DatasetError for what cannot be evaluated;
    ``read`` and ``outdated`` raise ConfigError where there is no result, FormatError for a damaged one.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Path:
        """The run's folder, or the adapter's file."""
        ...

    @property
    def concepts(self) -> Sequence[Concept]:
        """Concepts to choose one of; none for a file."""
        ...

    @property
    def changes(self) -> bool:
        """Whether it is trained or queued, and may change."""
        ...

    def require_there(self) -> None:
        """Raise ConfigError if it is gone."""

    def estimate(self, settings: EvaluationSettings) -> EvaluationEstimate: ...

    def encoders(self, settings: EvaluationSettings) -> EncoderNames: ...

    def job(self, settings: EvaluationSettings) -> EvaluationJob | FileEvaluationJob: ...

    def stamp(self) -> Any:
        """Return what changes with the result; None if there is none."""

    def read(self) -> Evaluation: ...

    def sheet(self) -> Path | None: ...

    def outdated(self) -> list[str]: ...


@dataclass(frozen=True)
class EvaluatedRun:
    """The checkpoints of a run."""

    run: Run
    queue: TrainingQueue

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def source(self) -> Path:
        return self.run.folder

    @property
    def concepts(self) -> Sequence[Concept]:
        return self.run.config.all_concepts

    @property
    def changes(self) -> bool:
        return self.queue.state(self.run) in ACTIVE

    def require_there(self) -> None:
        self.run.require_there()

    def estimate(self, settings: EvaluationSettings) -> EvaluationEstimate:
        return evaluation.evaluation_estimate(self.run, settings)

    def encoders(self, settings: EvaluationSettings) -> EncoderNames:
        return evaluation.evaluation_encoders(self.run, settings)

    def job(self, settings: EvaluationSettings) -> EvaluationJob:
        return evaluation.evaluation_job(self.run, settings)

    def stamp(self) -> Any:
        stamp = evaluation.evaluation_stamp(self.run)
        return None if stamp is None else (stamp, tuple(self.run.checkpoint_files()))

    def read(self) -> Evaluation:
        return evaluation.read_evaluation(self.run)

    def sheet(self) -> Path | None:
        return evaluation.evaluation_sheet(self.run)

    def outdated(self) -> list[str]:
        return evaluation.outdated_evaluation(self.run)


@dataclass(frozen=True)
class EvaluatedFile:
    """An adapter file of the library that has no run."""

    name: str
    source: Path
    data_dir: Path
    about: Mapping[str, str] = field(default_factory=dict)
    """Fields of the page: the project with its training images, trigger, class and base."""
    concepts: Sequence[Concept] = ()
    changes: bool = False

    @property
    def folder(self) -> Path:
        return file_evaluation.file_evaluation_folder(self.source, self.data_dir)

    def files(self) -> file_evaluation.AdapterFiles:
        """Return the file with what is said of it. Raises ConfigError for a project that is gone, or no base."""
        about = {name: (value or "").strip() for name, value in self.about.items()}
        images, project = None, about.get("project", "")
        if project:
            images = next((each.folder for each in list_projects(self.data_dir) if each.name == project), None)
            if images is None:
                raise ConfigError(f"There is no project {project} any more; choose other training pictures.")
        if not about.get("base"):
            raise ConfigError("Choose the base model that this adapter was trained on.")
        said = FileSettings.checked(
            images=images, trigger=about.get("trigger", ""), class_name=about.get("class_name", ""), base=about["base"]
        )
        return file_evaluation.describe_files([str(self.source)], said, self.data_dir)

    def require_there(self) -> None:
        if not self.source.is_file():
            raise ConfigError(f"{self.name}: there is no such adapter any more")

    def estimate(self, settings: EvaluationSettings) -> EvaluationEstimate:
        return file_evaluation.file_estimate(self.files(), settings)

    def encoders(self, settings: EvaluationSettings) -> EncoderNames:
        return file_evaluation.file_encoders(self.files(), settings)

    def job(self, settings: EvaluationSettings) -> FileEvaluationJob:
        return file_evaluation.file_evaluation_job(self.files(), settings, self.data_dir)

    def stamp(self) -> Any:
        return file_evaluation.result_stamp(self.folder)

    def read(self) -> Evaluation:
        return file_evaluation.read_evaluation(self.folder)

    def sheet(self) -> Path | None:
        return file_evaluation.result_sheet(self.folder)

    def outdated(self) -> list[str]:
        return file_evaluation.outdated_file_evaluation(self.source, self.data_dir)
