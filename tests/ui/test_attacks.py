"""Hostile HTTP requests to a real server of the page, sent as raw bytes without a client library.

Gradio's own old holes are among them (files by their path, fetched addresses, joined paths), and stay as a suite.
"""

import json
import socket
from pathlib import Path

import psutil
import pytest

from sdlora.ui.guard import MAX_UPLOAD
from tests.support.page_server import CANARY, PASSWORD

UP = "../" * 12
READS = [
    "/file={secret}", "/file/{secret}", "/gradio_api/file={secret}", "/gradio_api/file/{secret}",
    "/gradio_api/file=/{secret}", "/gradio_api/file={secret}%00.png", "/gradio_api/file=file://{secret}",
    "/gradio_api/file={up}{secret}", "/gradio_api/file=%2e%2e/%2e%2e{secret}", "/gradio_api/file=%252e%252e{secret}",
    "/gradio_api/file=..\\..\\{secret}", "/gradio_api/file=\\\\127.0.0.1\\x{secret}", "/gradio_api/file=..%5c..%5cx",
    "/gradio_api/file={data}/cache/page/../../runs/kept/state/config.toml",
    "/gradio_api/file={data}/cache/page/%2e%2e/%2e%2e/runs/kept/state/config.toml",
    "/gradio_api/file={data}/cache/page{up}{secret}", "/gradio_api/file={data}/runs/kept/state/config.toml",
    "/gradio_api/file={data}/runs/kept/journal.jsonl", "/gradio_api/file={data}/runs/kept/run.log",
    "/gradio_api/file={data}/projects/theirs/001.txt", "/gradio_api/file={data}/models/own/model.bin",
    "/gradio_api/file={data}/trash/x/item.json", "/gradio_api/file={data}/cache/latents/secret",
    "/gradio_api/file={data}/locks/cpu", "/gradio_api/file=app.py", "/gradio_api/file=.git/config",
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=/proc/self/environ", "/gradio_api/file=/proc/self/cwd/app.py",
    "/gradio_api/file=~/.bashrc", "/gradio_api/file=", "/gradio_api/file=.", "/gradio_api/file={data}/cache/page",
    "/static/{up}{secret}", "/static/..%2f..%2f..%2froutes.py", "/static//{secret}", "/static/%2F{secret}",
    "/assets/{up}{secret}", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py", "/svelte/{up}{secret}",
    "/static/%252e%252e/%252e%252e/routes.py", "/assets/..%5c..%5croutes.py",
]  # fmt: skip
"""Paths that would read a file; none is answered with one."""
CLOSED = [
    "/gradio_api/token", "/gradio_api/custom_component/x/client/component/..%2f..%2fserver.py",
    "/gradio_api/component_server", "/gradio_api/component_server/", "/gradio_api/deep_link?session_hash=x",
    "/gradio_api/stream/a/b/1/playlist.m3u8", "/gradio_api/stream/a/b/1/playlist-file", "/gradio_api/stream/x/close",
    "/monitoring", "/monitoring/summary", "/monitoring/x", "/gradio_api/process_recording", "/gradio_api/vibe-code",
    "/gradio_api/vibe-edit", "/gradio_api/mcp/", "/gradio_api/mcp/sse", "/gradio_api/runs", "/gradio_api/dev/reload",
    "/gradio_api/run-history/buckets", "/gradio_api/openapi.json", "/openapi.json", "/docs", "/redoc", "/pwa_icon/9",
    "/gradio_api/profiling/traces", "/api/predict", "/run/predict", "/queue/join", "/upload", "//config", "/config/x",
    "/gradio_api/heartbeat/a/b", "/gradio_api/x%0d%0aSet-Cookie:%20a=b",
]  # fmt: skip
"""Routes of Gradio's, of today and before, that this page does not use."""
FETCHES = [
    "/gradio_api/file={inner}", "/gradio_api/file/{inner}", "/gradio_api/proxy={inner}", "/gradio_api/proxy/{inner}",
    "/gradio_api/file=%20{inner}", "/gradio_api/file=http:{inner}", "/gradio_api/file=%68ttp://127.0.0.1:1/",
    "/gradio_api/FILE={inner}", "/gradio_api/file=http://169.254.169.254/latest/meta-data", "/proxy={inner}",
]  # fmt: skip
PUT_OUT = [
    "/config", "/config/", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/gradio_api/queue/data?session_hash=x",
    "/gradio_api/queue/status", "/gradio_api/heartbeat/x", "/gradio_api/user", "/gradio_api/app_id", "/theme.css",
    "/gradio_api/call/runs/x", "/gradio_api/upload_progress?upload_id=x", "/static/img/logo.svg", "/manifest.json",
    "/gradio_api/login_check", "/?view=api", "/logout",
]  # fmt: skip
PUT_OUT_OF = [
    "/gradio_api/queue/join", "/gradio_api/run/runs", "/gradio_api/api/runs", "/gradio_api/call/runs", "/",
    "/gradio_api/upload", "/gradio_api/cancel", "/gradio_api/reset",
]  # fmt: skip
"""Paths that a visitor who has not logged in requests and posts to."""


