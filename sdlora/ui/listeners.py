"""Options and types of the page's event listeners.

A handler with more than a few inputs takes them as a set: Gradio then passes one dictionary of values by component. A
handler with more than a few outputs returns such a dictionary; components that it leaves out stay as they are. An empty
dictionary is not allowed: return ``gr.skip()``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.blocks import Block

Trigger = Callable[..., Any]
"""An event that a listener can be attached to, such as ``tab.select``."""
Values = dict[Block, Any]
"""Values by component: what a handler takes, and the new values or updates that it returns."""
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""Listeners of the page are not endpoints of the API."""
HIDDEN: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
LAST: dict[str, Any] = {**HIDDEN, "trigger_mode": "always_last"}
"""While one call runs, only the newest event waits: for handlers that follow every typed letter.

At most one listener of an event may use it. Gradio (6.31) repeats the whole event for the listener that waits, so two
that wait would trigger each other without end.
"""
EVERY: dict[str, Any] = {**HIDDEN, "trigger_mode": "multiple"}
"""Run for every event: for the quick listeners of an event that also has one with ``LAST``."""
RENDER: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "render", "concurrency_limit": 1}
"""Options of every ``gr.render``: one runs at a time, as visitors share what Gradio (6.31) keeps between two."""

PROGRESS = gr.Progress()
"""Default argument by which Gradio passes a handler its progress bar."""


def click_later(elem_id: str) -> str:
    """Return JavaScript that clicks the hidden download button ``elem_id`` once the page has its file."""
    return f"() => setTimeout(() => document.querySelector('#{elem_id}')?.click(), 100)"


def show_hidden_progress_on(demo: gr.Blocks, component: gr.Component) -> None:
    """Attach the hidden progress of every listener to ``component``.

    Without one, Gradio updates the status of every output, and of all that it contains, whenever a call begins or ends.
    With the page's hundreds of fields, that took a fifth of a watching browser's time.
    """
    for listener in demo.fns.values():
        if listener.show_progress == "hidden":
            listener.show_progress_on = [component]


class Changes:
    """Updates of the components that changed since a visitor's page was last refreshed."""

    def __init__(self, seen: Mapping[str, Any]):
        self.seen = dict(seen)
        """Version of each value that the page shows, by name."""
        self.updates: Values = {}

    def add(self, name: str, component: Block, version: Any, update: Callable[[], Any]) -> None:
        """Update ``component`` if the page shows another version of ``name``."""
        if self.seen.get(name) != version:
            self.seen[name] = version
            self.updates[component] = update()
