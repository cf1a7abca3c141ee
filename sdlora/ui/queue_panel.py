"""The runs that wait for the device, in their order, with ways to change it."""

from functools import partial
from typing import Any, Literal

import gradio as gr

from sdlora.api.training import estimate_run
from sdlora.errors import SdloraError
from sdlora.ui import build_config, page_html, run_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN

Act = Literal["first", "up", "down", "cancel"]
Row = tuple[str, str]
"""A run's name, and what is known of it."""


def build(app: AppState, message: gr.HTML) -> gr.State:
    """Lay the list out; it follows the state that is returned, of the rows of ``rows``."""
    shown = gr.State([])
    gr.render(shown, show_progress="hidden")(partial(_list, app, shown, message))
    return shown


def rows(app: AppState) -> list[Row]:
    """The runs that wait, each with its steps and the time that it will take."""
    return [(name, _facts(app, name)) for name in app.snapshot().waiting]


def _facts(app: AppState, name: str) -> str:
    run = app.run(name)
    try:
        if run is None:
            return ""
        found = estimate_run(run.config, app.data_dir, app.run_view(run).step)
        takes = build_config.describe_estimate(found).split(",")[0]
        return " · ".join(part for part in (f"{found.steps} steps", takes) if part)
    except SdloraError as error:
        return str(error)


def _list(app: AppState, shown: gr.State, message: gr.HTML, waiting: list[Row]) -> None:
    if not waiting:
        return
    with gr.Column(elem_classes="queue"):
        gr.HTML("<h3>Waiting for the device</h3>", elem_classes="heading")
        for place, (name, facts) in enumerate(waiting, 1):
            with gr.Row(elem_classes="queued"):
                gr.HTML(run_html.queued_run(place, name, facts))
                acts: dict[Act, bool] = {
                    "first": place > 2, "up": place > 1, "down": place < len(waiting), "cancel": True,
                }  # fmt: skip
                for act in (act for act, offered in acts.items() if offered):
                    button = gr.Button(
                        act.capitalize(), size="sm", min_width=70, scale=0, interactive=True, elem_id=f"{act}-{place}",
                        variant="stop" if act == "cancel" else "secondary",
                    )  # fmt: skip
                    acting = partial(_act, app, name, act)
                    button.click(acting, None, [message, shown], key=f"{name}:{act}", **HIDDEN)


def _act(app: AppState, name: str, act: Act) -> list[Any]:
    run, said = app.run(name), ""
    try:
        if run is not None and act == "cancel":
            app.queue.cancel(run)
        elif run is not None and act != "cancel":
            app.queue.move(run, act)
    except SdloraError as error:
        said = page_html.note([str(error)], "bad")
    app.refresh()
    return [said, rows(app)]
