"""Everyday trouble: reloads, second windows, a killed server, stops, failures, busy devices, wrong files."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
from gradio_client import Client, handle_file
from safetensors.torch import load_file, save_file

from sdlora.events import StepDone
from sdlora.storage.run_folder import Run
from tests.support.browser import PICTURES, wait_until
from tests.support.page_server import ROOT

LONG = 4000
"""Steps that no test waits for."""


def steps_of(run: Run) -> int:
    return sum(isinstance(event, StepDone) for event in run.events())


@pytest.fixture(scope="module")
def runs(server):
    return lambda: {path.parent.name for path in (server.data_dir / "runs").glob("*/config.toml")}


@pytest.fixture(scope="module")
def long_run(server, visits, runs):
    """A training that would take long, begun by a double click."""
    visitor = visits(server.address)
    before = runs()
    visitor.tab("Train")
    visitor.page.locator("#advanced button").first.click()
    visitor.fill("#set-train-steps", str(LONG))
    visitor.fill("#set-sample-every", "0")
    visitor.fill("#set-checkpoint-every", "20")
    visitor.see(f"{LONG} steps", "#train-summary")
    visitor.page.locator("#train-button").dblclick()
    visitor.page.locator("#run-status").get_by_text(f"of {LONG}").wait_for()
    visitor.page.close()
    (name,) = runs() - before  # One run for two clicks.
    run = Run(server.data_dir / "runs" / name)
    yield run
    run.stop()
    wait_until(lambda: not run.is_locked())


@pytest.fixture
def training(long_run, server):
    """The long training, which a test before may have stopped, at work."""
    if not long_run.is_locked():
        Client(server.address, verbose=False).predict(run=long_run.name, api_name="/resume")
        before = steps_of(long_run)
        wait_until(lambda: steps_of(long_run) > before)
    return long_run


@pytest.fixture
def idle(server):
    """Stop every training."""
    for run in Run.all(server.data_dir):
        run.stop()
        wait_until(lambda run=run: not run.is_locked())
        run.stop_file.unlink(missing_ok=True)


def test_a_reload_and_a_second_window_find_the_training(training, server, visit):
    visitor = visit(server.address)
    visitor.tab("Train")
    visitor.see(f"of {LONG}", "#run-status")
    visitor.page.reload()
    visitor.tab("Train")
    visitor.see(f"of {LONG}", "#run-status")
    second = visit(server.address)
    second.see(training.name, "#header")
    assert second.page.locator("#stop-now").is_visible()


def test_pictures_are_drawn_while_it_trains_and_a_second_visitor_waits_its_turn(training, server, visit):
    run = training
    first, second = visit(server.address), visit(server.address)
    for visitor in (first, second):
        visitor.tab("Create")
        visitor.fill("#prompt", "a red house on grass")
    first.fill("#count", "16")
    first.click("#create-button")
    first.page.locator("#cancel-button").wait_for()
    second.click("#create-button")
    second.see("before this one", "#create-status")
    first.click("#cancel-button")
    first.see("Cancelled", "#create-status")
    before = steps_of(run)
    second.see("1 picture drawn.", "#create-status")
    assert run.is_locked()  # It was drawn between its steps.
    wait_until(lambda: steps_of(run) > before)


def test_a_killed_server_costs_nothing(training, server, visit):
    run = training
    server.kill()
    before = steps_of(run)
    wait_until(lambda: steps_of(run) > before)  # Nobody looks, and it goes on.
    server.start()
    visitor = visit(server.address)
    visitor.see(run.name, "#header")
    visitor.tab("Train")
    visitor.see(f"of {LONG}", "#run-status")


def test_stopped_it_is_saved_and_goes_on_where_it_was(training, server, visit, tmp_path):
    run = training
    visitor = visit(server.address)
    visitor.tab("Train")
    visitor.click("#stop-now")
    visitor.see("Stopped at step", "#run-status")
    assert not run.is_locked()
    assert visitor.download("#download-kohya", tmp_path).stat().st_size > 1000
    reached = steps_of(run)
    visitor.click("#resume-button")
    wait_until(lambda: steps_of(run) > reached)
    steps = [event.step for event in run.events() if isinstance(event, StepDone)]
    assert steps[reached] <= reached + 1  # It replays what was not saved, and skips nothing.
    visitor.click("#stop-button")
    visitor.see("Stopped at step", "#run-status")


@pytest.mark.slow
def test_a_failed_run_says_why_keeps_the_settings_and_train_works_again(server, visit, idle, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    visitor = visit(server.address)
    visitor.tab("Train")
    visitor.choose("#train-base", "nothing-here")
    visitor.see("there is no 'nothing-here'", "#train-summary")
    visitor.click("#train-button")
    visitor.see("there is no 'nothing-here'", "#train-message")
    visitor.page.locator("#advanced button").first.click()
    visitor.fill("#set-train-steps", "4")
    visitor.choose("#train-base", str(base))
    visitor.see("4 steps", "#train-summary")
    visitor.click("#train-button")
    visitor.see("Failed", "#run-status")
    assert visitor.value("#set-train-steps") == "4"
    visitor.choose("#train-base", str(tiny_base))
    visitor.see("4 steps", "#train-summary")
    visitor.click("#train-button")
    visitor.see("Finished: 4 steps", "#run-status")


def test_an_adapter_of_another_base_is_refused_in_a_sentence(server, trained, visit, tmp_path):
    wide = {name: tensor.repeat(1, 2) if name.endswith("lora_down.weight") and tensor.ndim == 2 else tensor
            for name, tensor in load_file(trained.run / "adapter.safetensors").items()}  # fmt: skip
    save_file(wide, tmp_path / "stranger.safetensors")
    visitor = visit(server.address)
    visitor.tab("Library")
    visitor.tab("Import")
    visitor.give("#import-files", [tmp_path / "stranger.safetensors"])
    visitor.page.locator("#import-report .bad").first.wait_for()
    assert not (server.data_dir / "adapters" / "stranger.safetensors").exists()
    visitor.tab("Create")
    visitor.fill("#prompt", "a house <lora:stranger:1>")
    visitor.click("#create-button")
    visitor.see("There is no adapter 'stranger'", "#create-status")


def test_a_busy_port_gives_the_next(server, tmp_path):
    command = [sys.executable, "app.py", "--no-browser", "--port", str(server.port), "--data-dir", str(tmp_path)]
    with socket.create_connection(("127.0.0.1", server.port)):
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = other.stdout.readline()
    other.terminate()
    output = other.communicate(timeout=30)[1]
    assert f":{server.port}" not in line and "http://" in line
    assert f"Port {server.port} is busy" in output


@pytest.mark.slow
def test_a_program_does_the_same(server, visit, idle):
    client = Client(server.address, verbose=False)
    run = client.predict(
        trigger="zwx", pictures=[handle_file(path) for path in PICTURES[:8]], kind="style", base="pocket",
        settings={"train.steps": 4, "sample.every": 0}, api_name="/train",
    )  # fmt: skip
    status = wait_until(lambda: (found := client.predict(run=run, api_name="/status"))["state"] == "finished" and found)
    assert status["adapter_ready"] and status["step"] == 4
    (picture,) = client.predict(prompt="zwx, a house", adapters={run: 0.8}, seed=3, steps=4, api_name="/generate")
    assert picture["seed"] == 3
    assert f"<lora:{run}:0.8>" in picture["parameters"]
    assert json.dumps(client.predict(api_name="/adapters")).count(run)
    assert load_file(client.predict(name=run, format="kohya", dtype="fp16", api_name="/export"))
    assert client.predict(run="", api_name="/stop")["state"] != "running"


@pytest.mark.slow
def test_a_model_put_into_the_models_folder_is_offered_to_who_opens_the_page_then(server, visit, idle, runs, tiny_base):
    place = shutil.copytree(tiny_base, server.data_dir / "models" / "mine")
    visitor = visit(server.address)
    visitor.tab("Train")
    assert visitor.value("#train-base") == "pocket"
    visitor.page.locator("#train-base input").first.click()
    visitor.page.get_by_role("option", name="mine").click()
    assert visitor.value("#train-base") == "mine"
    visitor.page.locator("#advanced button").first.click()
    visitor.fill("#set-train-steps", "4")
    visitor.see("4 steps", "#train-summary")
    before = runs()
    visitor.click("#train-button")
    (name,) = wait_until(lambda: runs() - before)  # The page shows the run before it until then.
    run = Run(server.data_dir / "runs" / name)
    assert run.config.model.base == str(place)
    wait_until(lambda: run.state == "finished")
    visitor.see("Finished: 4 steps", "#run-status")
