"""The Pictures tab: a project, a drop zone, what to fix in its pictures, and one card for each of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr

from sdlora.api.models import known_words, native_size
from sdlora.data import doctor
from sdlora.data.dataset import survey_folder
from sdlora.data.findings import Finding
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.settings import Concept, Kind
from sdlora.data.uploads import FolderWords, UploadedFile
from sdlora.errors import SdloraError
from sdlora.ui import auto_mask_panel, caption_panel, caption_tools, mask_panel, project_panel
from sdlora.ui.app_state import AppState
from sdlora.ui.build_config import data_settings, suggested_words
from sdlora.ui.caption_cards import findings_list, render_cards
from sdlora.ui.caption_reading import HINT
from sdlora.ui.listeners import EVERY, HIDDEN, PRIVATE, PROGRESS, RENDER, Values
from sdlora.ui.page_html import note
from sdlora.ui.project_panel import ImagesTab, projects_beside, word_values
from sdlora.ui.tag_table import tag_table

MAX_REMARKS = 12
"""Refused files that are named; the others are only counted."""
SAMPLES = Path(__file__).parents[2] / "sample_data" / "stained-glass"
"""Ten pictures of a style, with captions that have the suggested trigger."""
KINDS: list[tuple[str, Kind]] = [("A style", "style"), ("A subject", "subject")]
FOLDER_PATHS = "(paths, ...values) => [JSON.stringify(window.sdloraFolder || []), ...values]"
"""Gradio keeps only the names of files; the page's script remembers their paths within the chosen folder.

