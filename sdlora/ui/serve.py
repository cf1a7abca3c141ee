"""Flags, address and password of the page, and its launch."""

import argparse
import errno
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from sdlora import service
from sdlora.errors import ConfigError, SdloraError
from sdlora.files import as_path, write_atomic

PORT = 7860
TRIED = 100
"""Ports looked at from the wanted one on."""
BUSY = {errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE)}
"""What systems say of a port that is taken; Windows has a code of its own."""
LOCAL, ALL = "127.0.0.1", "0.0.0.0"
MAX_UPLOAD = "200mb"


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the page and serve it until Ctrl-C. Returns the exit code that the error, if any, stands for."""
    try:
        flags = _parser().parse_args(arguments)
        host = flags.listen or LOCAL
        port = free_port(host, flags.port)
        data_dir = as_path(flags.data_dir or service.default_data_dir()).resolve()
        _require_writable(data_dir)
        serve(host, port, data_dir, _login(flags), _opens_browser(flags, host))
        return 0
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Open sdlora's page in a browser.", allow_abbrev=False)
    add = parser.add_argument
    add("--port", type=int, default=PORT, metavar="N", help=f"if it is busy, the next free one (default: {PORT})")
    help = f"let other machines in, at this address or all ({ALL}); always with a password"
    add("--listen", nargs="?", const=ALL, metavar="IP", help=help)
    add("--username", default="sdlora", metavar="NAME", help="for --listen (default: sdlora)")
    add("--password", metavar="WORD", help="ask for it; with --listen one is made and printed if none is given")
    help = "where pictures, runs and caches are kept (default: $SDLORA_DATA_DIR, or ~/sdlora)"
    add("--data-dir", type=Path, metavar="DIR", help=help)
    help = "whether to open a browser (default: where there is a screen, and not with --listen)"
    add("--inbrowser", action=argparse.BooleanOptionalAction, default=None, help=help)
    add("--no-browser", dest="inbrowser", action="store_false", help=argparse.SUPPRESS)
    return parser


def free_port(host: str, wanted: int) -> int:
    """``wanted``, or the next port that nobody listens on. Raises ConfigError if there is none, or no such host."""
    if not 0 < wanted < 65536:
        raise ConfigError(f"--port {wanted}: give 1 to 65535")
    for port in range(wanted, min(wanted + TRIED, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except PermissionError:
                raise ConfigError(f"--port {port}: this system keeps it for itself; give 1024 or more") from None
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno not in BUSY:
                    raise ConfigError(f"--listen {host}: is no address of this machine ({error.strerror})") from None
                continue
        if port != wanted:
            print(f"Port {wanted} is busy; taking {port}.", file=sys.stderr)
        return port
    raise ConfigError(f"--port {wanted}: it and the {TRIED - 1} after it are busy; give another")


def _require_writable(data_dir: Path) -> None:
    """Raises FileError at once rather than after an hour's training."""
    probe = data_dir / ".writable"
    write_atomic(probe, b"")
    probe.unlink(missing_ok=True)


def _login(flags: argparse.Namespace) -> tuple[str, str] | None:
    """Name and password, or None where only this machine can come in and none was asked for."""
    if flags.listen is None and flags.password is None:
        return None
    password = flags.password or secrets.token_urlsafe(12)
    if not flags.password:
        print(f"username: {flags.username}\npassword: {password}", flush=True)
    return flags.username, password


def _opens_browser(flags: argparse.Namespace, host: str) -> bool:
    if flags.inbrowser is not None:
        return bool(flags.inbrowser)
    screen = os.name == "nt" or sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return host == LOCAL and screen


def _guards(host: str) -> list[Any]:
    """Where only this machine may come in, no name but its own: a foreign page could else rebind one to it."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"])] if host == LOCAL else []


def serve(host: str, port: int, data_dir: Path, login: tuple[str, str] | None, inbrowser: bool) -> None:
    """Serve the page until SIGINT or SIGTERM. A training that runs then goes on, and the next start finds it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"
    os.environ["GRADIO_TEMP_DIR"] = str(data_dir / "cache" / "page")
    from sdlora.ui.desk import Desk
    from sdlora.ui.page import CSS, HEAD, build, theme

    desk = Desk(data_dir)
    options: dict[str, Any] = {"ssr_mode": False, "run_history": False, "share": False, "quiet": True}
    options["app_kwargs"] = {"middleware": _guards(host)}
    options["_frontend"] = (
        False  # Leaves out a look at itself that ends the program if a busy machine takes 3 s for it.
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        demo = build(desk)
        desk.open()
        demo.queue(max_size=200, default_concurrency_limit=8).launch(
            server_name=host, server_port=port, auth=login, inbrowser=inbrowser, max_file_size=MAX_UPLOAD,
            theme=theme(), css_paths=[CSS], head=HEAD, footer_links=[], prevent_thread_lock=True, **options,
        )  # fmt: skip
        print(f"sdlora is at http://{'localhost' if host == ALL else host}:{port} (Ctrl-C ends it)", flush=True)
        demo.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        desk.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
