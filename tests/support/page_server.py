"""The page's server in a process of its own, and requests to it: raw bytes, HTTP, and calls of any function."""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection, socket
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

ROOT = Path(__file__).parent.parent.parent
CANARY = f"canary-{secrets.token_hex(8)}"
"""Content of files that no visitor may read: an answer that has it has leaked one."""
PASSWORD = f"Sesame-{secrets.token_hex(6)}"


class Response(NamedTuple):
    """Answer to an HTTP request; ``headers`` by lower-case name."""

    status: int
    headers: dict[str, str]
    text: str


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PageServer:
    """``python app.py`` on ``data_dir`` and a port of its own; it can be killed and started again."""

    def __init__(self, data_dir: Path, *flags: str, **environment: str):
        self.data_dir = data_dir
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        """File with all that the server has written to standard error."""
        self.port = free_port()
        self.flags = flags
        self.environment = environment
        self.cookie = ""
        self.calls = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "app.py", "--no-browser", "--port", str(self.port), "--data-dir", str(self.data_dir)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **self.environment}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.log.read_text()
        self.address = found.group()
        self.netloc = urlsplit(self.address).netloc

    def kill(self) -> None:
        """End the server like a crash."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0

    def request(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Response:
        """Send a request whose path is not normalised; underscores in ``headers`` stand for dashes."""
        connection = HTTPConnection(self.netloc, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items() if value}
            if self.cookie:
                named.setdefault("Cookie", self.cookie)
            if isinstance(body, dict | list):
                body, named["Content-Type"] = json.dumps(body), "application/json"
            connection.request(method, path, body, named)
            return read(connection.getresponse())
        finally:
            connection.close()

    def login(self, name: str, password: str) -> Response:
        form = urlencode({"username": name, "password": password})
        return self.request("/login", "POST", form, Content_Type="application/x-www-form-urlencoded")

    def send_raw(self, request: bytes) -> bytes:
        """Send bytes that need be no HTTP request; return all that comes back."""
        with create_connection(("127.0.0.1", self.port), timeout=3) as wire:
            wire.sendall(request)
            found = b""
            try:
                while part := wire.recv(65536):
                    found += part
            except OSError:  # Nothing more comes, or the other side hung up on what it did not read.
                pass
            return found

    def upload(self, name: str, content: bytes) -> Response:
        quoted = name.replace('"', "%22")
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{quoted}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--b--\r\n"
        return self.request("/gradio_api/upload", "POST", body, Content_Type="multipart/form-data; boundary=b")

    def config(self) -> dict[str, Any]:
        return json.loads(self.request("/config").text)

    def call(self, function: int, data: Any, session: str | None = None, **more: Any) -> str:
        """Call any function of the page; return the messages about it, or the queue's refusal."""
        self.calls += 1
        session = session or f"session-{self.calls}"
        body = {"data": data, "fn_index": function, "session_hash": session, **more}
        joined = self.request("/gradio_api/queue/join", "POST", body)
        if joined.status != 200:
            return f"{joined.status} {joined.text}"
        return self.follow(session)

    def follow(self, session: str) -> str:
        """Return all messages to a session until one of its calls has ended."""
        connection = HTTPConnection(self.netloc, timeout=60)
        try:
            named = {"Cookie": self.cookie} if self.cookie else {}
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}", None, named)
            lines = []
            for line in connection.getresponse():
                lines.append(line.decode())
                if re.search(r'"msg": ?"(process_completed|close_stream|unexpected_error)"', lines[-1]):
                    break
            return "".join(lines)
        finally:
            connection.close()


def read(answer: HTTPResponse) -> Response:
    headers: dict[str, str] = {}
    for name, value in answer.getheaders():
        headers[name.lower()] = f"{headers[name.lower()]}\n{value}" if name.lower() in headers else value
    return Response(answer.status, headers, answer.read().decode("utf-8", "replace"))


class InternalServer:
    """A server on the local network; ``requested`` lists the paths that the page was made to request from it."""

    def __init__(self) -> None:
        requested = self.requested = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requested.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"INNER")

            do_HEAD = do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/latest/meta-data"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
