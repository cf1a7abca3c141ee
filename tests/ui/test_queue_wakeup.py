"""Gradio's queue, which pauses while nobody calls."""

import asyncio

import gradio as gr
import pytest
from gradio import queueing
from gradio.data_classes import PredictBodyInternal

from sdlora.ui.queue_wakeup import QUEUE_SECONDS, wake_by_calls


@pytest.fixture
def queue(monkeypatch):
    """A queue that nothing is in, with one slot."""
    monkeypatch.setattr(queueing, "asyncio", asyncio)  # Put back afterwards.
    queue = gr.Blocks().queue()._queue
    queue.active_jobs = [None]
    wake_by_calls(queue)
    return queue


def test_a_pause_ends_with_a_call_and_not_before(queue):
    async def pause_and_call():
        pauses = [asyncio.create_task(queueing.asyncio.sleep(queue.sleep_when_free)) for _ in range(2)]
        await asyncio.sleep(4 * QUEUE_SECONDS)
        assert not any(pause.done() for pause in pauses)
        refused = await queue.push(PredictBodyInternal(data=[], fn_index=None), None, None)
        await asyncio.wait_for(asyncio.gather(*pauses), 1)
        return refused

    assert asyncio.run(pause_and_call()) == (False, "No function index provided.", "error")


def test_while_a_call_runs_the_queue_looks_as_often_as_it_was_told(queue):
    queue.active_jobs = [["a call"]]
    asyncio.run(asyncio.wait_for(queueing.asyncio.sleep(QUEUE_SECONDS), 1))


def test_without_a_call_a_pause_ends_by_itself(queue, monkeypatch):
    monkeypatch.setattr("sdlora.ui.queue_wakeup.LONGEST_SECONDS", QUEUE_SECONDS)
    asyncio.run(asyncio.wait_for(queueing.asyncio.sleep(3600), 1))
