"""How the page's events behave: none is an endpoint of the API, and few show that they are under way."""

from typing import Any

import gradio as gr

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
HIDDEN: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
LAST: dict[str, Any] = {**HIDDEN, "trigger_mode": "always_last"}
"""While one call is under way, the newest waits: for what follows each letter that is typed.

At most one listener of an event may have it. The one that waits has Gradio (6.31) give the whole event again, to the
others too; of two that both wait, each wakes the other, and the page asks the server for ever.
"""
EVERY: dict[str, Any] = {**HIDDEN, "trigger_mode": "multiple"}
"""Each time anew: for the other listeners of an event that has one with ``LAST``, which are quickly done."""


def hide(demo: gr.Blocks, place: gr.Component) -> None:
    """Give every listener with hidden progress ``place`` for it.

    Without one, Gradio gives each output of each listener, and all that lies within it, its status again whenever any
    call begins or ends. With the page's hundreds of fields, that was a fifth of a watching browser's work.
    """
    for listener in demo.fns.values():
        if listener.show_progress == "hidden":
            listener.show_progress_on = [place]
