"""Endpoints of the page for programs (``gradio_client``): train, status, stop, resume, generate, export.

``tool_endpoints`` has those that wait for a tool, ``caption_endpoints`` those of captions, ``mask_endpoints`` that of
masks, ``evaluation_endpoints`` those of a run's evaluation. The first lines of a docstring and its ``Args`` are the
text of the page "Use via API". Errors reach the program as one sentence. Files come as uploads only: no text that a
program sends is ever taken for a path of images.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import gradio as gr
from gradio.data_classes import FileData

from sdlora.api.adapters import exported_file
from sdlora.api.editing import ExportSettings
from sdlora.api.generation import GenerationRequest, JobStatus
from sdlora.api.models import resolve_base
from sdlora.api.training import Run, list_runs, run_base
from sdlora.config import all_settings
from sdlora.data.concept_values import CONCEPTS
from sdlora.data.projects import Project, ProjectInfo, write_info
from sdlora.data.settings import Kind
from sdlora.errors import ConfigError, DatasetError
from sdlora.filesystem.paths import safe_name
from sdlora.filesystem.writing import new_folder
from sdlora.generation.infotext import format_parameters, read_parameters
from sdlora.generation.settings import ImageSettings
from sdlora.ui import build_config
from sdlora.ui.app_state import MAX_IMAGES, AppState
from sdlora.ui.caption_endpoints import CaptionEndpoints
from sdlora.ui.endpoint_arguments import check_arguments, returned_file, takes_settings, uploaded_paths
from sdlora.ui.evaluation_endpoints import EvaluationEndpoints
from sdlora.ui.mask_endpoints import MaskEndpoints
from sdlora.ui.run_view import describe
from sdlora.ui.tool_endpoints import ToolEndpoints

IMAGE_PARAMETERS = ("negative", "seed", "steps", "cfg", "sampler", "width", "height", "count")
"""Settings of an image that ``generate`` takes behind prompt and adapters, in this order."""
POLL_SECONDS = 0.2
"""Seconds between two looks at a running request."""


class PreviewInfo(TypedDict):
    """An image that was made during training; ``file`` is None unless requested."""

    step: int
    prompt: str
    file: FileData | None


class RunStatus(TypedDict):
    """State of a run. ``seconds_left`` and ``loss`` are None while unknown."""

    run: str
    state: str
    phase: str
    step: int
    steps: int
    loss: float | None
    seconds_left: float | None
    message: str
    previews: list[PreviewInfo]
    adapter_ready: bool


class RunInfo(TypedDict):
    """A run in a list."""

    run: str
    state: str
    base: str


class AdapterInfo(TypedDict):
    """An adapter, and the base model that it was trained on."""

    adapter: str
    base: str


class GeneratedImage(TypedDict):
    """A generated image; ``parameters`` is the text that is also in the file."""

    file: FileData
    seed: int
    parameters: str


class Endpoints:
    """Functions that programs may call."""

    def __init__(self, app: AppState):
        self.app = app

    def train(
        self,
        trigger: str,
        pictures: list[FileData] | None = None,
        project: str = "",
        kind: Kind = "style",
        class_name: str = "",
        base: str = "pocket",
        quality: str = "Balanced",
        prompts: list[str] | None = None,
        settings: dict[str, Any] | None = None,
        together: list[str] | None = None,
    ) -> str:
        """Queue a training on uploaded pictures, or on a project of the page.

        Args:
            trigger: The trigger word, such as "ohwx".
            pictures: Pictures with their captions (.txt of the same name), or a zip file of them.
            project: Name of a project to which the pictures are added; without a name, a new project is made.
            kind: "style" or "subject".
            class_name: Kind of a subject, such as "cat".
            base: The base model: "pocket", a hub id, or what the page's field takes.
            quality: "Quick", "Balanced" or "Best".
            prompts: Prompts of the previews during training.
            settings: Settings by their dotted names, such as {"train.steps": 400, "adapter.rank": 8}.
            together: Names of further projects of the page, each trained into the same adapter with words of its own.

        Returns:
            The run's name, for the other endpoints.
        """
        if quality not in build_config.QUALITY:
            raise ConfigError(f"quality = {quality!r}: give one of {', '.join(build_config.QUALITY)}")
        changes = _without_paths(settings or {})
        about, base = ProjectInfo(kind, trigger, class_name), resolve_base(base, self.app.data_dir)
        filled = self._prepare_project(project or "", about, uploaded_paths(pictures or ()))
        others = [Project(self.app.data_dir, name) for name in dict.fromkeys(together or ()) if name != filled.name]
        config = build_config.configure(filled, about, base, quality, prompts or (), changes, others)
        filled.set_info(about)
        return self.app.train(config, filled.name).name

    def status(self, run: str = "", previews: bool = False) -> RunStatus:
        """Return the state of a run. The call is cheap: a program may ask once a second.

        Args:
            run: Name of the run; left empty, the current one.
            previews: Whether to return the previews as files.

        Returns:
            state is one of new, queued, running, stopping, finished, stopped, failed, interrupted.
        """
        found = self._run(run)
        view, state = self.app.run_view(found), self.app.queue.state(found)
        return RunStatus(
            run=found.name, state=state, phase=view.phase, step=view.step, steps=view.steps,
            loss=view.losses[-1][1] if view.losses else None, seconds_left=view.left if state == "running" else None,
            message=describe(view, state), adapter_ready=found.adapter.is_file(),
            previews=[
                PreviewInfo(step=step, prompt=image.prompt, file=returned_file(image.path) if previews else None)
                for (_, step), image in sorted(view.previews.items())
            ],
        )  # fmt: skip

    def stop(self, run: str = "") -> RunStatus:
        """Let a run finish its step, save and end, or take it out of the queue.

        Args:
            run: Name of the run; left empty, the current one.
        """
        found = self._run(run)
        self.app.queue.stop(found)
        self.app.refresh()
        return self.status(found.name)

    def resume(self, run: str) -> RunStatus:
        """Queue a run that was stopped, failed or interrupted; it goes on from its last checkpoint.

        Args:
            run: Name of the run.
        """
        found = self._run(run)
        if self.app.queue.state(found) == "finished":
            raise ConfigError(f"{found.name} is finished: there is nothing left to do; train anew, with more steps")
        self.app.start(found)
        return self.status(found.name)

    @takes_settings(
        GenerationRequest, names=(*IMAGE_PARAMETERS, *ImageSettings.model_fields),
        first=("prompt", "adapters", *IMAGE_PARAMETERS),
    )  # fmt: skip
    async def generate(
        self,
        prompt: str,
        adapters: dict[str, float] | None = None,
        base: str = "",
        prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto",
        zero_terminal_snr: Literal["auto", "on", "off"] = "auto",
        **settings: Any,
    ) -> list[GeneratedImage]:
        """Generate images and wait for them. Requests run in order; cancelling the job cancels its request.

        Args:
            prompt: What to generate; <lora:name:0.8> is understood.
            adapters: Adapters by name, with their scales, such as {"mystyle": 1.0}.
            base: The base model; left empty, the one the first adapter was trained on, or "pocket".
            prediction_type: What the base predicts; "auto" is as the adapter's run has it, else as the base tells.
            zero_terminal_snr: Whether its noise schedule ends in noise alone; "auto" likewise.
        """
        known = {adapter.name: adapter.base for adapter in self.app.refresh().adapters}
        overrides = {"prediction_type": prediction_type, "zero_terminal_snr": zero_terminal_snr}
        request = GenerationRequest.checked(
            prompt=prompt,
            base=base or next((known[name] for name in adapters or () if known.get(name)), GenerationRequest().base),
            base_settings={name: value for name, value in overrides.items() if value != "auto"},
            **settings,
        )
        if request.count > MAX_IMAGES:
            raise ConfigError(f"count = {request.count}: give 1 to {MAX_IMAGES} images")
        status = await asyncio.to_thread(self.app.generate, request, list((adapters or {}).items()))
        finished = await self._wait_for(status)
        if finished.state != "done":
            raise ConfigError(finished.message or "The request was cancelled.")
        return [_picture(path) for path in finished.paths]

    @takes_settings(ExportSettings)
    def export(self, name: str, **settings: Any) -> FileData:
        """Export an adapter as a file for other tools; PEFT's folder comes as a zip file.

        Args:
            name: Name of the run or the adapter.
        """
        export = ExportSettings.checked(**settings)
        path = str(self.app.adapter(name).path)
        with exported_file(path, export.format, export.dtype, self.app.data_dir) as exported:
            file: FileData = returned_file(exported.file)
            return file

    def runs(self) -> list[RunInfo]:
        """Return all runs, newest first."""
        found = list_runs(self.app.data_dir)
        return [RunInfo(run=run.name, state=self.app.queue.state(run), base=run_base(run)) for run in found]

    def adapters(self) -> list[AdapterInfo]:
        """Return all adapters, newest first."""
        return [AdapterInfo(adapter=adapter.name, base=adapter.base) for adapter in self.app.refresh().adapters]

    def _run(self, name: str) -> Run:
        snapshot = self.app.refresh()
        found = self.app.run(name) if name else snapshot.current
        if found is None:
            names = ", ".join(snapshot.runs) or "none yet"
            raise ConfigError(f"There is no run {name!r}; there are: {names}." if name else "There are no runs yet.")
        return found

    def _prepare_project(self, name: str, info: ProjectInfo, files: list[Path]) -> Project:
        """Add ``files`` to a project; without a name, to a new one that is named after the trigger.

        One without a description gets ``info`` first: what is kept of a refused request is then found on the page.
        """
        if not name and not files:
            raise ConfigError("Hand over pictures, or name a project of the page that has some.")
        if not name:
            folder = self.app.data_dir / "projects" / safe_name(info.trigger, fallback="pictures")
            name = new_folder(folder, lambda made: write_info(made, info)).name
        project = Project(self.app.data_dir, name)
        if not files and not project.images():
            raise ConfigError(f"The project {name!r} has no pictures; hand some over.")
        if project.info is None:
            project.set_info(info)
        refused = project.add(files).remarks
        if refused:
            taken = f" The others are kept: train on them with project={project.name!r}." if project.images() else ""
            raise DatasetError(" ".join(refused) + taken)
        return project

    async def _wait_for(self, status: JobStatus) -> JobStatus:
        """Wait for a request, which is cancelled if the program that made it gives up."""
        progress = gr.Progress()
        try:
            while not status.ended:
                progress((status.done, status.total) if status.total else None, desc=status.message or status.state)
                await asyncio.sleep(POLL_SECONDS)
                found = self.app.inference.status(status.number)
                if found is None:
                    raise ConfigError("So many requests came after this one that it was forgotten; ask again.")
                status = found
        except asyncio.CancelledError:
            self.app.inference.cancel(status.number)
            raise
        return status


def build(app: AppState) -> None:
    """Add the endpoints to the page that is being laid out."""
    ends, tools, captions, masks = Endpoints(app), ToolEndpoints(app), CaptionEndpoints(app), MaskEndpoints(app)
    evaluations = EvaluationEndpoints(app)
    functions: list[Callable[..., Any]] = [
        ends.train, ends.status, ends.stop, ends.resume, ends.generate, ends.export, ends.runs, ends.adapters,
        tools.merge, tools.resize, tools.extract, tools.overlap,
        captions.caption, captions.tags, captions.replace, captions.add_trigger, captions.undo_change,
        masks.mask,
        evaluations.evaluate, evaluations.evaluation, evaluations.stop_evaluation, evaluations.use_proposal,
    ]  # fmt: skip
    for function in functions:
        waits = inspect.iscoroutinefunction(function)
        limit = None if waits else "default"  # A coroutine takes no thread.
        gr.api(check_arguments(function), api_name=function.__name__, concurrency_limit=limit)  # type: ignore[arg-type]


def _without_paths(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``settings``. Raises ConfigError for a setting that is a path, or that has some."""
    if CONCEPTS in settings:
        raise ConfigError(f"{CONCEPTS}: name folders of the server, which a program cannot choose; give together")
    paths = {setting.name for setting in all_settings() if _is_path(setting.field.annotation)}
    for name in settings:
        if name in paths:
            raise ConfigError(f"{name}: is a folder of the server, which a program cannot choose; hand over pictures")
    return settings


def _is_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_is_path, get_args(annotation)))


def _picture(path: Path) -> GeneratedImage:
    known = read_parameters(path)
    assert known is not None, path  # The studio writes them into each.
    return GeneratedImage(
        file=returned_file(path), seed=int(known.settings["Seed"]), parameters=format_parameters(known)
    )
