"""The page for programs: a server that really runs, asked by ``gradio_client`` and by plain HTTP."""

import json
import re
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen
from zipfile import ZipFile

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from sdlora.data.projects import Project, ProjectInfo
from sdlora.formats import read_adapter
from sdlora.generation.infotext import read_parameters
from tests.support.page_server import ROOT, PageServer

PICTURES = sorted((ROOT / "sample_data" / "stained-glass").iterdir())
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """``python app.py`` with a password, and a client that knows it."""
    server = PageServer(tmp_path_factory.mktemp("page data"), "--device", "cpu", "--lowvram", SDLORA_PASSWORD="sesame")
    server.client = Client(server.address, auth=("sdlora", "sesame"), verbose=False)
    yield server
    server.stop()


def status(address, method="GET", path="/", body=None, **headers):
    """The status that an HTTP request gets."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        return urlopen(Request(f"{address}{path}", body, named, method=method)).status
    except HTTPError as error:
        return error.code


def refused(client, **arguments):
    with pytest.raises(AppError) as caught:
        client.predict(**arguments)
    return str(caught.value)


@pytest.mark.slow
def test_the_manual_does_what_it_says(server, tiny_base, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    here = {
        'Client("http://127.0.0.1:7860")': "server.client", '"train.steps": 400': '"train.steps": 4',
        'base="pocket"': f"base={str(tiny_base)!r}", "seed=7, count=2": "seed=7, count=2, steps=2",
    }  # fmt: skip
    names = {"server": server}
    for block in BLOCKS:
        for message, meant in here.items():
            block = block.replace(message, meant)
        exec(block, names)  # noqa: S102 - the documentation's own lines
    assert names["status"]["message"].startswith("Finished: 4 steps")
    assert [read_parameters(Path(picture["file"])).settings["Seed"] for picture in names["pictures"]] == ["7", "8"]
    assert "<lora:ohwx:0.8>" in names["pictures"][0]["parameters"]
    assert Path(names["file"]).name == "ohwx-diffusers.safetensors"
    assert read_adapter(Path(names["file"])).modules
    assert "There is no adapter 'nobody'; there are: ohwx, " in capsys.readouterr().out

    ended = server.client.predict(run="ohwx", previews=True, api_name="/status")
    assert [Path(preview["file"]).is_file() for preview in ended["previews"]] == [True] * 5
    config = (server.data_dir / "runs" / "ohwx" / "config.toml").read_text()
    assert 'device = "cpu"' in config  # As the server's flags say.
    assert "gradient_checkpointing = true" in config
    message = refused(server.client, run="ohwx", api_name="/resume")
    assert "nothing left to do" in message


def test_a_zip_is_trained_on_stopped_and_goes_on(server, tiny_base, tmp_path):
    client, archive = server.client, tmp_path / "pictures.zip"
    with ZipFile(archive, "w") as zipped:
        for path in PICTURES:
            zipped.write(path, f"10_zwx/{path.name}")
    run = client.predict(
        trigger="zwx", pictures=[handle_file(archive)], project="Mine", base=str(tiny_base),
        settings={"train.steps": 5000}, api_name="/train",
    )  # fmt: skip
    assert run == "Mine"
    wait(client, run, lambda now: now["step"] > 0)
    assert client.predict(run=run, api_name="/stop")["state"] == "stopping"
    stopped = wait(client, run, lambda now: now["state"] == "stopped")
    assert "Resume goes on" in stopped["message"]
    assert client.predict(run=run, api_name="/resume")["state"] in ("queued", "running")
    wait(client, run, lambda now: now["state"] == "running" and now["step"] > stopped["step"])
    client.predict(api_name="/stop")
    wait(client, run, lambda now: now["state"] == "stopped")
    assert "Mine" in [found["run"] for found in client.predict(api_name="/runs")]


def wait(client, run, until):
    for _ in range(300):
        if until(now := client.predict(run=run, api_name="/status")):
            return now
        time.sleep(0.2)
    raise AssertionError(now)


def test_tags_are_counted_changed_and_changed_back(server):
    project = Project(server.data_dir, "tagged")
    project.set_info(ProjectInfo("style", "ohwx"))
    project.add([path for path in PICTURES if path.suffix == ".png"][:3])
    for image, text in zip(project.images(), ("a Red car, old, nice", "old, red, big", ""), strict=True):
        project.write_caption(image, text)

    def call(name, **arguments):
        return server.client.predict(project="tagged", **arguments, api_name=f"/{name}")

    before = {image.name: project.caption(image) for image in project.images()}
    counted = call("tags")
    assert (counted["images"], counted["unit"]) == (3, "tags")
    assert counted["counts"] == {"ohwx": 3, "old": 2, "a Red car": 1, "nice": 1, "red": 1, "big": 1}
    assert call("tags", unit="words")["counts"]["Red"] == 2
    changed = call("replace", find="RED", replacement="blue")
    assert changed["changed"] == 2
    assert [*changed["captions"].values()] == ["a blue car, old, nice", "old, blue, big", ""]
    triggered = call("add_trigger")
    assert triggered["changed"] == 3 and all(text.startswith("ohwx") for text in triggered["captions"].values())
    assert call("undo_change")["undone"] == "trigger added in 3 captions"
    assert call("undo_change") == {"undone": "replaced 'RED' in 2 captions", "captions": before}
    assert call("undo_change") == {"undone": "", "captions": before}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trigger": "x", "api_name": "/train"}, "Hand over pictures, or name a project"),
        ({"trigger": "x", "project": "../../etc", "api_name": "/train"}, "has no pictures"),
        ({"trigger": "x", "kind": "photo", "api_name": "/train"}, "kind = 'photo'"),
        ({"trigger": "x", "quality": "Great", "api_name": "/train"}, "Quick, Balanced, Best"),
        ({"trigger": "x", "settings": {"data.folder": "/etc"}, "api_name": "/train"}, "data.folder: is a folder of"),
        (
            {"trigger": "x", "settings": {"concepts": [{"folder": "/etc"}]}, "api_name": "/train"},
            "concepts: name folders",
        ),
        ({"trigger": "x", "pictures": [{"path": "/etc/passwd"}], "api_name": "/train"}, "lies outside"),
        ({"run": "../x", "api_name": "/status"}, "There is no run '../x'"),
        ({"prompt": " ", "api_name": "/generate"}, "Describe the picture"),
        ({"prompt": "a", "steps": 0, "api_name": "/generate"}, "steps = 0"),
        ({"prompt": "a", "count": 17, "api_name": "/generate"}, "1 to 16 images"),
        ({"prompt": "a", "sampler": "Eulr a", "api_name": "/generate"}, "did you mean Euler a"),
        ({"prompt": "a", "prediction_type": "flow", "api_name": "/generate"}, "prediction_type = 'flow'"),
        ({"prompt": "a", "zero_terminal_snr": "on", "api_name": "/generate"}, "model.prediction_type = v_prediction"),
        ({"prompt": "a", "base": "nothing-here", "api_name": "/generate"}, "nothing-here"),
        ({"name": "/etc/passwd", "api_name": "/export"}, "There is no adapter"),
        ({"name": "x", "format": "--output=/x", "api_name": "/export"}, "'kohya', 'diffusers'"),
        ({"adapters": {"/etc/passwd": 1.0, "x": 1.0}, "api_name": "/merge"}, "There is no adapter '/etc/passwd'"),
        ({"adapters": {}, "api_name": "/merge"}, "at least two"),
        ({"adapters": {"x": 1.0}, "method": "tie", "api_name": "/merge"}, "'sum', 'ties', 'dare'"),
        ({"adapters": ["x", "y"], "api_name": "/overlap"}, "There is no adapter 'x'"),
        ({"adapters": [], "api_name": "/overlap"}, "at least two"),
        ({"adapter": "x", "rank": 4, "api_name": "/resize"}, "There is no adapter 'x'"),
        ({"base": "pocket", "tuned": "pocket", "rank": 4, "api_name": "/extract"}, "the same one"),
        ({"project": "../x", "api_name": "/caption"}, "has no pictures"),
        ({"project": "x", "mode": "all", "api_name": "/caption"}, "mode = 'all'"),
        ({"project": "../x", "api_name": "/tags"}, "has no pictures"),
        ({"project": "x", "unit": "letters", "api_name": "/tags"}, "unit = 'letters'"),
        ({"project": "../x", "find": "a", "api_name": "/replace"}, "has no pictures"),
        ({"project": "../x", "api_name": "/add_trigger"}, "has no pictures"),
        ({"project": "nobody", "api_name": "/undo_change"}, "There is no project 'nobody'"),
        ({"project": "../x", "words": "a dog", "api_name": "/mask"}, "has no pictures"),
        ({"project": "x", "mode": "append", "api_name": "/mask"}, "mode = 'append'"),
        ({"run": "../x", "api_name": "/evaluate"}, "There is no run '../x'"),
        ({"run": "x", "scales": [9], "api_name": "/evaluate"}, "scales.0 = 9"),
        ({"run": "x", "prompts": [""], "api_name": "/evaluate"}, "prompts.0"),
        ({"run": "/etc", "sheet": True, "api_name": "/evaluation"}, "There is no run '/etc'"),
        ({"run": "x", "api_name": "/stop_evaluation"}, "There is no run 'x'"),
        ({"run": "x", "candidate": 0, "api_name": "/use_proposal"}, "There is no run 'x'"),
        ({"base": "pocket", "tuned": "nothing-here", "rank": 4, "api_name": "/extract"}, "nothing-here"),
    ],
)
def test_what_is_wrong_is_one_sentence(server, arguments, message):
    answer = refused(server.client, **arguments)
    assert message in answer
    assert "\n" not in answer


def test_no_file_of_the_server_is_taken_for_an_upload(server):
    """Send a path without the upload that the client would do."""
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": ["x", [file], "", "style", "", "pocket", "Quick", None, None]}).encode()
    headers = {"Content-Type": "application/json", "Cookie": cookies(server.client)}
    made = urlopen(Request(f"{server.address}/gradio_api/call/train", body, headers))
    event = json.load(made)["event_id"]
    answer = urlopen(Request(f"{server.address}/gradio_api/call/train/{event}", headers=headers)).read().decode()
    assert answer.startswith("event: error")
    assert not (server.data_dir / "projects" / "x").exists()


def cookies(client):
    return "; ".join(f"{name}={value}" for name, value in client.cookies.items())


def test_foreign_names_and_origins_are_refused(server):
    address, netloc = server.address, urlsplit(server.address).netloc
    assert status(address) == 200
    assert status(address, Host="rebound.example") == 400
    upload = {"method": "POST", "path": "/gradio_api/upload", "body": b"", "Cookie": cookies(server.client)}
    here = status(address, **upload, Origin=f"http://{netloc}")
    assert here == status(address, **upload) != 403
    for origin in ("null", "http://rebound.example", "http://localhost:1"):
        assert status(address, **upload, Origin=origin) == 403
    assert status(address, "POST", "/gradio_api/queue/join", b"{}", Origin="null") == 403
    assert status(address, path="/config") == 401  # Nothing without the password.


def test_guessing_passwords_ends_after_five(server):
    for _ in range(5):
        with pytest.raises(ValueError, match="Could not login"):
            Client(server.address, auth=("sdlora", "guess"), verbose=False)
    form = b"username=sdlora&password=sesame"
    kind = "application/x-www-form-urlencoded"
    assert status(server.address, "POST", "/login", form, Content_Type=kind) == 429
    assert server.client.predict(api_name="/adapters") is not None  # Who is in stays in.