def filled(path, page, house, **more):
    return path.format(secret=house / "secret.txt", data=page.data_dir, up=UP, **more)


def alive(page):
    assert page.request("/config").status in (200, 401)


def test_what_was_uploaded_is_served_so_that_silence_means_something(page):
    (place,) = json.loads(page.upload("a.txt", b"my own words").text)
    assert page.request(f"/gradio_api/file={place}").text == "my own words"


@pytest.mark.parametrize("path", READS)
def test_no_file_is_read_by_its_path(page, locked, house, path):
    for target in (page, locked):
        answer = target.request(filled(path, target, house))
        assert answer.status in (400, 401, 403, 404), answer
        assert CANARY not in answer.text


@pytest.mark.parametrize("path", CLOSED)
def test_what_the_page_does_not_use_is_not_there(page, path):
    for method in ("GET", "POST", "PUT", "DELETE"):
        answer = page.request(path, method)
        assert (answer.status, answer.headers.get("set-cookie")) == (404, None), method


@pytest.mark.parametrize(
    "path", ["/?deep_link=../../runs/kept", "/config?deep_link=../../../secret", "/theme.css?x=/etc"]
)
def test_a_link_to_a_state_shows_the_page_as_it_is_or_nothing(page, path):
    answer = page.request(path)
    assert answer.status in (200, 403)  # As the version of Gradio sees it.
    assert CANARY not in answer.text


@pytest.mark.parametrize("path", FETCHES)
def test_nothing_is_fetched_for_a_visitor(page, house, listener, path):
    answer = page.request(filled(path, page, house, inner=listener.url))
    assert answer.status in (403, 404)
    assert listener.requested == []


@pytest.mark.parametrize(
    "name",
    ["../../../evil.png", "..", ".", "/etc/cron.d/evil", "C:\\evil.png", "a\\..\\..\\evil.png", "evil\0.png",
     "%2e%2e/evil", "e" * 300, "CON", ".htaccess", "evil.svg", "evil.html", "evil\u202egnp.exe", "\u65e5.png", ""],
)  # fmt: skip
def test_an_upload_lies_in_the_cache_whatever_it_is_called(page, house, name):
    before = {path for path in house.rglob("*") if "page" not in path.parts}
    answer = page.upload(name, f"content of {name}".encode())
    assert answer.status in (200, 400)
    assert {path for path in house.rglob("*") if "page" not in path.parts} == before
    if answer.status == 200:
        (place,) = json.loads(answer.text) or [""]
        assert not place or Path(place).resolve().is_relative_to(page.data_dir / "cache" / "page")
    alive(page)


@pytest.mark.parametrize(
    "name", ["evil.svg", "evil.html", "evil.xhtml", "evil.js", "a.safetensors", "a.png", "a.txt", "a"]
)
def test_a_file_is_saved_or_shown_in_a_box_without_scripts(page, name):
    (place,) = json.loads(page.upload(name, b"<svg onload='alert(1)'/>").text)
    for part in ("", "bytes=0-4"):
        headers = page.request(f"/gradio_api/file={place}", Range=part).headers
        assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        shown = headers["content-disposition"].startswith("inline")
        assert shown == (name in ("a.png", "a.txt"))
        assert shown or headers["content-type"] == "application/octet-stream"


