"""A small hub on this machine: the few routes by which its library downloads a repository."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves ``folder`` as the repository ``repository``; any other is unknown."""

    def __init__(self, repository: str, folder: Path):
        self.repository, self.folder = repository, folder
        self.gated = False
        self.cut_after: int | None = None
        """Bytes of weights after which the connection breaks, and the hub is down."""
        self.is_down = False
        self.damaged = ""
        """File whose content is sent with another last byte."""
        self.released = threading.Event()
        """Set while weights are sent at once; else they wait for it."""
        self.released.set()
        self.has_cdn = False
        """Whether weights are sent by another host, to which requests for them are led."""
        self.tokens: dict[str, set[str | None]] = {"hub": set(), "cdn": set()}
        """Tokens that came with requests for weights, None for those without one, by the host."""
        self.sent: dict[str, int] = {}
        """Bytes that were sent, by file."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make this the hub of this process and of those that it starts, with an empty ``cache``."""
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name, value in self.environment(cache).items():
            monkeypatch.setenv(name, value)

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the environment of a process for which this is the hub."""
        return {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": self.url}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        if path.startswith(f"/api/models/{self.repository}/tree/"):
            _send_json(request, [self._entry(name) for name in self._names()])
        elif path == f"/api/models/{self.repository}" or path.startswith(f"/api/models/{self.repository}/revision/"):
            siblings = [{"rfilename": name} for name in self._names()]
            _send_json(request, {"id": self.repository, "sha": COMMIT, "siblings": siblings, "private": False})
        elif path.startswith(f"/{self.repository}/resolve/{COMMIT}/"):
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            if self.has_cdn and name.endswith(".safetensors"):
                self._lead_away(request, name)
            else:
                self._send_file(request, name)
        elif path.startswith("/cdn/"):
            self.tokens["cdn"].add(request.headers.get("Authorization"))
            self._send_file(request, path.removeprefix("/cdn/"))
        else:
            _refuse(request, 404, "RepoNotFound")

    def _lead_away(self, request: BaseHTTPRequestHandler, name: str) -> None:
        self.tokens["hub"].add(request.headers.get("Authorization"))
        entry = self._entry(name)
        request.send_response(302)
        request.send_header("Location", f"{self.url.replace('127.0.0.1', 'localhost')}/cdn/{name}")
        request.send_header("X-Linked-Etag", f'"{entry["lfs"]["oid"]}"')
        request.send_header("X-Linked-Size", str(entry["size"]))
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def _entry(self, name: str) -> dict[str, Any]:
        content = (self.folder / name).read_bytes()
        entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if self.is_down:
            return _refuse(request, 500, "")
        if self.gated:
            return _refuse(request, 403, "GatedRepo")
        content, entry = (self.folder / name).read_bytes(), self._entry(name)
        begin = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if begin else 200)
        request.send_header("ETag", f'"{entry.get("lfs", entry)["oid"]}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", str(len(content) - begin))
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if request.command == "HEAD":
            return None
        if name.endswith(".safetensors"):
            self.released.wait()
        if name == self.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        body = content[begin:]
        if self.cut_after is not None and name.endswith(".safetensors"):
            body, self.cut_after, self.is_down = body[: self.cut_after], None, True
            request.close_connection = True
        self.sent[name] = self.sent.get(name, 0) + len(body)
        request.wfile.write(body)
        return None


def _send_json(request: BaseHTTPRequestHandler, value: Any) -> None:
    body = json.dumps(value).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("Content-Length", "0")
    request.end_headers()
