"""Requests to the owner of a device: taken, answered, withdrawn, and what killed processes leave behind."""

import json
import os
import subprocess
import sys

import pytest

from sdlora.events import Cancelled, Failed, Finished, Progress, Result, Waiting
from sdlora.inference.device_requests import DeviceRequests
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest

REQUEST = GenerationRequest(prompt="a red house", seed=3, adapters=(AdapterChoice("one", "/one.safetensors", 0.5),))


@pytest.fixture
def requests(tmp_path):
    requests = DeviceRequests(tmp_path / "cpu-here.lock")
    requests.open()
    return requests


def files(requests):
    return sorted(path.suffix for path in requests.folder.iterdir())


def test_a_request_is_taken_answered_and_cleared_away(requests):
    submitted = requests.submit(REQUEST)
    received = requests.take()
    assert received.request == REQUEST
    assert requests.take() is None
    events = [Progress(phase="drawing", done=1, total=2), Result(value=["a.png"]), Finished()]
    received.report(events[0])
    received.report(events[1])
    received.finish(events[2])
    assert list(submitted.events()) == events
    assert list(submitted.events()) == []
    submitted.close()
    assert files(requests) == []


def test_requests_are_taken_in_their_order_but_for_those_passed(requests):
    first = requests.submit(GenerationRequest(prompt="first"))
    second = requests.submit(GenerationRequest(prompt="second"))
    received = requests.take()
    assert received.request.prompt == "first"
    received.give_back("Later.")
    assert [event.message for event in first.events()] == ["Later."]
    assert requests.take({received.name}).request.prompt == "second"
    assert requests.take().request.prompt == "first"
    first.close()
    second.close()


def test_a_request_that_nobody_has_taken_is_withdrawn_at_once(requests):
    submitted = requests.submit(REQUEST)
    assert submitted.withdraw()
    assert requests.take() is None
    submitted.close()


def test_a_request_that_is_being_drawn_is_found_unwanted(requests):
    submitted = requests.submit(REQUEST)
    received = requests.take()
    assert received.wanted
    assert not submitted.withdraw()
    assert not received.wanted
    received.give_back("Later.")
    assert [type(event) for event in submitted.events()] == [Waiting, Cancelled]
    assert requests.take() is None
    submitted.close()


def test_what_a_killed_holder_had_taken_is_there_for_the_next(requests):
    submitted = requests.submit(REQUEST)
    requests.take()
    requests.open()
    assert requests.take().request == REQUEST
    submitted.close()


@pytest.mark.parametrize("look", [DeviceRequests.take, DeviceRequests.open], ids=["take", "open"])
def test_the_request_of_a_killed_process_is_cleared_away(requests, look):
    program = (
        "import os, sys; from pathlib import Path;"
        "from sdlora.inference.device_requests import DeviceRequests; from sdlora.inference.generation_request import "
        "GenerationRequest; DeviceRequests(Path(sys.argv[1])).submit(GenerationRequest(prompt='x')); os._exit(9)"
    )
    lock_file = str(requests.folder.with_suffix(".lock"))
    subprocess.run([sys.executable, "-c", program, lock_file], check=False)
    assert files(requests) == [".asked", ".lock"]
    assert look(requests) is None
    assert files(requests) == []


def test_a_request_that_cannot_be_read_fails_in_a_sentence(requests):
    submitted = requests.submit(REQUEST)
    next(requests.folder.glob("*.asked")).write_text(json.dumps({"prompt": "x", "unknown": 1}))
    assert requests.take() is None
    assert [type(event) for event in submitted.events()] == [Failed]
    submitted.close()


def test_an_answer_cut_short_is_read_when_it_is_whole_and_a_foreign_line_is_passed_over(requests):
    submitted = requests.submit(REQUEST)
    received = requests.take()
    received.report(Progress(phase="drawing"))
    answers = next(requests.folder.glob("*.answers"))
    with open(answers, "ab", buffering=0) as file:
        file.write(b'[1]\n{"kind": "Fini')
        assert [type(event) for event in submitted.events()] == [Progress]
        file.write(b'shed"}\n')
        assert [type(event) for event in submitted.events()] == [Finished]
    submitted.close()


def test_requests_need_no_torch():
    program = "import sys, sdlora.inference.device_requests; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, env=dict(os.environ)).returncode == 0
