"""Command line, address and password of the page, and its launch."""

import argparse
import errno
import gc
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from sdlora.errors import ConfigError, SdloraError
from sdlora.filesystem.paths import as_path, default_data_dir
from sdlora.filesystem.writing import write_atomic
from sdlora.ui.guard import MAX_UPLOAD, Guard
from sdlora.ui.host_policy import ALL, LOCAL, HostPolicy, is_loopback, stands_for_all

if TYPE_CHECKING:
    from gradio.queueing import Queue

PORT = 7860
TRIED = 100
"""Ports to try, from the wanted one on."""
BUSY = {errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE)}
"""Error codes for a port in use; Windows has one of its own."""
PASSWORD = "SDLORA_PASSWORD"
"""Environment variable with the password, as the list of processes would show a flag."""
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "0",
    "GRADIO_SHARE": "0",  # Only --share opens a tunnel.
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",  # It sums up all past events after each one, ever more slowly.
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    "FORWARDED_ALLOW_IPS": "",  # Else visitors of a tunnel could choose their address by a header.
}
"""Environment variables for Gradio and its server."""
BUSY_QUEUE_SECONDS, IDLE_QUEUE_SECONDS = 0.05, 0.1
"""Seconds between two looks of Gradio's queue for new calls, while something is trained and else."""
PROGRESS_SECONDS = 0.25
"""Seconds between two looks of Gradio's queue for progress to be sent."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the page and serve it until Ctrl-C; return the exit code."""
    try:
        flags = _parser().parse_args(arguments)
        host = (flags.listen or LOCAL).strip("[]")
        port = free_port(host, flags.port)
        data_dir = as_path(flags.data_dir or default_data_dir()).resolve()
        _require_writable(data_dir)
        serve(ServeOptions(
            hosts=HostPolicy(host, flags.allow_host),
            port=port, data_dir=data_dir, login=_login(flags), share=flags.share,
            inbrowser=_opens_browser(flags, host), device=flags.device, low_memory=flags.lowvram,
        ))  # fmt: skip
        return 0
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


@dataclass(frozen=True)
class ServeOptions:
    """Address, data folder and options of the page."""

    hosts: HostPolicy
    port: int
    data_dir: Path
    login: tuple[str, str] | None = None
    share: bool = False
    inbrowser: bool = False
    device: str = "auto"
    low_memory: bool = False

    @property
    def host(self) -> str:
        """Return the address as a URL has it."""
        return f"[{self.hosts.address}]" if ":" in self.hosts.address else self.hosts.address

    @property
    def url(self) -> str:
        """Return an address at which this machine reaches the page."""
        host = self.host.replace("%", "%25")
        if stands_for_all(self.hosts.address):
            host = "[::1]" if ":" in host else "localhost"  # Python lets no IPv4 in at an address of IPv6.
        return f"http://{host}:{self.port}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Open sdlora's page in a browser.", allow_abbrev=False)
    add = parser.add_argument
    add("--port", type=int, default=PORT, metavar="N", help=f"if it is busy, the next free one (default: {PORT})")
    help = f"let other machines in, at this address or all ({ALL}); always with a password"
    add("--listen", nargs="?", const=ALL, metavar="IP", help=help)
    help = "also answer to this name, such as a proxy's in front; may be given again (any other name gets 400)"
    add("--allow-host", action="append", default=[], metavar="NAME", help=help)
    help = "open a public link through Gradio's tunnel, always with a password; needs the internet, and at first use "
    add("--share", action="store_true", help=f"{help}Gradio downloads the tunnel's program")
    add("--username", default="sdlora", metavar="NAME", help="for --listen and --share (default: sdlora)")
    help = f"ask for it, even on this machine; better given as ${PASSWORD}, as other users may see a program's flags; "
    add("--password", metavar="WORD", help=f"{help}with --listen and --share one is made and printed if none is given")
    help = "where pictures, runs and caches are kept (default: $SDLORA_DATA_DIR, or ~/sdlora)"
    add("--data-dir", type=Path, metavar="DIR", help=help)
    help = "auto, cpu, cuda, cuda:1 or mps, for training and for images (default: auto)"
    add("--device", type=_device, default="auto", metavar="NAME", help=help)
    help = "for cards of about 8 GB: train with gradient checkpointing and pictures one by one (as many a step as "
    help += "before), and give the base's memory back after each request of pictures; all of it takes more time"
    add("--lowvram", action="store_true", help=help)
    help = "whether to open a browser (default: where there is a screen, and not with --listen)"
    add("--inbrowser", action=argparse.BooleanOptionalAction, default=None, help=help)
    add("--no-browser", dest="inbrowser", action="store_false", help=argparse.SUPPRESS)
    return parser


