"""Requests laid before a device's holder: taken, answered, withdrawn, and what the dead leave behind."""

import json
import os
import subprocess
import sys

import pytest

from sdlora.inference.device_requests import DeviceRequests, RequestStatus
from sdlora.inference.generation_request import AdapterChoice, GenerationRequest

REQUEST = GenerationRequest(prompt="a red house", seed=3, adapters=(AdapterChoice("one", "/one.safetensors", 0.5),))


@pytest.fixture
def mailbox(tmp_path):
    mailbox = DeviceRequests(tmp_path / "cpu-here.lock")
    mailbox.open()
    return mailbox


def files(mailbox):
    return sorted(path.suffix for path in mailbox.folder.iterdir())


def test_a_request_is_taken_answered_and_cleared_away(mailbox):
    inquiry = mailbox.submit(REQUEST)
    errand = mailbox.take()
    assert errand.request == REQUEST
    assert mailbox.take() is None
    errand.tell(RequestStatus("drawing", "Drawing between training steps", done=1, total=2))
    errand.finish(RequestStatus("done", pictures=("a.png",)))
    told = list(inquiry.answers())
    assert [answer.state for answer in told] == ["drawing", "done"]
    assert (told[0].done, told[0].total, told[1].pictures) == (1, 2, ("a.png",))
    assert list(inquiry.answers()) == []
    inquiry.close()
    assert files(mailbox) == []


def test_requests_are_taken_in_their_order_but_for_those_passed(mailbox):
    first, second = (
        mailbox.submit(GenerationRequest(prompt="first")),
        mailbox.submit(GenerationRequest(prompt="second")),
    )
    errand = mailbox.take()
    assert errand.request.prompt == "first"
    errand.give_back("Later.")
    assert [answer.message for answer in first.answers()] == ["Later."]
    assert mailbox.take({errand.name}).request.prompt == "second"
    assert mailbox.take().request.prompt == "first"
    first.close()
    second.close()


def test_a_request_that_nobody_has_taken_is_withdrawn_at_once(mailbox):
    inquiry = mailbox.submit(REQUEST)
    assert inquiry.withdraw()
    assert mailbox.take() is None
    inquiry.close()


def test_a_request_that_is_being_drawn_is_found_unwanted(mailbox):
    inquiry = mailbox.submit(REQUEST)
    errand = mailbox.take()
    assert errand.wanted
    assert not inquiry.withdraw()
    assert not errand.wanted
    errand.give_back("Later.")
    assert [answer.state for answer in inquiry.answers()] == ["waiting", "cancelled"]
    assert mailbox.take() is None
    inquiry.close()


def test_what_a_killed_holder_had_taken_is_there_for_the_next(mailbox):
    inquiry = mailbox.submit(REQUEST)
    mailbox.take()
    mailbox.open()
    assert mailbox.take().request == REQUEST
    inquiry.close()


@pytest.mark.parametrize("look", [DeviceRequests.take, DeviceRequests.open], ids=["take", "open"])
def test_the_request_of_a_killed_process_is_cleared_away(mailbox, look):
    program = (
        "import os, sys; from pathlib import Path;"
        "from sdlora.inference.device_requests import DeviceRequests; from sdlora.inference.generation_request import "
        "GenerationRequest; DeviceRequests(Path(sys.argv[1])).submit(GenerationRequest(prompt='x')); os._exit(9)"
    )
    lock_file = str(mailbox.folder.with_suffix(".lock"))
    subprocess.run([sys.executable, "-c", program, lock_file], check=False)
    assert files(mailbox) == [".asked", ".lock"]
    assert look(mailbox) is None
    assert files(mailbox) == []


def test_a_request_that_cannot_be_read_fails_in_a_sentence(mailbox):
    inquiry = mailbox.submit(REQUEST)
    next(mailbox.folder.glob("*.asked")).write_text(json.dumps({"prompt": "x", "unknown": 1}))
    assert mailbox.take() is None
    assert [answer.state for answer in inquiry.answers()] == ["failed"]
    inquiry.close()


def test_an_answer_cut_short_is_read_when_it_is_whole_and_a_foreign_line_is_passed_over(mailbox):
    inquiry = mailbox.submit(REQUEST)
    errand = mailbox.take()
    errand.tell(RequestStatus("drawing"))
    answers = next(mailbox.folder.glob("*.answers"))
    with open(answers, "ab", buffering=0) as file:
        file.write(b'[1]\n{"state": "do')
        assert [answer.state for answer in inquiry.answers()] == ["drawing"]
        file.write(b'ne"}\n')
        assert [answer.state for answer in inquiry.answers()] == ["done"]
    inquiry.close()


def test_a_mailbox_needs_no_torch():
    program = "import sys, sdlora.inference.device_requests; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, env=dict(os.environ)).returncode == 0