The values of a set of inputs come in the order in which the components were made, and ``ImagesTab.paths`` is the first.
"""


def build(app: AppState, demo: gr.Blocks) -> ImagesTab:
    """Lay the tab out and wire it."""
    fields = _project_fields() | _upload_fields()
    status, message, findings = (gr.HTML(elem_id=f"pictures-{name}") for name in ("status", "remarks", "findings"))
    undo = gr.Button("Undo", visible=False, size="sm", elem_id="undo-pictures")
    captions = caption_panel.build()
    auto_masks = auto_mask_panel.build()
    masks = mask_panel.build()
    cards = gr.Column()
    reading = gr.HTML(HINT, elem_id="caption-reading")
    with gr.Accordion("How often each word or tag occurs", open=False, elem_id="caption-tags"):
        tags = gr.HTML()
    tools = caption_tools.build()
    tab = ImagesTab(
        **fields, status=status, message=message, findings=findings, tags=tags, reading=reading, undo=undo,
        train=gr.Button("Train on these pictures", variant="primary", size="lg", elem_id="train-these"),
        train_message=gr.HTML(elem_id="train-these-message"),
        folder_words=gr.State(None), open_project=gr.State(""), images_version=gr.State(0),
        captions_version=gr.State(0), edits=gr.State(0), caption_first=captions.before_training,
        deleted=gr.State(""), base=gr.State("pocket"), settings=gr.State({}), together=gr.State([]),
    )  # fmt: skip
    project_panel.wire(app, demo, tab)
    _wire_uploads(app, tab)
    _wire_status(app, tab)
    caption_panel.wire(app, tab, captions)
    caption_tools.wire(app, tab, tools)
    auto_mask_panel.wire(app, tab, auto_masks)
    mask_panel.wire(app, tab, masks)
    with cards:
        # One listener for both changes, so that the newest of them waits.
        changes = [tab.open_project.change, tab.images_version.change]
        inputs = [tab.project, tab.images_version, tab.captions_version]
        gr.render(inputs, changes, trigger_mode="always_last", **RENDER)(
            partial(render_cards, app.data_dir, tab, masks)
        )
    return tab


def _project_fields() -> dict[str, Any]:
    paths = gr.Textbox("", visible=False)
    with gr.Row(equal_height=True):
        project = gr.Dropdown(  # Disabled until the page knows its projects, as that answer replaces an earlier choice.
            label="Project", allow_custom_value=True, elem_id="project", info="Choose one, or type a new name", scale=2,
            interactive=False,
        )  # fmt: skip
        kind = gr.Radio(KINDS, value="style", label="What is it?", info="A look, or one thing or person", scale=2)
        trigger = gr.Textbox("", label="Trigger word", info="The word that will call it", scale=2)
        class_name = gr.Textbox(
            "", label="Kind of subject", info="Needed: such as cat or person", visible=False, scale=2
        )
    return {"paths": paths, "project": project, "kind": kind, "trigger": trigger, "class_name": class_name}


def _upload_fields() -> dict[str, Any]:
    drop = gr.File(
        file_count="multiple", label="Pictures, captions (.txt), masks or zip files", height=150, elem_id="drop-files",
        elem_classes="drop",
    )  # fmt: skip
    folder = gr.UploadButton("or choose a folder", file_count="directory", size="sm", elem_id="drop-folder")
    samples = gr.Button("Try with sample pictures", visible=False, size="sm", elem_id="try-samples")
    use_words = gr.Button(visible=False, size="sm", elem_id="use-words")
    return {"drop": drop, "folder": folder, "samples": samples, "use_words": use_words}


def _wire_uploads(app: AppState, tab: ImagesTab) -> None:
    outputs = [
        tab.drop, tab.folder, tab.message, tab.images_version, tab.use_words, tab.folder_words, *tab.words,
    ]  # fmt: skip
    inputs = {tab.paths, tab.project, *tab.words, tab.images_version}
    options = {**PRIVATE, "show_progress_on": [tab.drop, tab.message]}
    tab.drop.upload(partial(_add, app, tab, tab.drop), inputs | {tab.drop}, outputs, **options)
    tab.folder.upload(
        partial(_add, app, tab, tab.folder), inputs | {tab.folder}, outputs, js=FOLDER_PATHS, **options
    )  # fmt: skip
    tab.samples.click(partial(_add_samples, app, tab), inputs, outputs, **PRIVATE, show_progress_on=tab.message)
    tab.use_words.click(partial(_use_words, tab), tab.folder_words, [tab.use_words, *tab.words], **HIDDEN)


def _wire_status(app: AppState, tab: ImagesTab) -> None:
    changes = [
        tab.open_project.change, tab.base.change, tab.settings.change, tab.together.change, tab.images_version.change,
        tab.edits.change,
    ]  # fmt: skip
    gr.on(
        changes, partial(_status, app), tab.project, [tab.status, tab.undo, tab.train_message, tab.samples], **EVERY
    ).then(
        partial(_check, app), [tab.project, tab.base, tab.settings, tab.together], [tab.findings, tab.tags],
        **{**HIDDEN, "show_progress": "minimal"},
    )  # fmt: skip
    tab.open_project.change(lambda: HINT, None, tab.reading, **EVERY)


def _add(
    app: AppState, tab: ImagesTab, source: gr.Component, values: Values, progress: gr.Progress = PROGRESS
) -> Values:
    """Copy uploaded files into the project and empty the upload field, which takes no more while it is filled."""
    return _keep(app, tab, _uploads(values[source] or [], values[tab.paths]), values, progress)


def _add_samples(app: AppState, tab: ImagesTab, values: Values, progress: gr.Progress = PROGRESS) -> Values:
    """Copy the sample pictures, with their captions, into the project, which becomes that of a style."""
    files = [UploadedFile(path, PurePosixPath(path.name)) for path in sorted(SAMPLES.iterdir())]
    info = suggested_words("pocket", "style")
    return _keep(
        app, tab, files, values | {tab.kind: info.kind, tab.trigger: info.trigger, tab.class_name: ""}, progress
    )


def _keep(
    app: AppState, tab: ImagesTab, files: Sequence[UploadedFile], values: Values, progress: gr.Progress
) -> Values:
    """Copy ``files`` into the project.

    The words in the name of a kohya folder fill the fields of a new project; otherwise a button offers them.
    """
    uploaded: Values = {
        tab.drop: None, tab.folder: None, tab.images_version: values[tab.images_version] + 1,
        tab.use_words: gr.update(visible=False), tab.folder_words: None,
    }  # fmt: skip
    try:
        project, info = Project(app.data_dir, values[tab.project] or ""), tab.info(values)
        untouched = project.info is None and info == suggested_words("pocket", info.kind)
        progress(0, desc="Unpacking and reading")
        added = project.add(
            files,
            lambda done, total: progress((done, total), desc="Reading", unit="pictures"),
        )
        words = added.folder_words
        if words and untouched:
            info = _info(words)
        project.set_info(info)
    except SdloraError as error:
        return uploaded | {tab.message: note([str(error)], "bad")}
    uploaded |= {tab.message: note(_remarks(added.remarks), "bad"), tab.folder_words: words, **word_values(tab, info)}
    if words and (words.trigger, words.class_name) != (info.trigger, info.class_name):
        uploaded[tab.use_words] = gr.update(visible=True, value=_offer(words))
    return uploaded


def _uploads(files: list[Any], paths: str) -> list[UploadedFile]:
    """Return the uploaded files under their paths within the folder, if the browser sent those."""
    try:
        names = json.loads(paths or "[]")
    except (ValueError, RecursionError):  # The page's script sends them; a program may send anything.
        names = None
    valid = isinstance(names, list) and len(names) == len(files) and all(isinstance(name, str) for name in names)
    names = names if valid else [Path(str(file)).name for file in files]
    return [UploadedFile(Path(str(file)), PurePosixPath(name)) for file, name in zip(files, names, strict=True)]


def _remarks(remarks: Sequence[str]) -> list[str]:
    more = len(remarks) - MAX_REMARKS
    return [*remarks[:MAX_REMARKS], *([f"{more} more were refused, for reasons like these."] if more > 0 else [])]


def _offer(words: FolderWords) -> str:
    name = f"{words.trigger}, a {words.class_name}" if words.class_name else words.trigger
    return f"Use the words of the folder's name: {name}"


def _info(words: FolderWords) -> ProjectInfo:
    return ProjectInfo(words.kind, words.trigger, words.class_name)


def _use_words(tab: ImagesTab, words: FolderWords) -> Values:
    """Fill in the words of the folder's name; the fields' own listeners store them."""
    return {tab.use_words: gr.update(visible=False), **word_values(tab, _info(words))}


def _status(app: AppState, name: str) -> list[Any]:
    """Count the pictures, name what Undo would undo, and clear a refusal to train on what was there before.

    An empty project offers the sample pictures, where the program lies beside them.
    """
    try:
        project = Project(app.data_dir, name or "")
        status, step = project.status(), project.history.newest()
        undo = gr.update(visible=step is not None, value=f"Undo: {step.what}" if step else "Undo")
        samples = gr.update(visible=not project.images() and SAMPLES.is_dir())
        return [note([status], "good" if "ready" in status else "info"), undo, "", samples]
    except SdloraError as error:
        return [note([str(error)], "bad"), gr.update(visible=False), "", gr.update(visible=False)]


def _check(
    app: AppState,
    name: str,
    base: str,
    changes: Mapping[str, Any],
    together: Sequence[str],
    progress: gr.Progress = PROGRESS,
) -> list[str]:
    """Check the pictures for training on ``base`` with these settings, and count the tags of their captions.

    Those of the projects ``together`` are checked too, each by its name.
    """
    base = base or "pocket"
    try:
        project = Project(app.data_dir, name or "")
        number = len(project.images())
        if not number:
            return ["", ""]
        projects = [project, *projects_beside(app, project.name, together)]
        data = [data_settings(each, base, changes) for each in projects]
        findings = doctor.check_concepts(
            [Concept(**dict(each)) for each in data], native_size(base),
            lambda done, total: progress((done, total), desc="Checking the pictures"), known_words(base),
            [each.name for each in projects],
        )  # fmt: skip
        shown = [_on_cards(finding, project) for finding in findings]
        return [findings_list(shown, number), tag_table(survey_folder(data[0]).examples, data[0])]
    except SdloraError as error:
        return [note([str(error)], "bad"), ""]


def _on_cards(finding: Finding, project: Project) -> Finding:
    """Return ``finding`` on the pictures of ``project`` alone: those of other projects have no cards."""
    return replace(finding, images=tuple(path for path in finding.images if path.is_relative_to(project.folder)))