def test_part_of_a_file_does_not_bring_the_requests_headers_back(page):
    (place,) = json.loads(page.upload("a.bin", b"0123456789").text)
    sent = {"Cookie": "access-token=stolen", "Access_Control_Allow_Origin": "*", "X_Evil": "1"}
    answer = page.request(f"/gradio_api/file={place}", Range="bytes=2-4", **sent)
    assert (answer.status, answer.text) == (206, "234")
    assert not {"cookie", "x-evil", "access-control-allow-origin"} & answer.headers.keys()
    for several in ("bytes=0-1,3-4", "bytes=a-b", "lines=1-2"):
        assert page.request(f"/gradio_api/file={place}", Range=several).text == "0123456789"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "a b", "[::1", ""]
)
def test_another_name_is_refused(page, host):
    netloc = page.netloc.encode()
    answers = page.send_raw(f"GET /config HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answers.startswith(b"HTTP/1.1 400")
    lines = b"GET http://%s/config HTTP/1.1\r\nHost: %s\r\nX-Forwarded-Host: %s\r\nConnection: close\r\n\r\n"
    answers = page.send_raw(lines % (netloc, host.encode(), netloc))
    assert answers.startswith(b"HTTP/1.1 400")


def test_what_a_proxy_would_say_makes_no_other_address_of_the_page(page):
    text = page.request(
        "/config", X_Forwarded_Host="evil.example", X_Forwarded_Proto="https", Forwarded="host=evil.example"
    )
    assert "evil.example" not in text.text


SMUGGLED = b"GET /gradio_api/info HTTP/1.1\r\nHost: %s\r\n\r\n"
BROKEN = {
    "two hosts": b"GET / HTTP/1.1\r\nHost: %s\r\nHost: evil.example\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "old and no host": b"GET / HTTP/1.0\r\n\r\n",
    "older": b"GET /config\r\n\r\n",
    "another's address": b"GET http://evil.example/config HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: %s\r\nX: a\rSet-Cookie: a=b\r\n\r\n",
    "folded": b"GET / HTTP/1.1\r\nHost: %s\r\nX: a\r\n b\r\nX-Y : c\r\n\r\n",
    "length and chunks": b"POST /gradio_api/reset HTTP/1.1\r\nHost: %s\r\nContent-Length: 6\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": b"POST /gradio_api/reset HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nContent-Length: 6\r\n\r\n"
    + SMUGGLED,
    "odd chunks": b"POST /gradio_api/reset HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /gradio_api/reset HTTP/1.1\r\nHost: %s\r\nContent-Length: -1\r\n\r\n",
    "signed length": b"POST /gradio_api/reset HTTP/1.1\r\nHost: %s\r\nContent-Length: +5\r\n\r\n12345",
    "through to others": b"CONNECT evil.example:80 HTTP/1.1\r\nHost: %s\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "long": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: %s\r\n\r\n",
    "socket": b"GET /gradio_api/queue/join HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_request_that_can_be_read_in_two_ways_is_not_served(page, what):
    request = BROKEN[what]
    answers = page.send_raw(request.replace(b"%s", page.netloc.encode()))
    assert answers.count(b"HTTP/1.1 ") <= 1
    assert b"HTTP/1.1 2" not in answers
    assert b"set-cookie" not in answers.lower()
    alive(page)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "DELETE", "PROPFIND", "X"])
def test_other_verbs_do_nothing(page, method):
    for path in ("/", "/config", "/gradio_api/upload"):
        answer = page.request(path, method, Cookie="a=stolen")
        assert answer.status == 405
        assert "stolen" not in answer.text


CHANGING = ["/gradio_api/queue/join", "/gradio_api/run/runs", "/gradio_api/call/runs", "/gradio_api/upload", "/login"]
FOREIGN = ["null", "http://evil.example", "http://{netloc}.evil.example", "http://evil-{netloc}",
           "http://{host}:1", "http://user@{netloc}", "file://", "http://[::1]:1", "HTTP://EVIL.EXAMPLE"]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN)
def test_another_page_changes_nothing_and_sees_nothing(page, origin):
    origin = origin.format(netloc=page.netloc, host="127.0.0.1")
    body = {"data": [], "fn_index": 0, "session_hash": "foreign"}
    for path in CHANGING:
        assert page.request(path, "POST", body, Origin=origin).status == 403, path
        settings = {"Origin": origin, "Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x"}
        assert not [
            name for name in page.request(path, "OPTIONS", **settings).headers if name.startswith("access-control-")
        ]
    answer = page.request("/config", Origin=origin)
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_too_much_is_refused_with_its_length_and_without(page, locked):
    for path, size in (("/gradio_api/queue/join", 65 << 20), ("/gradio_api/upload", MAX_UPLOAD + (2 << 20))):
        answer = page.send_raw(
            f"POST {path} HTTP/1.1\r\nHost: {page.netloc}\r\nContent-Length: {size}\r\n\r\nab".encode()
        )
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"send less at a time" in answer
    head = f"POST /login HTTP/1.1\r\nHost: {locked.netloc}\r\nTransfer-Encoding: chunked\r\n"
    head += "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    assert locked.send_raw(head.encode() + (b"4000\r\n" + b"a" * 0x4000 + b"\r\n") * 5).startswith(b"HTTP/1.1 413")
    alive(page)


