"""Gradio's blocks with calls that end in a value or in one sentence.

Gradio (6.31) answers ``{"error": null}`` to whatever is no ``gr.Error``: too few arguments, a file that was not
uploaded, a handler's own failure.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.blocks import Block, BlockFunction
from gradio.exceptions import InvalidPathError

from sdlora.formatting import one_line, pluralize

LONGEST = 500
"""Characters of a message about a call's arguments."""


class PageBlocks(gr.Blocks):
    """The page's blocks."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.blocks = _Elements(self.blocks)

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Raise ``gr.Error`` that names what is wrong with ``inputs``."""
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:  # Of a component: it repeats the value, whatever its length.
            raise gr.Error(one_line(error.message, LONGEST), print_exception=False) from None
        except Exception as error:
            raise gr.Error(_problem(block_fn, inputs, error), print_exception=False) from None

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Raise ``gr.Error`` for any failure; the server's output has its traceback."""
        try:
            return await super().process_api(*arguments, **named)
        except gr.Error:
            raise
        except Exception as error:
            sentence = f"This call failed ({type(error).__name__}); the output of the server has the details."
            raise gr.Error(sentence) from error


class _Elements(dict[int, Block]):
    """Elements of a page by number, of which each visitor has a copy.

    A render walks through them while other calls of the visitor, in other threads, may add one.
    """

    def values(self) -> list[Block]:  # type: ignore[override]
        """Return the elements as they are now."""
        return list(super().values())


def _problem(function: BlockFunction, inputs: Sequence[Any], error: Exception) -> str:
    is_endpoint = function.api_visibility == "public" and isinstance(function.api_name, str)
    name, wanted = function.api_name if is_endpoint else "This call", pluralize(len(function.inputs), "argument")
    if len(inputs) < len(function.inputs):
        return f"{name} takes {wanted}, and got {len(inputs)}; send a value for each."
    if isinstance(error, InvalidPathError):
        return f"{name} takes files that were uploaded here, and this is none; upload it first, then name its path."
    return f"{name} cannot read one of its {wanted}; the page's Use via API says what each takes."
