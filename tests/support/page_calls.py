"""Handlers of the page, called as Gradio calls them: with values by component, or without a browser's event."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.ui import caption_tools, compare_panel, create_form, create_tab, images_tab, library_tab, page
from sdlora.ui.app_state import AppState
from sdlora.ui.create_form import CreateForm
from sdlora.ui.listeners import Values
from sdlora.ui.project_panel import ImagesTab


def laid_out(build: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``build`` inside a page of its own, which it gets as its last argument."""
    with gr.Blocks() as demo:
        return build(*arguments, demo)


def build_page(app: AppState) -> page.Page:
    return laid_out(page.lay_out, app)


def build_images_tab(app: AppState) -> ImagesTab:
    return laid_out(images_tab.build, app)


def build_create_tab(app: AppState) -> create_tab.CreateTab:
    return laid_out(create_tab.build, app)


def build_compare_panel(app: AppState) -> tuple[create_tab.CreateTab, compare_panel.ComparePanel]:
    with gr.Blocks() as demo:
        tab = create_tab.build(app, demo)
        return tab, compare_panel.build(app, demo, tab)


def build_library_tab(app: AppState) -> tuple[library_tab.LibraryTab, gr.Tabs]:
    with gr.Blocks():
        news = gr.HTML()
        with gr.Tabs() as tabs, gr.Tab("Library") as tab:
            return library_tab.build(app, tab, tabs, news), tabs


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


def form_values(form: CreateForm, *rows: tuple[str, float], prompt: str = "a house", **changed: Any) -> Values:
    """Return what the form of the Create tab holds at first, with some values changed by the fields' names."""
    fields = {**vars(form), **form.numbers, **form.base_settings, **form.engine}
    values: Values = {component: component.value for component in form.inputs}
    values |= {form.prompt: prompt, **{fields[name]: value for name, value in changed.items()}}
    empty = [("", 1.0)] * (create_form.ROWS - len(rows))
    for adapter, slider, (name, scale) in zip(form.rows.adapters, form.rows.scales, [*rows, *empty], strict=True):
        values |= {adapter: name, slider: scale}
    return values
