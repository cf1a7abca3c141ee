"""Hostile calls of any of the page's functions, with any data, through the queue and the API."""

import json
import re
from functools import cache

import pytest

from tests.support.page_server import CANARY

MARK = {"_type": "gradio.FileData"}
WORDS = [
    "../../../x",
    "/etc/passwd",
    "CON",
    "\0",
    "x" * 5000,
    "<img src=x onerror=alert(1)>",
    "a\r\nb",
    "\u202e",
    "{0.__class__}",
]
ODD = [None, -1, 1e308, float("nan"), "", [[]], {"a": {"b": 1}}, "x" * 100_000]
NAMED = {
    "train": [["trigger", None, "project", "style", "", "base", "Quick", None, None, None],
              ["trigger", [{"path": "secret"}], "", "style", "", "base", "Quick", None, None, None],
              ["t", None, "p", "style", "", "pocket", "Quick", None, {"data.folder": "secret"}, ["project"]]],
    "status": [["name", True]],
    "stop": [["name"]],
    "resume": [["name"]],
    "generate": [["word", {"name": 1.0}, "", -1, 1, 7, "Euler", 64, 64, 1, "base", "auto", "auto"],
                 ["word", None, "", -1, 1, 7, "name", 64, 64, 1, "", "auto", "auto"]],
    "export": [["name", "kohya", "fp32"], ["kept", "name", "fp32"]],
    "merge": [[{"name": 1.0, "base": 1.0}, "name", None, None, "base", "fp32", "ties", 0.5, None, None],
              [{"name": 1.0, "base": 1.0}, "name", 4, None, "base", "fp32", "name", 0.5, 1, 0.5]],
    "overlap": [[["name", "base"], "base"]],
    "resize": [["name", "name", 4, None, "base", "fp32"]],
    "extract": [["base", "base", "name", 4, None, "linear", True, "fp32"]],
    "tags": [["name", None]],
    "replace": [["name", "word", "word"]],
    "add_trigger": [["name"]],
    "undo_change": [["name"]],
    "evaluate": [["name", [], [1.0], ["word"], ["word"], ["word"], 1, 1, 1, 7, "Euler", 1, "secret", "secret"],
                 ["kept", [], [1.0], ["word"], ["word"], ["word"], 1, 1, 1, 7, "name", 1, "secret", "secret"]],
    "evaluation": [["name", True]],
    "stop_evaluation": [["name"], ["kept"]],
    "use_proposal": [["name", None], ["kept", 0]],
}  # fmt: skip
"""Calls of each endpoint; whatever is a string in them, or the key of a mapping, is said in hostile words."""


@cache
def functions(page):
    """The page's functions, each with its inputs' own values; private ones too, as their numbers are known."""
    config = page.config()
    values = {each["id"]: each["props"].get("value") for each in config["components"]}
    return [
        (each["id"], [values.get(place) for place in each["inputs"]], each["targets"])
        for each in config["dependencies"]
        if each["backend_fn"]
    ]


def numbers(page):
    return [number for number, *_ in functions(page)]


def run(page, number, data, **more):
    """Past the queue: one request, as Gradio's own page does for what is quick."""
    body = {"data": data, "fn_index": number, "session_hash": "run", **more}
    return page.request("/gradio_api/run/predict", "POST", json.dumps(body), Content_Type="application/json")


def harmless(text):
    assert CANARY not in text
    assert "Traceback" not in text
    assert not re.search(r'File "[^"]+", line', text)


def unchanged(page, house):
    """Every secret is as it was, nothing new lies beside the data folder's own places, and the page is there."""
    secrets = [
        *house.glob("secret.*"),
        *page.data_dir.glob("runs/kept/**/*.*"),
        page.data_dir / "projects/theirs/001.txt",
    ]
    assert [path.read_text() for path in secrets] == [CANARY] * 8
    assert {path.name for path in house.iterdir()} <= {
        "open", "locked", "open.log", "locked.log", *(path.name for path in secrets),
    }  # fmt: skip
    assert page.request("/config").status == 200


