"""Who may ask the page for what: one layer of ASGI around it, so that nothing that is refused reaches Gradio.

A foreign page can make a browser send requests here, and can let its own name point here (DNS rebinding). So a ``Host``
that is not this page's gets 400, and a foreign ``Origin`` gets 403 on whatever could change something. No header that a
proxy may have set is believed. Of Gradio's routes only those are open that the page uses, and with a password none is
but for whom has logged in. Nothing is buffered: answers that stream go on streaming.
"""

import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import cookie_parser

from sdlora.errors import ConfigError
from sdlora.ui import login

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]
Knows = Callable[[Mapping[str, str]], bool]
"""Whether the cookies of a request are those of somebody who has logged in, or nobody need."""

LOCAL, ALL = "127.0.0.1", "0.0.0.0"
ANY = (ALL, "::")
"""Where a server listens that listens on every address."""
SAFE = {"GET", "HEAD", "OPTIONS"}
MAX_UPLOAD = 2 << 30
"""Bytes of a data set, dropped as pictures or as one zip file; Gradio has one limit for every file."""
MAX_BODY, MAX_LOGIN = 64 << 20, 64 << 10
"""Bytes of any other request, and of a name with a password."""
TRIES, WAIT_SECONDS, REMEMBERED = 5, 60.0, 10_000
"""Wrong passwords from an address before it has to wait, how long, and how many addresses are remembered."""
FILES, FETCHED = "/gradio_api/file=", re.compile(r"/gradio_api/(file[=/]\s*https?:|proxy=)", re.IGNORECASE)
"""Where files are served; and Gradio's two routes that would fetch from other hosts."""
SERVED = re.compile(
    r"/|/(config|login|logout)/?|/(theme\.css|favicon\.ico|robots\.txt|manifest\.json)|/(static|assets|svelte)/.+|"
    r"/gradio_api/(file=.+|(run|api|call)/.+|queue/(join|data|status)|heartbeat/[^/]+|"
    r"(upload|upload_progress|cancel|reset|info|user|app_id|login_check|startup-events|theme\.css)/?)"
)
"""All that the page and ``gradio_client`` ask for. Gradio has more, some of it open to whom has not logged in."""
OPEN = re.compile(r"/login/?|/favicon\.ico|/robots\.txt|/gradio_api/startup-events")
"""What needs no login; Gradio itself asks for the last one when it starts."""
OF_FILES = {
    b"accept-ranges", b"content-disposition", b"content-encoding", b"content-length", b"content-range",
    b"content-type", b"etag", b"last-modified", b"vary",
}  # fmt: skip
"""Headers that a file comes with. Gradio (6.31) gives part of a file all headers of the request back, cookies too."""
PORTS = {"http": 80, "https": 443}
PAGE_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Nothing from any other host. Gradio's page has scripts and styles in its text, and its plots compile expressions."""
FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_RANGE = re.compile(rb"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")
_NETLOC = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]\\]+)(?::(\d{1,5}))?", re.IGNORECASE)


def split_host(text: str) -> tuple[str, int | None]:
    """``name:80`` or ``[::1]:80`` as name and port; an empty name for what is none."""
    found = _NETLOC.fullmatch(text)
    if found is None:
        return "", None
    return found[1].strip("[]").rstrip(".").lower(), int(found[2]) if found[2] else None


