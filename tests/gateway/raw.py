"""HTTP by hand: what no well-behaved client would send, and metrics as numbers."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families


@contextlib.contextmanager
def connection(url: str, limit: float = 30.0) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), limit) as made:
        yield made


def request(path: str, headers: Mapping[str, str], body: bytes = b"", method: str = "POST") -> bytes:
    """A request as it goes over the wire, with nothing added or corrected."""
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **headers}.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """(status, headers with lower-case names, body) of the next answer; the status is 0 when none came.

    Nothing beyond it is read: the answer to a second request may be there already.
    """
    data = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in data:
            part = connection.recv(1)
            if not part:
                break
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        return 0, {}, b""
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while (left := int(headers.get("content-length", 0)) - len(body)) > 0:
        part = connection.recv(min(left, 65536))
        if not part:
            break
        body += part
    return int(status.split()[1]), headers, body


def exchange(url: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    with connection(url) as made:
        made.sendall(sent)
        return response(made)


def infer_json(value: Any, name: str = "x", datatype: str = "FP32") -> bytes:
    """The body of an inference of one flat list."""
    return json.dumps(
        {"inputs": [{"name": name, "shape": [1, len(value)], "datatype": datatype, "data": value}]}
    ).encode()


def metrics(http: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of `/metrics` by name and labels."""
    text = http.get("/metrics").raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def count(http: httpx.Client, model: str, outcome: str) -> float:
    """Requests of a model with an outcome so far, 0 when there was none."""
    labels = frozenset({"model": model, "outcome": outcome}.items())
    return metrics(http).get(("nearfar_requests_total", labels), 0.0)


def problem_of(body: bytes) -> dict[str, Any]:
    """The problem details of an answer, checked to be whole."""
    told: dict[str, Any] = json.loads(body)
    assert {"type", "title", "status", "detail", "code", "error"} <= told.keys(), told
    assert told["type"] == f"urn:nearfar:problem:{told['code']}"
    assert told["detail"] in told["error"]
    return told
