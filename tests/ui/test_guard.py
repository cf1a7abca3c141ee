"""Access to the page: names, origins, passwords, sizes; tried on the layer itself, and over HTTP."""

import asyncio
import socket

import pytest
from gradio import routes

from sdlora.errors import ConfigError
from sdlora.ui import guard, login
from sdlora.ui.guard import BodyLimit, Guard
from sdlora.ui.host_policy import HostPolicy
from sdlora.ui.login import Throttle

HERE = ("127.0.0.1", 7860)


async def reply(scope, receive, send):
    """An app that reads what it is sent, and says what it was asked as."""
    size = 0
    while scope["type"] == "http":
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            raise RuntimeError("gone")
        if not message.get("more_body"):
            break
    names = ",".join(sorted(name.decode() for name, _ in scope["headers"]))
    allowed = [(b"access-control-allow-origin", b"*"), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": scope.get("answers", 200), "headers": allowed})
    await send({"type": "http.response.body", "body": f"{scope.get('scheme')} {size} {names}".encode()})


def ask(host="localhost:7860", *, hosts=None, method="GET", path="/", bodies=(b"",), server=HERE, **more):
    """Status, headers and text of the answer to one request; ``headers`` come with dashes for underscores."""
    around = more.pop("around", None) or Guard(reply, hosts or HostPolicy())
    extra = {"type": "http", "scheme": "http", "client": ("192.0.2.1", 1), **more.pop("scope", {})}
    hosts = [(b"host", host.encode())] if host is not None else []
    headers = [*hosts, *((name.replace("_", "-").encode(), value.encode()) for name, value in more.items())]
    scope = {"method": method, "path": path, "headers": headers, "server": server, **extra}
    parts = [{"type": "http.request", "body": body, "more_body": n < len(bodies)} for n, body in enumerate(bodies, 1)]
    sent = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(around(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return sent[0]["code"], {}, ""
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_a_link_or_an_image_on_a_foreign_page_logs_nobody_out(site, status):
    assert ask(path="/logout", sec_fetch_site=site)[0] == status
    assert ask(path="/", sec_fetch_site=site)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7860", "127.9.9.9", "[::1]:7860", "[::1]"])
def test_this_machine_is_let_in_by_all_its_own_names(host):
    assert ask(host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["rebound.example", "localhost.evil.example", "127.0.0.1.evil.example", "a@localhost", "localhost/x", "", None,
     "192.0.2.7:7860", "[2001:db8::1]", "0.0.0.0:7860", socket.gethostname()],
)  # fmt: skip
def test_a_name_that_is_not_this_page_gets_400(host):
    status, _, text = ask(host)
    assert (status, "--allow-host" in text) == (400, True)


def test_two_host_headers_are_none():
    assert ask("localhost", Host="localhost")[0] == 400


def test_listening_lets_the_machines_own_names_and_the_address_of_arrival_in():
    hosts = HostPolicy("0.0.0.0")
    lan = {"hosts": hosts, "server": ("192.0.2.7", 7860)}
    for host in ("192.0.2.7:7860", socket.gethostname(), "0.0.0.0:7860", "localhost:7860"):
        assert ask(host, **lan)[0] == 200
    for host in ("192.0.2.8:7860", "rebound.example"):
        assert ask(host, **lan)[0] == 400
    assert ask("192.0.2.7", hosts=HostPolicy("::"), server=("::ffff:192.0.2.7", 7860))[0] == 200
    assert ask("[2001:db8::7]:7860", hosts=HostPolicy("2001:db8::7"), server=("2001:db8::7", 7860))[0] == 200


IPV6 = ["::", "::1", "0:0::0", "FD00::2", "fd00:0::2", "fe80::1%eth0"]


@pytest.mark.parametrize("address", IPV6)
def test_ipv6_lets_its_own_addresses_in_however_they_are_spelt_and_no_others(address):
    arrived = {"FD00::2": "fd00::2", "fd00:0::2": "fd00::2", "fe80::1%eth0": "fe80::1%eth0"}.get(address, "fd00::2")
    seen = {"hosts": HostPolicy(address), "server": (arrived, 7860)}
    other = "[fe80::9]:7860" if address.startswith("fe80") else "[fd00::9]:7860"
    own = f"[{arrived.partition('%')[0]}]:7860"
    named = (own, own.replace("]", "%25eth0]"), "[::1]:7860", "localhost:7860", "[::ffff:127.0.0.1]:7860")
    for host in named if address != "::1" else named[2:]:
        assert ask(host, **seen)[0] == 200, host
        assert ask(host, method="POST", origin=f"http://{host}", **seen)[0] == 200, host
        assert ask(host, method="POST", origin="http://[fd00::bad]:7860", **seen)[0] == 403
        assert ask(host, method="POST", origin=f"http://{host.replace('7860', '80')}", **seen)[0] == 403
    for host in (other, "[::", "[::1", "::1", "[::1%]", "[fd00::2%25e]x", "[1.2.3.4%25eth0]", "[fd00::2]:99999x"):
        assert ask(host, **seen)[0] == 400, host


def test_ipv6_visitors_of_one_household_wait_together():
    around = Guard(reply, HostPolicy("::"))
    for number in range(5):
        at = {"client": (f"fd00::{number + 1}", 5), "server": ("fd00::2", 7860), "answers": 400}
        ask("[fd00::2]:7860", around=around, path="/login", method="POST", scope=at)
    at = {"client": ("fd00::77", 5), "server": ("fd00::2", 7860)}
    assert ask("[fd00::2]:7860", around=around, path="/login", method="POST", scope=at)[0] == 429
    at["client"] = ("fd00:0:0:1::1", 5)
    assert ask("[fd00::2]:7860", around=around, path="/login", method="POST", scope=at)[0] == 200


def test_a_given_name_and_the_tunnels_are_let_in():
    hosts = HostPolicy(allowed=["Pictures.example.org"])
    assert ask("pictures.example.org", hosts=hosts)[0] == 200
    assert ask("abc.tunnel.example", hosts=hosts)[0] == 400
    hosts.share = "abc.tunnel.example"
    status, _, text = ask("abc.tunnel.example", hosts=hosts, method="POST", origin="https://abc.tunnel.example")
    assert (status, text.split()[0]) == (200, "https")


@pytest.mark.parametrize("name", ["", "https://x.example", "x.example:80", "a b"])
def test_a_given_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match="--allow-host"):
        HostPolicy(allowed=[name])


FOREIGN = ["null", "http://evil.example", "http://localhost:3000", "https://localhost:7860.evil.example", "file://", ""]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_origin_may_change_nothing(method, origin):
    assert ask(method=method, origin=origin)[0] == 403


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_foreign_origin_may_look_but_its_scripts_are_shown_nothing(origin):
    for method in ("GET", "HEAD", "OPTIONS"):
        status, headers, _ = ask(method=method, origin=origin)
        assert (status, b"access-control-allow-origin" in headers) == (200, False)
    assert ask(path="/gradio_api/queue/data", origin=origin)[0] == 403
    assert ask(origin=origin, scope={"type": "websocket"})[0] == 1008


@pytest.mark.parametrize(
    ("host", "origin"),
    [("localhost:7860", None), ("localhost:7860", "http://localhost:7860"), ("127.0.0.1:7860", "http://localhost:7860"),
     ("[::1]:7860", "http://[::1]:7860"), ("localhost", "http://localhost"), ("localhost", "https://localhost:443"),
     ("localhost:7860", "https://pictures.example.org")],
)  # fmt: skip
def test_this_page_and_programs_may_do_everything(host, origin):
    named = {} if origin is None else {"origin": origin}
    assert ask(host, method="POST", hosts=HostPolicy(allowed=["pictures.example.org"]), **named)[0] == 200


def test_what_a_proxy_claims_is_dropped_but_tls_before_a_given_name():
    claims = {
        "x_forwarded_for": "203.0.113.9", "x_forwarded_host": "evil.example", "x_forwarded_proto": "https",
        "forwarded": "for=1", "x_real_ip": "1.2.3.4", "x_gradio_server": "http://evil.example",
    }  # fmt: skip
    assert ask(**claims)[2] == "http 0 host"
    assert ask("p.example", hosts=HostPolicy(allowed=["p.example"]), **claims)[2] == "https 0 host"


def test_every_answer_forbids_other_hosts_frames_and_guessing():
    for path in ("/", "/config"):
        _, headers, _ = ask(path=path)
        assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
        assert headers[b"content-security-policy"].startswith(b"default-src 'self'")
        assert (headers[b"x-content-type-options"], headers[b"x-frame-options"]) == (b"nosniff", b"DENY")
    assert ask(path="/gradio_api/file=/x/evil.svg")[1][b"content-security-policy"].startswith(b"sandbox")
    assert ask("evil.example")[1][b"x-content-type-options"] == b"nosniff"


async def greet(scope, receive, send):
    cookies = [b"a=1; Path=/; SameSite=none; Secure", b"b=2; HttpOnly"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", each) for each in cookies]})
    await send({"type": "http.response.body", "body": b""})


def test_cookies_stay_here_and_leave_by_tls_alone_if_they_came_so():
    hosts = HostPolicy(allowed=["p.example"])
    for host, message in (("localhost", ""), ("p.example", "https")):
        _, headers, _ = ask(host, around=Guard(greet, hosts), method="POST", path="/login", x_forwarded_proto=message)
        parts = headers[b"set-cookie"].decode().split("; ")
        assert parts == ["b=2", "HttpOnly", "SameSite=Lax", *(["Secure"] if message else [])]


def test_without_a_session_there_is_the_login_page_and_no_more():
    around = Guard(reply, HostPolicy(), is_logged_in=lambda cookies: cookies.get("token") == "known")
    assert "Log in" in ask(around=around)[2]
    assert ask(around=around, path="/login", method="POST", scope={"answers": 200})[0] == 200
    for path in ("/config", "/gradio_api/queue/data", "/static/x.js", "/gradio_api/file=/x"):
        assert ask(around=around, path=path)[0] == 401
        assert ask(around=around, path=path, cookie="a=b; token=known")[0] == 200
    assert ask(around=around, method="POST")[0] == 401


def test_passwords_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("gradio.route_utils.hmac.compare_digest", lambda *pair: bool(compared.append(pair)))
    assert routes.compare_passwords_securely("guess", "sesame") is False
    assert compared == [(b"guess", b"sesame")]


@pytest.mark.parametrize("path", ["/gradio_api/file=https://a.example/x", "/gradio_api/proxy=https://a.example/x"])
def test_nothing_is_fetched_for_a_visitor(path):
    assert ask(path=path)[0] == 403


def test_too_much_is_refused_before_and_while_it_comes(monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY", 10)
    assert ask(method="POST", content_length="11")[0] == 413
    assert ask(method="POST", path="/gradio_api/upload", content_length=str(guard.MAX_UPLOAD))[0] == 200
    assert ask(method="POST", path="/gradio_api/upload", content_length=str(3 << 30))[0] == 413
    assert ask(method="POST", bodies=[b"12345", b"67890"])[2].split()[1] == "10"
    status, headers, text = ask(method="POST", bodies=[b"12345", b"678901", b"x"])
    assert (status, headers[b"connection"], "send less" in text) == (413, b"close", True)


def test_answers_stream_part_by_part():
    sent = []

    async def tell(message):
        sent.append(message)

    body = BodyLimit({"type": "http", "path": "/"}, None, tell)
    asyncio.run(body.send({"type": "http.response.body", "body": b"one", "more_body": True}))
    assert [message["body"] for message in sent] == [b"one"]


def test_after_five_wrong_passwords_an_address_waits_a_minute():
    now = [0.0]
    around = Guard(reply, HostPolicy(), Throttle(lambda: now[0]))
    request = {"around": around, "method": "POST", "path": "/login"}
    wrong = {"answers": 400}
    for _ in range(login.TRIES):
        assert ask(scope=wrong, **request)[0] == 400
    status, headers, text = ask(scope={"answers": 200}, **request)  # Not even the right one is compared.
    assert (status, headers[b"retry-after"], "60 seconds" in text) == (429, b"60", True)
    assert ask(scope={"client": ("192.0.2.2", 1)}, **request)[0] == 200
    assert ask(around=around)[0] == 200  # Only logging in waits.
    now[0] = 61.0
    assert ask(scope={"answers": 200}, **request)[0] == 200
    for _ in range(login.TRIES - 1):
        assert ask(scope=wrong, **request)[0] == 400
    assert ask(scope={"answers": 200}, **request)[0] == 200  # A right one wipes the slate.
    assert ask(scope=wrong, **request)[0] == 400


def test_a_household_is_one_address_and_a_header_makes_none():
    around = Guard(reply, HostPolicy())
    request = {"around": around, "method": "POST", "path": "/login/"}
    for number in range(login.TRIES):
        scope = {"answers": 400, "client": (f"2001:db8::{number + 1}", 1)}
        assert ask(scope=scope, x_forwarded_for=f"10.0.0.{number}", **request)[0] == 400
    assert ask(scope={"client": ("2001:db8::ffff", 1)}, **request)[0] == 429


def test_few_addresses_are_remembered(monkeypatch):
    monkeypatch.setattr(login, "REMEMBERED", 3)
    throttle = Throttle(lambda: 0.0)
    for number in range(10):
        throttle.seconds_to_wait(str(number))
    assert list(throttle._tries) == ["7", "8", "9"]
