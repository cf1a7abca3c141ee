"""Who may ask the page for what: one layer of ASGI around it, so that nothing that is refused reaches Gradio.

A foreign page can make a browser send requests here, and can let its own name point here (DNS rebinding). So a ``Host``
that is not this page's gets 400, and a foreign ``Origin`` gets 403 on whatever could change something. No header that a
proxy may have set is believed. Of Gradio's routes only those are open that the page uses, and with a password none is
but for whom has logged in. Nothing is buffered: answers that stream go on streaming.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from starlette.requests import cookie_parser

from sdlora.formatting import format_bytes
from sdlora.ui import login
from sdlora.ui.host_policy import HostPolicy, split_host
from sdlora.ui.login import Throttle, client_network

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]
LoginCheck = Callable[[Mapping[str, str]], bool]
"""Whether the cookies of a request are those of somebody who has logged in, or nobody need."""

SAFE = {"GET", "HEAD", "OPTIONS"}
MAX_UPLOAD = 2 << 30
"""Bytes of a data set, dropped as pictures or as one zip file; Gradio has one limit for every file."""
MAX_BODY, MAX_LOGIN = 64 << 20, 64 << 10
"""Bytes of any other request, and of a name with a password."""
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
PAGE_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Nothing from any other host. Gradio's page has scripts and styles in its text, and its plots compile expressions."""
FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_RANGE = re.compile(rb"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")


class Guard:
    """The layer around ``app``."""

    def __init__(
        self,
        app: ASGI,
        hosts: HostPolicy,
        throttle: Throttle | None = None,
        is_logged_in: LoginCheck = lambda cookies: True,
    ):
        self.app = app
        self.hosts = hosts
        self.throttle = throttle or Throttle()
        self.is_logged_in = is_logged_in

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
            await _respond(send, *refusal)
        elif OPEN.fullmatch(scope["path"]) or self.is_logged_in(cookie_parser("; ".join(headers.get("cookie", ())))):
            await self._serve(self._without_proxy_claims(scope, headers), foreign, receive, send)
        elif scope["path"] == "/" and scope["method"] in SAFE:
            await _respond(send, 200, login.PAGE, {"content-type": "text/html; charset=utf-8"}, login.POLICY)
        else:
            await _respond(send, 401, "Log in first, on this page's start.")

    def _is_foreign(self, scope: Message, headers: dict[str, list[str]]) -> bool:
        """Whether a page other than this one makes the browser ask. Programs name no origin."""
        host, server = headers.get("host", [""])[0], scope.get("server") or ("", None)
        return any(not self.hosts.is_same_origin(origin, host, server) for origin in headers.get("origin", ()))

    def _refusal(self, scope: Message, headers: dict[str, list[str]], foreign: bool) -> tuple[int, str] | None:
        """Status and sentence for a request that is not served; None for one that is."""
        hosts, server = headers.get("host", []), scope.get("server") or ("", None)
        name = split_host(hosts[0])[0] if len(hosts) == 1 else ""
        if not self.hosts.allows_host(name, server[0]):
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

    def _without_proxy_claims(self, scope: Message, headers: dict[str, list[str]]) -> Message:
        """``scope`` without what proxies claim, but for TLS before a name that was given for a proxy."""
        name = split_host(headers["host"][0])[0]
        behind = name in self.hosts.allowed and headers.get("x-forwarded-proto", [""])[0] == "https"
        return {
            **_strip_proxy_headers(scope),
            "scheme": "https" if behind or name == self.hosts.share else scope["scheme"],
        }

    async def _serve(self, scope: Message, foreign: bool, receive: Receive, send: Send) -> None:
        address = client_network((scope.get("client") or ("", 0))[0])
        login = scope["method"] == "POST" and scope["path"].rstrip("/") == "/login"
        if login and (seconds := self.throttle.seconds_to_wait(address)):
            sentence = f"Too many wrong passwords; try again in {seconds} seconds."
            await _respond(send, 429, sentence, {"retry-after": str(seconds)})
            return
        body = BodyLimit(scope, receive, send)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                if login and message["status"] < 300:
                    self.throttle.reset(address)
                message["headers"] = _secure_headers(message.get("headers", ()), scope, foreign)
            await body.send(message)

        try:
            await self.app(scope, body.receive, tell)
        except Exception:
            if not body.exceeded:
                raise


class BodyLimit:
    """Counts what a request brings; past its limit the asker is told 413, and the app that it has gone."""

    def __init__(self, scope: Message, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self._scope, self._left = scope, _limit(scope)
        self._begun = False
        self.exceeded = False

    async def receive(self) -> Message:
        message = await self._receive() if not self.exceeded else {"type": "http.disconnect"}
        self._left -= len(message.get("body", b""))
        if self._left >= 0 or self.exceeded:
            return message
        self.exceeded = True
        if not self._begun:
            await _respond(self._send, *_too_large(self._scope))
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._begun = True
        if not self.exceeded:
            await self._send(message)


def _limit(scope: Message) -> int:
    own = {"/gradio_api/upload": MAX_UPLOAD + (1 << 20), "/login": MAX_LOGIN}
    return own.get(scope["path"].rstrip("/"), MAX_BODY)


def _too_large(scope: Message) -> tuple[int, str]:
    return 413, f"That is over the {format_bytes(_limit(scope))} that one request may bring; send less at a time."


def _headers(scope: Message) -> dict[str, list[str]]:
    """The request's headers by lower-case name."""
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return found


def _strip_proxy_headers(scope: Message) -> Message:
    """``scope`` without the headers by which a proxy would tell who asked, for what and how, or a ``Range`` of several
    parts, on which Gradio stumbles.
    """
    dropped = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"x-gradio-server")
    kept = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(dropped)]
    return {**scope, "headers": [pair for pair in kept if pair[0].lower() != b"range" or _RANGE.fullmatch(pair[1])]}


def _secure_headers(headers: Iterable[tuple[bytes, bytes]], scope: Message, foreign: bool) -> list[tuple[bytes, bytes]]:
    """An answer's headers, with those that keep a browser from doing more with it than showing it here."""
    is_file = scope["path"].startswith(FILES)
    kept = []
    for name, value in headers:
        small = name.lower()
        if small == b"set-cookie":
            kept.append((name, _restrict_cookie(value, scope["scheme"] == "https")))
        elif not ((is_file and small not in OF_FILES) or (foreign and small.startswith(b"access-control-"))):
            kept.append((name, value))
    return [*kept, *_security_headers(FILE_POLICY if is_file else PAGE_POLICY)]


def _security_headers(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]


def _restrict_cookie(cookie: bytes, tls: bool) -> bytes:
    """A cookie that no script reads, no other page's requests carry, and that leaves by TLS alone if it came so."""
    parts = [part.strip() for part in cookie.decode("latin-1").split(";")]
    own = [part for part in parts if not part.lower().startswith(("samesite", "secure", "httponly"))]
    return "; ".join([*own, "HttpOnly", "SameSite=Lax", *(["Secure"] if tls else [])]).encode("latin-1")


async def _respond(
    send: Send, status: int, text: str, headers: Mapping[str, str] | None = None, policy: str = PAGE_POLICY
) -> None:
    """A sentence, or a page, after which the connection is closed: what else was being sent is not read."""
    body = text.encode()
    named = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in {**named, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": [*pairs, *_security_headers(policy)]})
    await send({"type": "http.response.body", "body": body})
