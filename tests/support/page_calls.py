"""Handlers of the page, called as a browser would have them called: with values by component."""

from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.ui import caption_tools, images_tab
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import Values
from sdlora.ui.project_panel import ImagesTab


def build_images_tab(app: AppState) -> ImagesTab:
    with gr.Blocks() as demo:
        return images_tab.build(app, demo)


def drop_files(app: AppState, files: list[Path], project: str = "mine", paths: str = "") -> str:
    """Drop files on the Pictures tab and return its message."""
    tab = build_images_tab(app)
    values: Values = {
        tab.project: project, tab.kind: "style", tab.trigger: "ohwx", tab.class_name: "", tab.images_version: 0,
        tab.paths: paths, tab.drop: [str(file) for file in files],
    }  # fmt: skip
    return str(images_tab._add(app, tab, tab.drop, values)[tab.message])


def delete_project(app: AppState, project: str) -> str:
    """Delete a project on the Pictures tab and return its message."""
    with gr.Blocks() as demo:
        tab, tools = images_tab.build(app, demo), caption_tools.build()
    return str(caption_tools._delete(app, tab, tools, project, 0)[tab.message])


def by_name(components: Any, values: Values) -> dict[str, Any]:
    """Return ``values`` by the names that ``components``, a dataclass, gives its fields."""
    names = {component: name for name, component in vars(components).items() if isinstance(component, gr.blocks.Block)}
    return {names[component]: value for component, value in values.items() if component in names}