def _address(name: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    """The address that ``name`` is, in its shortest form; None for a name."""
    try:
        found = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def is_loopback(name: str) -> bool:
    """Whether only this machine can reach ``name``."""
    address = _address(name)
    return name == "localhost" if address is None else address.is_loopback


@dataclass
class HostPolicy:
    """The names under which the page may be asked for: loopback, where it listens, and those given."""

    listens: str = LOCAL
    given: Iterable[str] = ()
    share: str = ""
    """Host of the share tunnel, known once it is open."""
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for a given name that is none."""
        for name in self.given:
            host, port = split_host(name)
            if not host or port is not None:
                raise ConfigError(f"--allow-host {name}: give a name alone, such as pictures.example.org")
        own = {self.listens.lower()}
        if not is_loopback(self.listens):
            name = socket.gethostname().lower()
            short = name.partition(".")[0]
            own |= {name, short, f"{short}.local"}
        self.given = frozenset(split_host(name)[0] for name in self.given)
        self.names = frozenset(own) | self.given

    def admits(self, name: str, arrived: str) -> bool:
        """Whether ``name`` is this page's, for a request that arrived at the address ``arrived`` of this machine."""
        if not name:
            return False
        if is_loopback(name) or name in self.names or name == self.share:
            return True
        address = _address(name)
        return self.listens in ANY and address is not None and address == _address(arrived)

    def owns(self, origin: str, host: str, server: tuple[str, int | None]) -> bool:
        """Whether a page of ``origin`` is this one, asked for as ``host`` and served at ``server``."""
        scheme, _, rest = origin.partition("://")
        name, port = split_host(rest)
        if scheme not in PORTS or not name:
            return False
        default = PORTS[scheme]
        own, own_port = split_host(host)
        if (name, port or default) == (own, own_port or default):
            return True
        if name == self.share or name in self.given:  # A proxy in front may have changed the host.
            return True
        return self.admits(name, server[0]) and (port or default) == server[1]


class Throttle:
    """Counts wrong passwords by address. Every try counts as wrong until it was right, so many at once gain nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._tries: dict[str, tuple[int, float]] = {}

    def waits(self, address: str) -> int:
        """Seconds until ``address`` may try again; 0 if it may now, which is then counted."""
        now = self._clock()
        count, last = self._tries.pop(address, (0, now))
        if now - last >= WAIT_SECONDS:
            count = 0
        if count < TRIES:
            count, last = count + 1, now
            self._tries[address] = (count, last)
            for old in list(self._tries)[:-REMEMBERED]:
                del self._tries[old]
            return 0
        self._tries[address] = (count, last)
        return max(1, round(WAIT_SECONDS - (now - last)))

    def forgive(self, address: str) -> None:
        """Forget the tries of ``address``: its password was right, or none was compared."""
        self._tries.pop(address, None)


class Guard:
    """The layer around ``app``."""

    def __init__(
        self, app: ASGI, door: HostPolicy, throttle: Throttle | None = None, knows: Knows = lambda cookies: True
    ):
        self.app = app
        self.door = door
        self.throttle = throttle or Throttle()
        self.knows = knows

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # Nothing here speaks over one.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        foreign = self._is_foreign(scope, headers)
        refusal = self._refusal(scope, headers, foreign)
        if refusal is not None:
            await _answer(send, *refusal)
        elif OPEN.fullmatch(scope["path"]) or self.knows(cookie_parser("; ".join(headers.get("cookie", ())))):
            await self._serve(self._believed(scope, headers), foreign, receive, send)
        elif scope["path"] == "/" and scope["method"] in SAFE:
            await _answer(send, 200, login.PAGE, {"content-type": "text/html; charset=utf-8"}, login.POLICY)
        else:
            await _answer(send, 401, "Log in first, on this page's start.")

    def _is_foreign(self, scope: Message, headers: dict[str, list[str]]) -> bool:
        """Whether a page other than this one makes the browser ask. Programs name no origin."""
        host, server = headers.get("host", [""])[0], scope.get("server") or ("", None)
        return any(not self.door.owns(origin, host, server) for origin in headers.get("origin", ()))

    def _refusal(self, scope: Message, headers: dict[str, list[str]], foreign: bool) -> tuple[int, str] | None:
        """Status and sentence for a request that is not served; None for one that is."""
        hosts, server = headers.get("host", []), scope.get("server") or ("", None)
        name = split_host(hosts[0])[0] if len(hosts) == 1 else ""
        if not self.door.admits(name, server[0]):
            return (
                400,
                f"This page is not served as {name or 'that'}; if the name is yours, start it with --allow-host.",
            )
        if foreign and (scope["method"] not in SAFE or scope["path"].startswith("/gradio_api/queue")):
            return 403, "A page of another origin may not do this; open this page itself."
        if "transfer-encoding" in headers and "content-length" in headers:
            return 400, "Say the length of a request in one way."  # A proxy in front may have gone by the other.
        if FETCHED.match(scope["path"]):
            return 403, "This page fetches nothing from other hosts."
        if not SERVED.fullmatch(scope["path"]):
            return 404, "There is nothing here."
        lengths = headers.get("content-length", ["0"])
        if not lengths[0].isdigit() or int(lengths[0]) <= _limit(scope):
            return None
        return _too_large(scope)

    def _believed(self, scope: Message, headers: dict[str, list[str]]) -> Message:
        """``scope`` without what proxies claim, but for TLS before a name that was given for a proxy."""
        name = split_host(headers["host"][0])[0]
        behind = name in self.door.given and headers.get("x-forwarded-proto", [""])[0] == "https"
        return {**_plain(scope), "scheme": "https" if behind or name == self.door.share else scope["scheme"]}

    async def _serve(self, scope: Message, foreign: bool, receive: Receive, send: Send) -> None:
        address = _near((scope.get("client") or ("", 0))[0])
        login = scope["method"] == "POST" and scope["path"].rstrip("/") == "/login"
        if login and (seconds := self.throttle.waits(address)):
            sentence = f"Too many wrong passwords; try again in {seconds} seconds."
            await _answer(send, 429, sentence, {"retry-after": str(seconds)})
            return
        body = BodyLimit(scope, receive, send)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                if login and message["status"] < 300:
                    self.throttle.forgive(address)
                message["headers"] = _guarded(message.get("headers", ()), scope, foreign)
            await body.send(message)

        try:
            await self.app(scope, body.receive, tell)
        except Exception:
            if not body.over:
                raise


class BodyLimit:
    """Counts what a request brings; past its limit the asker is told 413, and the app that it has gone."""

    def __init__(self, scope: Message, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self._scope, self._left = scope, _limit(scope)
        self._begun = False
        self.over = False

    async def receive(self) -> Message:
        message = await self._receive() if not self.over else {"type": "http.disconnect"}
        self._left -= len(message.get("body", b""))
        if self._left >= 0 or self.over:
            return message
        self.over = True
        if not self._begun:
            await _answer(self._send, *_too_large(self._scope))
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._begun = True
        if not self.over:
            await self._send(message)


def _limit(scope: Message) -> int:
    own = {"/gradio_api/upload": MAX_UPLOAD + (1 << 20), "/login": MAX_LOGIN}
    return own.get(scope["path"].rstrip("/"), MAX_BODY)


def _too_large(scope: Message) -> tuple[int, str]:
    most = _limit(scope)
    size = f"{most >> 20} MB" if most >= 1 << 20 else f"{most >> 10} kB"
    return 413, f"That is over the {size} that one request may bring; send less at a time."


def _headers(scope: Message) -> dict[str, list[str]]:
    """The request's headers by lower-case name."""
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return found


def _plain(scope: Message) -> Message:
    """``scope`` without the headers by which a proxy would tell who asked, for what and how, or a ``Range`` of several
    parts, on which Gradio stumbles.
    """
    dropped = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"x-gradio-server")
    kept = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(dropped)]
    return {**scope, "headers": [pair for pair in kept if pair[0].lower() != b"range" or _RANGE.fullmatch(pair[1])]}


