"""The queue of runs, with buttons that change its order."""

from functools import partial
from typing import Any, Literal

import gradio as gr

from sdlora.api.training import estimate_run
from sdlora.errors import SdloraError
from sdlora.ui import build_config, page_html, run_html
from sdlora.ui.app_state import AppState
from sdlora.ui.listeners import HIDDEN, RENDER

Act = Literal["first", "up", "down", "cancel"]
Row = tuple[str, str]
"""Name of a run, and its steps and time."""


def build(app: AppState, message: gr.HTML) -> gr.State:
    """Lay the list out; it shows the state that is returned, which ``rows`` fills."""
    shown = gr.State([])
    gr.render(shown, **RENDER)(partial(_list, app, shown, message))
    return shown


def rows(app: AppState) -> list[Row]:
    """Return the queued runs with their steps and the time that they take."""
    return [(name, _facts(app, name)) for name in app.snapshot().waiting]


def _facts(app: AppState, name: str) -> str:
    run = app.run(name)
    try:
        if run is None:
            return ""
        estimate = estimate_run(run.config, app.data_dir, app.run_view(run).step)
        time = build_config.describe_estimate(estimate).split(",")[0]
        most = "" if run.config.train.stop == "never" else "at most "
        return " · ".join(part for part in (f"{most}{estimate.steps} steps", time) if part)
    except SdloraError as error:
        return str(error)


def _list(app: AppState, shown: gr.State, message: gr.HTML, waiting: list[Row]) -> None:
    if not waiting:
        return
    with gr.Column(elem_classes="queue"):
        gr.HTML("<h3>Waiting for the device</h3>", elem_classes="heading")
        for position, (name, facts) in enumerate(waiting, 1):
            with gr.Row(elem_classes="queued"):
                gr.HTML(run_html.queued_run(position, name, facts))
                acts: dict[Act, bool] = {
                    "first": position > 2, "up": position > 1, "down": position < len(waiting), "cancel": True,
                }  # fmt: skip
                for act in (act for act, offered in acts.items() if offered):
                    button = gr.Button(
                        act.capitalize(), size="sm", min_width=70, scale=0, interactive=True,
                        elem_id=f"{act}-{position}", variant="stop" if act == "cancel" else "secondary",
                    )  # fmt: skip
                    acting = partial(_act, app, name, act)
                    button.click(acting, None, [message, shown], key=f"{name}:{act}", **HIDDEN)


def _act(app: AppState, name: str, act: Act) -> list[Any]:
    run, answer = app.run(name), ""
    try:
        if run is not None and act == "cancel":
            app.queue.cancel(run)
        elif run is not None and act != "cancel":
            app.queue.move(run, act)
    except SdloraError as error:
        answer = page_html.note([str(error)], "bad")
    app.refresh()
    return [answer, rows(app)]
