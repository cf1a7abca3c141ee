"""Endpoints for the captions of a project: written by a model, counted, changed, and each change undone."""

from typing import Any, TypedDict

from sdlora.api.captioning import CaptionReport, CaptionSettings
from sdlora.data.dataset import survey_folder
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.tags import Unit, count_tags, usual_unit
from sdlora.errors import ConfigError
from sdlora.ui.app_state import AppState
from sdlora.ui.caption_panel import project_job
from sdlora.ui.endpoint_arguments import filled_project, takes_settings

CAPTIONS = (
    "model", "mode", "trigger", "prefix", "blacklist", "threshold", "character_threshold", "max_words", "revision",
)  # fmt: skip
"""Settings that a program chooses; the class comes from the project, the device from the server."""


class WrittenCaptions(TypedDict):
    """A project's captions by the names of its pictures, and the numbers of those that were written, kept or unsure."""

    captions: dict[str, str]
    written: int
    kept: int
    unsure: int
    notes: list[str]


class TagCounts(TypedDict):
    """Number of pictures, what was counted, and the number of pictures that have each tag, the most frequent first."""

    images: int
    unit: Unit
    counts: dict[str, int]


class ChangedCaptions(TypedDict):
    """A project's captions by the names of its pictures, and the number of those that changed."""

    captions: dict[str, str]
    changed: int


class UndoneChange(TypedDict):
    """Description of the change that was undone, empty if there was none, and the project's captions."""

    undone: str
    captions: dict[str, str]


class CaptionEndpoints:
    """Functions that programs may call."""

    def __init__(self, app: AppState):
        self.app = app

    @takes_settings(CaptionSettings, names=CAPTIONS, first=("project", "model", "mode"))
    def caption(self, project: str, **settings: Any) -> WrittenCaptions:
        """Let a model write captions for a project's pictures, as one step that the page can undo.

        Args:
            project: Name of the project.
        """
        found = filled_project(self.app.data_dir, project)
        job = project_job(self.app, found, (found.info or ProjectInfo()).subject_class, **settings)
        report = CaptionReport(**job.finish())
        return WrittenCaptions(
            captions=_captions(found), written=report.written, kept=report.kept, unsure=report.unsure, notes=job.notices
        )

    def tags(self, project: str, unit: Unit | None = None) -> TagCounts:
        """Count how many pictures of a project have each tag or word, in their captions as training reads them.

        Args:
            project: Name of the project.
            unit: "tags" between commas, or "words"; left out, what the captions look like.
        """
        data = filled_project(self.app.data_dir, project).data()
        examples = survey_folder(data).examples
        unit = unit or usual_unit(examples, data)
        return TagCounts(images=len(examples), unit=unit, counts=dict(count_tags(examples, data, unit)))

    def replace(self, project: str, find: str, replacement: str = "") -> ChangedCaptions:
        """Replace a text in all captions of a project, ignoring case, as one step that can be undone.

        Args:
            project: Name of the project.
            find: What to look for, such as a tag.
            replacement: What takes its place; left empty, nothing does.
        """
        found = filled_project(self.app.data_dir, project)
        return ChangedCaptions(changed=found.replace(find, replacement), captions=_captions(found))

    def add_trigger(self, project: str) -> ChangedCaptions:
        """Write the trigger word into each caption of a project that lacks it, as one step that can be undone.

        Args:
            project: Name of the project.
        """
        found = filled_project(self.app.data_dir, project)
        return ChangedCaptions(changed=found.add_trigger(), captions=_captions(found))

    def undo_change(self, project: str) -> UndoneChange:
        """Undo the last change of a project's captions or pictures, whoever made it; call it again for the one before.

        Args:
            project: Name of the project.
        """
        found = Project(self.app.data_dir, project)
        undone = found.undo() if found.folder.is_dir() else ""
        if not undone and not found.images():  # Where something was undone, all pictures may have been removed since.
            raise ConfigError(f"There is no project {project!r}; give the name of one on the tab Pictures.")
        return UndoneChange(undone=undone, captions=_captions(found))


def _captions(project: Project) -> dict[str, str]:
    return {image.relative_to(project.folder).as_posix(): project.caption(image) for image in project.images()}
