"""ASGI layer around the page that decides which requests reach Gradio.

A foreign page can make a browser send requests here, and can let its own name point here (DNS rebinding). So a ``Host``
that is not this page's gets 400, and a foreign ``Origin`` gets 403 for whatever could change something. Headers that a
proxy may have set are not trusted. Only the routes of Gradio that the page uses are open; with a password, only to
visitors who have logged in. Nothing is buffered, so streaming answers keep streaming.
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
"""Return whether the cookies of a request belong to a visitor who has logged in, or no login is needed."""

SAFE = {"GET", "HEAD", "OPTIONS"}
MAX_UPLOAD = 2 << 30
"""Bytes of an uploaded file, which may be a whole data set; Gradio has one limit for every file."""
MAX_BODY, MAX_LOGIN = 64 << 20, 64 << 10
"""Bytes of any other request, and of a login."""
FILES, FETCHED = "/gradio_api/file=", re.compile(r"/gradio_api/(file[=/]\s*https?:|proxy=)", re.IGNORECASE)
"""Gradio's route for files, and its two routes that would fetch from other hosts."""
SERVED = re.compile(
    r"/|/(config|login|logout)/?|/(theme\.css|favicon\.ico|robots\.txt|manifest\.json)|/(static|assets|svelte)/.+|"
    r"/gradio_api/(file=.+|(run|api|call)/.+|queue/(join|data|status)|heartbeat/[^/]+|"
    r"(upload|upload_progress|cancel|reset|info|user|app_id|login_check|startup-events|theme\.css)/?)"
)
"""Routes that the page and ``gradio_client`` use. Gradio has more, some of them open without login."""
LOGOUT = re.compile(r"/logout/?")
OPEN = re.compile(r"/login/?|/favicon\.ico|/robots\.txt|/gradio_api/startup-events")
"""Routes that need no login; Gradio itself requests the last one when it starts."""
OF_FILES = {
    b"accept-ranges", b"content-disposition", b"content-encoding", b"content-length", b"content-range",
    b"content-type", b"etag", b"last-modified", b"vary",
}  # fmt: skip
"""Headers with which a file is sent. Gradio (6.31) returns all request headers, even cookies, with part of a file."""
PAGE_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Allow nothing from other hosts. Gradio's page has inline scripts and styles, and its plots compile expressions."""
FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_RANGE = re.compile(rb"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")


class Guard:
    """Checks requests before they reach ``app``, and secures the headers of its answers."""

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
        if scope["type"] == "websocket":  # The page uses none.
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
        """Return whether another page made the browser send the request; programs send no origin."""
        host, server = headers.get("host", [""])[0], scope.get("server") or ("", None)
        return any(not self.hosts.is_same_origin(origin, host, server) for origin in headers.get("origin", ()))

    def _refusal(self, scope: Message, headers: dict[str, list[str]], foreign: bool) -> tuple[int, str] | None:
        """Return the status and the message for a refused request; None for one that is served."""
        hosts, server = headers.get("host", []), scope.get("server") or ("", None)
        name = split_host(hosts[0])[0] if len(hosts) == 1 else ""
        if not self.hosts.allows_host(name, server[0]):
            return (
                400,
                f"This page is not served as {name or 'that'}; if the name is yours, start it with --allow-host.",
            )
        if foreign and (scope["method"] not in SAFE or scope["path"].startswith("/gradio_api/queue")):
            return 403, "A page of another origin may not do this; open this page itself."
        if LOGOUT.fullmatch(scope["path"]) and {*headers.get("sec-fetch-site", ())} & {"cross-site", "same-site"}:
            return 403, "A page of another origin may not log you out."  # A link or an image needs no origin.
        if "transfer-encoding" in headers and "content-length" in headers:
            return 400, "Give the length of a request in one way."  # A proxy may have used the other.
        if FETCHED.match(scope["path"]):
            return 403, "This page fetches nothing from other hosts."
        if not SERVED.fullmatch(scope["path"]):
            return 404, "There is nothing here."
        lengths = headers.get("content-length", ["0"])
        if not lengths[0].isdigit() or int(lengths[0]) <= _limit(scope):
            return None
        return _too_large(scope)

    def _without_proxy_claims(self, scope: Message, headers: dict[str, list[str]]) -> Message:
        """Return ``scope`` without the claims of proxies, except TLS in front of a name that is allowed for one."""
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

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                if login and message["status"] < 300:
                    self.throttle.reset(address)
                message["headers"] = _secure_headers(message.get("headers", ()), scope, foreign)
            await body.send(message)

        try:
            await self.app(scope, body.receive, respond)
        except Exception:
            if not body.exceeded:
                raise


class BodyLimit:
    """Counts the bytes of a request; past the limit the client gets 413, and the app a disconnect."""

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
    """Return the request's headers by lower-case name."""
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return found


def _strip_proxy_headers(scope: Message) -> Message:
    """Return ``scope`` without headers of proxies, and without a ``Range`` of several parts, on which Gradio fails."""
    dropped = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"x-gradio-server")
    kept = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(dropped)]
    return {**scope, "headers": [pair for pair in kept if pair[0].lower() != b"range" or _RANGE.fullmatch(pair[1])]}


def _secure_headers(headers: Iterable[tuple[bytes, bytes]], scope: Message, foreign: bool) -> list[tuple[bytes, bytes]]:
    """Return an answer's headers, with those that keep a browser from doing more than showing it here."""
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
    """Hide a cookie from scripts and other pages' requests; one that came by TLS is sent by TLS alone."""
    parts = [part.strip() for part in cookie.decode("latin-1").split(";")]
    own = [part for part in parts if not part.lower().startswith(("samesite", "secure", "httponly"))]
    return "; ".join([*own, "HttpOnly", "SameSite=Lax", *(["Secure"] if tls else [])]).encode("latin-1")


async def _respond(
    send: Send, status: int, text: str, headers: Mapping[str, str] | None = None, policy: str = PAGE_POLICY
) -> None:
    """Send a sentence or a page, and close the connection without reading the rest of the request."""
    body = text.encode()
    named = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in {**named, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": [*pairs, *_security_headers(policy)]})
    await send({"type": "http.response.body", "body": body})