@pytest.mark.parametrize("kind", ["outside", "inside", "inner", "url", "public"])
def test_no_function_takes_a_file_that_was_not_uploaded(page, house, listener, kind):
    """Files as values of any field: Gradio looks for files in all of them."""
    place = {
        "outside": {"path": str(house / "secret.png")},
        "inside": {"path": str(page.data_dir / "runs" / "kept" / "run.log"), "is_stream": False},
        "inner": {"path": listener.url, "url": listener.url},
        "url": {"path": str(page.data_dir / "cache" / "page" / "x"), "url": listener.url},
        "public": {"path": "http://pictures.example.org/x.png"},
    }[kind]
    file = {**place, "orig_name": "x.png", "meta": MARK}
    for number, values, _ in functions(page):
        for data in ([file] * len(values), [[file]] * len(values)):
            harmless(run(page, number, data).text)
    assert listener.requested == []
    unchanged(page, house)


def test_an_address_in_place_of_a_file_is_refused_in_a_sentence(page):
    """Gradio would fetch a public one."""
    fields = {each["id"] for each in page.config()["components"] if each["type"] in ("file", "uploadbutton")}
    taking = [each for each in page.config()["dependencies"] if fields & set(each["inputs"])]
    assert len(taking) >= 4
    for each in taking:
        file = {"path": "http://pictures.example.org/x.png", "meta": MARK}
        answer = run(page, each["id"], [file] * len(each["inputs"]))
        assert "This page fetches nothing from other hosts" in answer.text


def answer_of(page, name, data):
    """Answers of the API's simple form: one request that starts a call, and one that follows it."""
    started = page.request(f"/gradio_api/call/{name}", "POST", {"data": data})
    lines = page.request(f"/gradio_api/call/{name}/{json.loads(started.text)['event_id']}").text.splitlines()
    assert lines[0] == "event: error"
    return json.loads(lines[1].removeprefix("data: "))["error"]


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_a_file_that_was_not_uploaded_is_refused_in_a_sentence(page, house, place):
    secret = {"outside": house / "secret.png", "inside": page.data_dir / "runs" / "kept" / "run.log"}[place]
    for file in ({"path": str(secret), "meta": MARK}, {"path": str(secret)}):
        arguments = ["t", [file], "", "style", "", "pocket", "Quick", None, None, None]
        refusal = answer_of(page, "train", arguments)
        assert "takes files that were uploaded here" in refusal or "lies outside" in refusal
        assert len(refusal) < 600
        told = json.loads(page.request("/gradio_api/run/train", "POST", {"data": arguments}).text)["error"]
        assert told == refusal


@pytest.mark.parametrize(("name", "wanted"), [("train", 10), ("status", 2), ("generate", None), ("merge", None)])
def test_a_call_with_too_few_arguments_is_told_how_many_it_takes(page, name, wanted):
    refusal = answer_of(page, name, [])
    assert re.fullmatch(rf"{name} takes {wanted or '[0-9]+'} arguments, and got 0; send a value for each.", refusal)


def test_no_call_ends_without_a_word(page):
    """Every function of the page, with too few values, and with files and lists for all of them."""
    file = {"path": "/etc/passwd", "meta": MARK}
    for number, values, _ in functions(page):
        for data in ([], [file] * len(values), [[[]]] * len(values), ["x" * 5000] * len(values)):
            answer = run(page, number, data)
            if answer.status != 200:
                refusal = json.loads(answer.text)["error"]
                assert refusal and len(refusal) <= 600, refusal


@pytest.mark.parametrize("word", WORDS)
def test_hostile_words_in_every_field_do_no_harm(page, house, word):
    for number, values, _ in functions(page):
        harmless(run(page, number, [word if isinstance(value, str | None) else value for value in values]).text)
    unchanged(page, house)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:12])