def _near(address: str) -> str:
    """What counts as one address: of IPv6, the network that one household has."""
    found = _address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found or address)


def _guarded(headers: Iterable[tuple[bytes, bytes]], scope: Message, foreign: bool) -> list[tuple[bytes, bytes]]:
    """An answer's headers, with those that keep a browser from doing more with it than showing it here."""
    is_file = scope["path"].startswith(FILES)
    kept = []
    for name, value in headers:
        small = name.lower()
        if small == b"set-cookie":
            kept.append((name, _kept_here(value, scope["scheme"] == "https")))
        elif not ((is_file and small not in OF_FILES) or (foreign and small.startswith(b"access-control-"))):
            kept.append((name, value))
    return [*kept, *_secured(FILE_POLICY if is_file else PAGE_POLICY)]


def _secured(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]


def _kept_here(cookie: bytes, tls: bool) -> bytes:
    """A cookie that no script reads, no other page's requests carry, and that leaves by TLS alone if it came so."""
    parts = [part.strip() for part in cookie.decode("latin-1").split(";")]
    own = [part for part in parts if not part.lower().startswith(("samesite", "secure", "httponly"))]
    return "; ".join([*own, "HttpOnly", "SameSite=Lax", *(["Secure"] if tls else [])]).encode("latin-1")


async def _answer(
    send: Send, status: int, text: str, headers: Mapping[str, str] | None = None, policy: str = PAGE_POLICY
) -> None:
    """A sentence, or a page, after which the connection is closed: what else was being sent is not read."""
    body = text.encode()
    named = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in {**named, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": [*pairs, *_secured(policy)]})
    await send({"type": "http.response.body", "body": body})
