"""Flags, ports and passwords; and that the page's server stays light."""

import gc
import ipaddress
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from gradio import processing_utils

from sdlora.errors import ConfigError
from sdlora.ui import serve
from sdlora.ui.app_state import AppState, RunsSnapshot
from sdlora.ui.host_policy import HostPolicy


def flags(*arguments):
    return serve._parser().parse_args(arguments)


def test_a_busy_port_gives_the_next_and_says_so(capsys):
    with socket.socket() as busy:
        busy.bind((serve.LOCAL, 0))
        busy.listen()
        port = busy.getsockname()[1]
        found = serve.free_port(serve.LOCAL, port)
    assert found > port
    assert f"Port {port} is busy; taking {found}." in capsys.readouterr().err


@pytest.mark.parametrize(("host", "port"), [(serve.LOCAL, 0), (serve.LOCAL, 99999), ("203.0.113.7", 7860)])
def test_an_address_that_cannot_be_is_refused(host, port):
    with pytest.raises(ConfigError, match=r"give 1 to 65535|no address of this machine"):
        serve.free_port(host, port)


def test_without_listening_nobody_is_asked_for_a_password(capsys):
    assert serve._login(flags()) is None
    assert capsys.readouterr().out == ""


def test_listening_always_has_a_password(capsys):
    _, password = serve._login(flags("--listen"))
    assert len(password) >= 16
    assert f"password: {password}" in capsys.readouterr().out
    assert serve._login(flags("--listen", "127.0.0.1", "--username", "me", "--password", "secret")) == ("me", "secret")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("arguments", "variable"), [(["--password", ""], None), ([], "")])
def test_an_empty_password_is_refused_rather_than_opening_the_page(monkeypatch, arguments, variable):
    if variable is not None:
        monkeypatch.setenv(serve.PASSWORD, variable)
    with pytest.raises(ConfigError, match="give a password that is not empty"):
        serve._login(flags(*arguments))


def test_the_password_need_not_be_a_flag(monkeypatch, capsys):
    monkeypatch.setenv(serve.PASSWORD, "sesame")
    assert serve._login(flags()) == ("sdlora", "sesame")
    assert serve._login(flags("--share", "--password", "given")) == ("sdlora", "given")
    monkeypatch.delenv(serve.PASSWORD)
    assert len(serve._login(flags("--share"))[1]) >= 16
    assert capsys.readouterr().out.startswith("username: sdlora\npassword: ")
    with pytest.raises(ConfigError, match="--username"):
        serve._login(flags("--listen", "--username", " "))


@pytest.mark.parametrize("arguments", [("--cpu",), ("--device", "gpu"), ("--port", "many"), ("extra",), ("--allow",)])
def test_a_flag_that_cannot_be_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        serve.main([*arguments, "--no-browser"])
    assert ended.value.code == 2


def test_names_that_can_be_no_host_are_refused(capsys, tmp_path):
    assert serve.main(["--allow-host", "https://x.example", "--data-dir", str(tmp_path), "--no-browser"]) == 2
    assert "give a name alone" in capsys.readouterr().err


def test_an_ipv6_address_stands_in_brackets(tmp_path):
    assert serve.ServeOptions(HostPolicy("::1"), 7860, tmp_path).host == "[::1]"
    assert serve.ServeOptions(HostPolicy("192.0.2.1"), 7860, tmp_path).host == "192.0.2.1"


@pytest.mark.parametrize(
    ("address", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://localhost:80"), ("::1", "http://[::1]:80"),
     ("::", "http://[::1]:80"), ("0:0::0", "http://[::1]:80"), ("fe80::1%eth0", "http://[fe80::1%25eth0]:80")],
)  # fmt: skip
def test_the_printed_address_is_one_at_which_this_machine_reaches_the_page(address, url, tmp_path):
    assert serve.ServeOptions(HostPolicy(address), 80, tmp_path).url == url


def link_local() -> str:
    """An address of this machine that needs a zone; empty if it has none."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return ""
    found = next((line.split() for line in lines if line.startswith("fe80")), None)
    return f"{ipaddress.IPv6Address(int(found[0], 16))}%{found[-1]}" if found else ""


@pytest.mark.parametrize("host", ["::1", "::", "localhost", link_local() or "::1"])
def test_a_free_port_is_found_at_every_kind_of_address(host):
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    assert serve.free_port(host, 7860) >= 7860


@pytest.mark.parametrize("host", ["fe80::1%none", "::1%", "a" * 300, "\u0130" * 80, "::g", "1.2.3", "%"])
def test_an_address_of_any_text_is_refused_in_a_sentence(host):
    with pytest.raises(ConfigError, match="no address of this machine"):
        serve.free_port(host, 7860)


def test_the_browser_is_opened_on_this_machine_only(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    assert serve._opens_browser(flags(), serve.LOCAL)
    assert not serve._opens_browser(flags("--no-browser"), serve.LOCAL)
    assert not serve._opens_browser(flags(), serve.ALL)


def test_a_folder_that_cannot_be_written_ends_it_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert serve.main(["--data-dir", str(tmp_path / "file" / "x"), "--no-browser"]) == 5
    assert "cannot be written" in capsys.readouterr().err


def test_the_page_is_built_and_a_run_prepared_without_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path; from sdlora.ui.app_state import AppState;"
        "from sdlora.ui.page import build;"
        "from sdlora.api.training import prepare_run; from sdlora.config import TrainConfig;"
        "build(AppState(Path(sys.argv[1])));"
        "prepare_run(TrainConfig.load('pocket-style'), data_dir=Path(sys.argv[1]));"
        "print(sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_garbage_is_collected_again_however_the_page_ends(tmp_path, monkeypatch):
    """None is looked for while the page is built: all that is made then stays."""
    seen = []

    def build(app):
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    for name in (*serve.SETTINGS, "GRADIO_TEMP_DIR", "SDLORA_DATA_DIR"):
        monkeypatch.setenv(name, "")  # Put back afterwards.
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_get", None)
    monkeypatch.setattr("sdlora.ui.page.build", build)
    before = signal.getsignal(signal.SIGTERM)
    try:
        serve.serve(serve.ServeOptions(hosts=HostPolicy(serve.LOCAL, []), port=7860, data_dir=tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (seen, gc.isenabled()) == ([False], True)


def test_the_queue_looks_for_calls_less_often_while_nothing_is_trained(tmp_path, monkeypatch):
    from gradio.queueing import Queue

    queue, app, states = Queue(False, 1, 60.0, None, None), AppState(tmp_path), iter(["running", "finished"])
    app.on_look = partial(serve._pace_queue, queue)
    monkeypatch.setattr(AppState, "_look", lambda self: RunsSnapshot(state=next(states)))
    app.refresh()
    busy = queue.sleep_when_free
    app.refresh()
    assert (busy, queue.sleep_when_free) == (serve.BUSY_QUEUE_SECONDS, serve.IDLE_QUEUE_SECONDS)
    assert busy < queue.sleep_when_free