def test_slow_uploads_keep_nobody_waiting(page):
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="s.txt"\r\n\r\nslow\r\n--b--\r\n'
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {page.netloc}\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nConnection: close\r\n\r\n"
    wires = [socket.create_connection(("127.0.0.1", page.port), timeout=30) for _ in range(50)]
    for wire in wires:
        wire.sendall(head.encode() + body[:40])
    assert page.request("/config").status == 200
    assert page.upload("quick.txt", b"quick").status == 200
    wires[0].sendall(body[40:])
    assert wires[0].recv(4096).startswith(b"HTTP/1.1 200")
    for wire in wires:
        wire.close()


def test_every_answer_tells_the_browser_what_it_may_not_do(page, locked):
    (place,) = json.loads(page.upload("a.png", b"x").text)
    requests = [
        "/",
        "/config",
        "/static/img/logo.svg",
        "/theme.css",
        "/nothing",
        f"/gradio_api/file={place}",
        "/assets/nothing",
    ]
    answers = [target.request(path) for target in (page, locked) for path in requests]
    answers += [
        page.request("/", "PUT"),
        page.request("/gradio_api/run/nothing", "POST", {}),
        page.request("/", Host="evil.example"),
    ]
    for _, headers, _ in answers:
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert (
            "default-src 'self'" in headers["content-security-policy"]
            or "default-src 'none'" in (headers["content-security-policy"])
        )
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_nothing_is_open_before_the_password(locked):
    for cookie in ("", "access-token=x", f"access-token-unsecure-x={PASSWORD}", "a=\xff; b", "=;=;"):
        for path in PUT_OUT:
            if path.startswith("/?"):
                assert locked.request(path, Cookie=cookie).text == locked.request("/").text
            else:
                assert locked.request(path, Cookie=cookie).status == 401, path
        for path in PUT_OUT_OF:
            assert locked.request(path, "POST", {"data": [], "session_hash": "x"}, Cookie=cookie).status == 401, path
    assert locked.request("/").status == 200
    assert "gradio" not in locked.request("/").text.lower()
    assert [path for path in (locked.data_dir / "cache" / "page").rglob("*") if path.is_file()] == []


def test_who_logs_in_is_known_by_a_cookie_that_no_script_and_no_other_page_has(locked, entered):
    answer, cookie = entered
    assert answer.status == 200
    for set_cookie in answer.headers["set-cookie"].split("\n"):
        attributes = {part.strip().lower() for part in set_cookie.split(";")[1:]}
        assert {"httponly", "samesite=lax"} <= attributes
        assert "samesite=none" not in attributes
    assert locked.request("/config", Cookie=cookie).status == 200
    assert "gradio_config" in locked.request("/", Cookie=cookie).text
    assert locked.request("/config", Cookie=cookie.replace("=", "=x")).status == 401


def test_who_logs_out_is_out(locked, entered):
    answer = locked.login("sdlora", PASSWORD)
    cookie = "; ".join(line.split(";")[0] for line in answer.headers["set-cookie"].split("\n"))
    assert locked.request("/config", Cookie=cookie).status == 200
    assert locked.request("/logout?all_session=false", Cookie=cookie).status == 302
    assert locked.request("/config", Cookie=cookie).status == 401
    assert locked.request("/config", Cookie=entered[1]).status == 200


def test_the_password_is_in_no_log_list_or_environment_of_others(locked, entered):
    server = psutil.Process(locked.process.pid)
    assert PASSWORD not in " ".join(server.cmdline())
    assert PASSWORD not in locked.log.read_text()
    assert PASSWORD not in locked.request("/config", Cookie=entered[1]).text
    for child in server.children(recursive=True):
        assert PASSWORD not in child.environ().values()


def test_wrong_passwords_end_in_a_sentence_and_who_is_in_stays_in(locked, entered):
    """The last one here: from this address nobody can log in for a minute."""
    answers = [
        locked.login("sdlora", guess) for guess in ("", "x", "\xff\udcff".encode("utf-8", "replace"), "x" * 60_000)
    ]
    answers += [locked.login("' or 1=1 --", PASSWORD), locked.login("sdlora", "x"), locked.login("sdlora", "y")]
    assert all(answer.status != 200 for answer in answers)
    refused = locked.login("sdlora", PASSWORD)
    assert (refused.status, refused.headers["content-type"]) == (429, "text/plain; charset=utf-8")
    assert refused.text.startswith("Too many wrong passwords; try again in ")
    assert locked.request("/config", Cookie=entered[1]).status == 200
