"""A page that really runs, and what an attacker sends to it: bytes as they are written, and calls of any function."""

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
from socket import create_connection
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

ROOT = Path(__file__).parent.parent.parent


class Response(NamedTuple):
    """What came back; ``headers`` by lower-case name."""

    status: int
    headers: dict[str, str]
    text: str


class PageServer:
    """``python app.py`` on ``data_dir``, and what it printed."""

    def __init__(self, data_dir: Path, port: int, *flags: str, **environment: str):
        self.data_dir = data_dir
        self.printed = data_dir.with_name(f"{data_dir.name} printed")
        command = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--device", "cpu", *flags]
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
        with open(self.printed, "wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--data-dir", str(data_dir)], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=surroundings,
            )  # fmt: skip
        line = self.process.stdout.readline()
        self.address = re.search(r"http://\S+", line).group()
        self.netloc = urlsplit(self.address).netloc
        self.host, self.port = self.netloc.rsplit(":", 1)
        self.cookie = ""
        self.number = 0

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0

    def request(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Response:
        """One request with its path as it is written; ``headers`` with dashes for underscores."""
        connection = HTTPConnection(self.host, int(self.port), timeout=60)
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
        """What comes back for bytes that need be no request at all, until nothing more comes."""
        with create_connection((self.host, int(self.port)), timeout=3) as wire:
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
        """The last message about a call of any function of the page, past the queue's answer if it has none."""
        self.number += 1
        session = session or f"session-{self.number}"
        body = {"data": data, "fn_index": function, "session_hash": session, **more}
        joined = self.request("/gradio_api/queue/join", "POST", body)
        if joined.status != 200:
            return f"{joined.status} {joined.text}"
        return self.follow(session)

    def follow(self, session: str) -> str:
        """All messages to a session until one of its calls has ended."""
        connection = HTTPConnection(self.host, int(self.port), timeout=60)
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
    """A server inside the house, that nobody should be made to ask for anything."""

    def __init__(self) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
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


CANARY = f"canary-{secrets.token_hex(8)}"
"""Is in files that no visitor may read; one that is found in any answer was let out."""
PASSWORD = f"Sesame-{secrets.token_hex(6)}"