def _device(name: str) -> str:
    """Return a valid device name; whether the machine has it is found out by the processes that load torch."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise argparse.ArgumentTypeError(f"{name!r} is no device; give auto, cpu, cuda, cuda:1 or mps")
    return name


def free_port(host: str, wanted: int) -> int:
    """Return ``wanted`` or the next free port. Raises ConfigError if there is none, or no such host."""
    if not 0 < wanted < 65536:
        raise ConfigError(f"--port {wanted}: give 1 to 65535")
    for port in range(wanted, min(wanted + TRIED, 65536)):
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                if os.name == "posix":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)  # With the zone of a link's address, ``fe80::1%eth0``.
        except PermissionError:
            raise ConfigError(f"--port {port}: this system keeps it for itself; give 1024 or more") from None
        except (OSError, UnicodeError) as error:
            if isinstance(error, socket.gaierror | UnicodeError) or error.errno not in BUSY:
                reason = getattr(error, "strerror", None) or "no name of a host"
                raise ConfigError(f"--listen {host}: is no address of this machine ({reason})") from None
            continue
        if port != wanted:
            print(f"Port {wanted} is busy; taking {port}.", file=sys.stderr)
        return port
    raise ConfigError(f"--port {wanted}: it and the {TRIED - 1} after it are busy; give another")


def _require_writable(data_dir: Path) -> None:
    """Raise FileError now rather than after an hour of training."""
    probe = data_dir / ".writable"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


def _login(flags: argparse.Namespace) -> tuple[str, str] | None:
    """Return name and password; None if only this machine has access and no password is set."""
    password = os.environ.get(PASSWORD) if flags.password is None else flags.password
    if password == "":
        raise ConfigError(f"--password or {PASSWORD}: give a password that is not empty, or leave it out")
    if password is None and flags.listen is None and not flags.share:
        return None
    if not flags.username.strip():
        raise ConfigError("--username: give a name that is not empty")
    if password is None:
        password = secrets.token_urlsafe(12)
        print(f"username: {flags.username}\npassword: {password}", flush=True)
    return flags.username.strip(), password


def _opens_browser(flags: argparse.Namespace, host: str) -> bool:
    if flags.inbrowser is not None:
        return bool(flags.inbrowser)
    screen = os.name == "nt" or sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return is_loopback(host) and screen


def _app(hosts: HostPolicy) -> Any:
    """Return Gradio's app with the guard as its outermost layer, outside Gradio's own checks of origins."""
    from gradio.routes import App, ORJSONResponse

    class Guarded(App):
        def build_middleware_stack(self) -> Any:
            return Guard(super().build_middleware_stack(), hosts, is_logged_in=self.is_logged_in)

        def is_logged_in(self, cookies: Mapping[str, str]) -> bool:
            own = (f"access-token-{self.cookie_id}", f"access-token-unsecure-{self.cookie_id}")
            return self.auth is None or any(cookies.get(name) in self.tokens for name in own)

    return Guarded(default_response_class=ORJSONResponse)


async def _fetch_nothing(url: str) -> NoReturn:
    """Refuse addresses; Gradio's function downloads any public address that a visitor gives as a file."""
    import gradio as gr

    raise gr.Error("This page fetches nothing from other hosts; hand the file over.", print_exception=False)


def serve(options: ServeOptions) -> None:
    """Serve the page until SIGINT or SIGTERM. A running training goes on, and the next start finds it."""
    folders = {"GRADIO_TEMP_DIR": str(options.data_dir / "cache" / "page"), "SDLORA_DATA_DIR": str(options.data_dir)}
    os.environ.update(SETTINGS, **folders)
    os.environ.pop(PASSWORD, None)  # Other processes do not need it.
    gc.disable()  # All objects of the start stay; collecting among them takes a sixth of it.
    from gradio import processing_utils

    from sdlora.api.reports import STYLE
    from sdlora.ui.app_state import AppState
    from sdlora.ui.page import CSS, HEAD, build, theme

    processing_utils.async_ssrf_protected_get = _fetch_nothing
    app = AppState(options.data_dir, options.device, options.low_memory)
    launch: dict[str, Any] = {"ssr_mode": False, "run_history": False, "quiet": True, "_app": _app(options.hosts)}
    # Skips a request to itself, which ends the program if a busy machine takes 3 s for it.
    launch["_frontend"] = False
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        demo = build(app)
        demo.queue(max_size=200, default_concurrency_limit=8)
        app.on_look = partial(_pace_queue, demo._queue)
        _pace_queue(demo._queue, active=False)
        app.open()
        demo.launch(
            server_name=options.host, server_port=options.port, auth=options.login, inbrowser=options.inbrowser,
            share=options.share, max_file_size=MAX_UPLOAD, theme=theme(), css_paths=[CSS, STYLE], head=HEAD,
            footer_links=[], prevent_thread_lock=True, **launch,
        )  # fmt: skip
        options.hosts.share = urlsplit(demo.share_url or "").hostname or ""
        gc.freeze()
        gc.enable()
        print(f"sdlora is at {options.url} (Ctrl-C ends it)", flush=True)
        demo.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        gc.enable()
        app.close()


def _pace_queue(queue: "Queue", active: bool) -> None:
    """Let Gradio's queue look for calls and progress less often: its own paces take 6 % of a core, all the time."""
    queue.sleep_when_free = BUSY_QUEUE_SECONDS if active else IDLE_QUEUE_SECONDS
    queue.progress_update_sleep_when_free = PROGRESS_SECONDS


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
