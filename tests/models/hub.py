"""A loopback HTTP server that plays the part of the Hugging Face hub that `hf_hub_download` speaks to."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by (repo, path); what the hub says of them may be made to differ from what it sends."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.stated: dict[tuple[str, str], str] = {}
        self.requests: list[str] = []
        self.broken = 0
        self.cut = False

    def add(self, repo: str, path: str, data: bytes, stated: str | None = None) -> None:
        self.files[repo, path] = data
        self.stated[repo, path] = stated or hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The URL of the server while it runs, on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            if hub.broken:
                return self.fail(hub.broken, "")
            owner, repo, word, revision, path = (*self.path.strip("/").split("/", 4), "", "", "", "", "")[:5]
            name = f"{owner}/{repo}"
            if word != "resolve" or not any(r == name for r, _ in hub.files):
                return self.fail(401, "RepoNotFound")
            if revision not in ("main", COMMIT):
                return self.fail(404, "RevisionNotFound")
            data = hub.files.get((name, path))
            if data is None:
                return self.fail(404, "EntryNotFound")
            self.send_response(200)
            self.send_header("ETag", f'"{hub.stated[name, path]}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if hub.cut else data)
            if body and hub.cut:
                self.close_connection = True
            return None

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
