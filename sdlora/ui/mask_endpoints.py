"""Endpoint for the masks of a project's pictures, made by a model."""

from typing import Any, TypedDict

from sdlora.api.masking import MaskReport, MaskSettings
from sdlora.data.projects import ProjectInfo
from sdlora.ui.app_state import AppState
from sdlora.ui.auto_mask_panel import project_job
from sdlora.ui.endpoint_arguments import filled_project, takes_settings

MASKS = ("model", "words", "mode", "threshold", "soft", "grow", "feather", "face_margin", "revision")
"""Settings that a program chooses; the class comes from the project, the device from the server."""


class WrittenMasks(TypedDict):
    """Names of a project's pictures that have a mask now, numbers of masks that were written or kept, and names of the
    pictures in which nothing was found.
    """

    masked: list[str]
    written: int
    kept: int
    nothing: list[str]
    notes: list[str]


class MaskEndpoints:
    """Functions that programs may call."""

    def __init__(self, app: AppState):
        self.app = app

    @takes_settings(MaskSettings, names=MASKS, first=("project", "model", "words", "mode"))
    def mask(self, project: str, **settings: Any) -> WrittenMasks:
        """Let a model mask what counts in a project's pictures, as one step that the page can undo.

        Args:
            project: Name of the project.
        """
        found = filled_project(self.app.data_dir, project)
        job = project_job(self.app, found, (found.info or ProjectInfo()).subject_class, **settings)
        report = MaskReport(**job.finish())
        masked = [image for image in found.images() if found.masks.find(image)]
        return WrittenMasks(
            masked=[image.relative_to(found.folder).as_posix() for image in masked], written=report.written,
            kept=report.kept, nothing=report.nothing, notes=job.notices,
        )  # fmt: skip