def test_data_of_any_type_and_number_gets_an_answer(page, house, odd):
    for number, values, _ in functions(page):
        for data in ([odd] * len(values), [odd], odd):
            answer = run(page, number, data)
            assert answer.status in (200, 400, 413, 422, 500)
            harmless(answer.text)
    unchanged(page, house)


def test_an_event_names_no_file_and_no_run_outside(page, house):
    """Event data of a click is untrusted too."""
    secret = str(house / "secret.png")
    for number, values, targets in functions(page):
        for path in ("../../../secret", secret, "kept/../../../secret", {"path": secret}):
            event = {"name": path, "act": "open", "cell": path, "index": path, "value": {"image": {"path": secret}}}
            trigger = targets[0][0] if targets else None
            harmless(run(page, number, values, event_data=event, trigger_id=trigger).text)
    for trigger in (-1, 10**9, None):
        harmless(run(page, number, values, event_data=event, trigger_id=trigger).text)
    unchanged(page, house)


@pytest.mark.parametrize("number", [-1, 10**6, None, 1.5, [0]])
def test_a_function_that_is_none_is_not_called(page, number):
    for path in ("/gradio_api/queue/join", "/gradio_api/run/nothing", "/gradio_api/call/nothing"):
        answer = page.request(path, "POST", {"data": [], "fn_index": number, "session_hash": "none"})
        assert answer.status in (400, 404, 422, 500)
        harmless(answer.text)


@pytest.mark.parametrize(
    "more", [{"batched": True}, {"oauth_token": "x"}, {"event_id": "x"}, {"simple_format": True}, {"trigger_id": "x"},
             {"session_hash": "../../x"}, {"session_hash": "x" * 10_000}, {"event_data": "x"}, {"request": {"a": {}}}],
    ids=lambda more: str(more)[:40],
)  # fmt: skip
def test_what_else_a_call_may_say_opens_nothing(page, house, more):
    for number, values, _ in functions(page)[::5]:
        harmless(run(page, number, values, **more).text)
    unchanged(page, house)


def put(value, word):
    """``value`` with every text in it that stands for one made into ``word``."""
    if isinstance(value, dict):
        return {put(key, word): put(each, word) for key, each in value.items()}
    if isinstance(value, list):
        return [put(each, word) for each in value]
    if isinstance(value, str):
        return re.sub(r"^(name|base|project|trigger|word|secret)$|(?<=:)name(?=:)", lambda _: word, value)
    return value


@pytest.mark.parametrize("name", NAMED)
def test_no_endpoint_leaves_the_data_folder(page, house, name):
    for word in [*WORDS, str(house / "secret.png"), str(house)]:
        for data in NAMED[name]:
            made = page.request(f"/gradio_api/call/{name}", "POST", {"data": put(data, word)})
            answer = page.request(f"/gradio_api/call/{name}/{json.loads(made.text)['event_id']}").text
            assert "event: error" in answer
            harmless(answer)
    unchanged(page, house)


def test_another_session_has_its_own_state_and_messages(page):
    """A guessed name of a session gives that session; of an unknown one, nothing is told."""
    config = page.config()
    states = {each["id"] for each in config["components"] if each["type"] == "state"}
    read_alone = [
        (each["id"], [10**6] * len(each["inputs"]))
        for each in config["dependencies"]
        if each["backend_fn"] and each["inputs"] and set(each["inputs"]) <= states
    ]
    assert read_alone
    differing = []
    for number, data in read_alone:
        sessions = ["changed", "changed", "first", "second"]
        _, changed, first, second = (
            timeless(run(page, number, data, session_hash=f"{session} {number}").text) for session in sessions
        )
        assert first == second
        differing.append(changed != first)
    assert any(differing), "no call changes its own session's state, so nothing here can leak"
    answer = page.follow("nobody")
    assert "process_completed" not in answer


def timeless(text):
    return re.sub(r'"(average_)?duration":[\d.e-]+', "", text)
