"""What must not be sent, and what the gateway says to it: a 4xx with a reason, and it goes on as before."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest

from tests.fleetlab import Node
from tests.gateway.raw import connection, exchange, infer_json, problem_of, request, response

INFER = "/v2/models/identity/infer"
MEBI = 1024 * 1024


@pytest.fixture(autouse=True)
def still_well(http: httpx.Client) -> Iterator[None]:
    """After every test of this file the gateway answers, holds nothing, and no service was put out by bad input."""
    yield
    answer = http.post(INFER, content=infer_json([1.5, 2.5]))
    assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [1.5, 2.5]
    assert "nearfar_in_flight 0.0" in http.get("/metrics").text


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """Check a refusal; its words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = problem_of(answer.content)
    assert (told["status"], told["code"]) == (status, code)
    error: str = told["error"]
    return error


def tensor(**changes: object) -> dict[str, object]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} | changes


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"null", "Expected `object`"),
        (b"[]", "Expected `object`"),
        (b"\x00\xff\xfe", "not valid"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": {}}', "Expected `array`"),
        (b'{"inputs": [{}]}', "missing required field `name`"),
        (b'{"inputs": [], "id": 7}', "Expected `str`"),
        (b'{"inputs": []} trailing', "not valid"),
        (b'{"inputs": [{"name": "\xff", "shape": [1], "datatype": "FP32", "data": [1]}]}', "utf-8"),
        (b"[" * 100_000, "not valid"),
        (b'{"inputs": ' + b"[" * 100_000, "not valid"),
        (b'{"x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "nested too deeply"),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else "",
)
def test_bodies_that_are_no_request(http: httpx.Client, body: bytes, told: str) -> None:
    assert told in refused(http.post(INFER, content=body), 400, "invalid-input")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": [1, 2, 3]}, "has 3 values"),
        ({"data": []}, "has 0 values"),
        ({"data": [1, "2"]}, "does not fit FP32"),
        ({"data": [1, None]}, "does not fit FP32"),
        ({"data": [1, True], "datatype": "INT32"}, "true and false are no numbers"),
        ({"data": [1, 2.5], "datatype": "INT32"}, "does not fit INT32"),
        ({"data": [1, 2**31], "datatype": "INT32"}, "not INT32"),
        ({"data": [-1, 2], "datatype": "UINT64"}, "not UINT64"),
        ({"data": [1, 1e39]}, "does not fit FP32"),
        ({"data": {"a": 1}}, "not FP32"),
        ({"data": [[1], [2, 3]]}, "not FP32"),
        ({"datatype": "BYTES"}, "has datatype 'BYTES'. Use one of BOOL"),
        ({"datatype": "fp32"}, "has datatype 'fp32'"),
        ({"shape": [-1, -2]}, "is negative"),
        ({"shape": [2**62, 2**62]}, "has 2 values"),
        ({"shape": [0, 2**62, 4], "data": []}, "too large"),
        ({"shape": [1] * 65, "data": [1]}, "has 1 values"),
        ({"shape": [2**62] * 200_000}, "has 2 values"),  # their product would take minutes
        ({"shape": 2}, "Expected `array`"),
        ({"shape": [1.5, 1]}, "Expected `int`"),
        ({"parameters": {"binary_data_size": -1}}, "binary_data_size -1"),
        ({"parameters": {"binary_data_size": True}}, "binary_data_size True"),
        ({"parameters": {"binary_data_size": 1.0}}, "binary_data_size 1.0"),
        ({"parameters": {"binary_data_size": 8}}, "but 0 bytes are left"),
    ],
    ids=str,
)
def test_tensors_that_are_none(http: httpx.Client, changes: dict[str, object], told: str) -> None:
    answer = http.post(INFER, content=json.dumps({"inputs": [tensor(**changes)]}))
    assert told in refused(answer, 400, "invalid-input")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_does_not_have(http: httpx.Client, word: str) -> None:
    body = infer_json([1.5, 2.5]).replace(b"2.5", word.encode())
    refused(http.post(INFER, content=body), 400, "invalid-input")


def test_the_same_input_twice(http: httpx.Client) -> None:
    answer = http.post(INFER, content=json.dumps({"inputs": [tensor(), tensor()]}))
    assert "same name" in refused(answer, 400, "invalid-input")


def test_no_data_at_all(http: httpx.Client) -> None:
    given = tensor()
    del given["data"]
    answer = http.post(INFER, content=json.dumps({"inputs": [given]}))
    assert "neither data nor binary_data_size" in refused(answer, 400, "invalid-input")


# -- binary tensors ---------------------------------------------------------------------------------------------------


def binary_request(data: bytes, shape: list[int], size: int | None = None) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference whose input and output are binary."""
    parameters = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps(
        {
            "inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "parameters": parameters}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def test_nan_and_infinity_pass_in_binary_bit_by_bit(http: httpx.Client) -> None:
    bits = np.array([0x7FC00000, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000], np.uint32)
    body, headers = binary_request(bits.tobytes(), [1, 6])
    answer = http.post(INFER, content=body, headers=headers)
    assert answer.status_code == 200
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 24}
    assert answer.content[length:] == bits.tobytes()


def test_nan_asked_for_as_json_is_refused_with_the_way_out(http: httpx.Client) -> None:
    body, headers = binary_request(np.array([[np.nan]], np.float32).tobytes(), [1, 1])
    body = body.replace(b'"binary_data": true', b'"binary_data": null')
    told = refused(http.post(INFER, content=body, headers=headers), 400, "invalid-input")
    assert "JSON cannot carry" in told and '"binary_data": true' in told


@pytest.mark.parametrize("stated", ["-1", "abc", "1e3", "", "999999", "99999999999999999999999", "٣"])
def test_a_wrong_length_of_the_json_part(http: httpx.Client, stated: str) -> None:
    body, _ = binary_request(bytes(8), [1, 2])
    headers = {b"Inference-Header-Content-Length": stated.encode()}
    refused(http.post(INFER, content=body, headers=headers), 400, "invalid-input")


@pytest.mark.parametrize("by", [-2, -1, 1, 2])
def test_a_length_of_the_json_part_that_is_off(http: httpx.Client, by: int) -> None:
    body, headers = binary_request(bytes(8), [1, 2])
    length = int(headers["Inference-Header-Content-Length"]) + by
    answer = http.post(INFER, content=body, headers={"Inference-Header-Content-Length": str(length)})
    refused(answer, 400, "invalid-input")


@pytest.mark.parametrize(
    ("size", "told"),
    [(4, "needs 8 bytes, got 4"), (12, "but 8 bytes are left"), (2**70, "but 8 bytes are left"), (0, "got 0")],
)
def test_a_wrong_size_of_a_binary_tensor(http: httpx.Client, size: int, told: str) -> None:
    body, headers = binary_request(bytes(8), [1, 2], size)
    assert told in refused(http.post(INFER, content=body, headers=headers), 400, "invalid-input")


def test_bytes_after_the_last_binary_tensor(http: httpx.Client) -> None:
    body, headers = binary_request(bytes(8), [1, 2])
    told = refused(http.post(INFER, content=body + b"more", headers=headers), 400, "invalid-input")
    assert "4 bytes follow the last tensor" in told


# -- size and encoding ------------------------------------------------------------------------------------------------


def bomb(mebibytes: int) -> bytes:
    return gzip.compress(bytes(mebibytes * MEBI), mtime=0)


@pytest.mark.parametrize("path", [INFER, "/v1/detect?model=yard"])
def test_compressed_bombs(house: Node, http: httpx.Client, path: str) -> None:
    before = psutil.Process(house.agent_pid).memory_info().rss
    body = bomb(300)
    assert len(body) < MEBI
    answer = http.post(path, content=body, headers={"Content-Encoding": "gzip", "Content-Type": "image/jpeg"})
    assert "larger than 64.0 MiB" in refused(answer, 413, "too-large")
    assert psutil.Process(house.agent_pid).memory_info().rss - before < 200 * MEBI


@pytest.mark.parametrize(
    ("encoding", "body", "told"),
    [
        ("gzip", b"not gzip", "not valid gzip"),
        ("gzip", gzip.compress(infer_json([1.0]), mtime=0)[:-9], "cut short"),
        ("deflate", b"\xff\xff", "not valid deflate"),
        ("br", b"x", "'br' is not known. Use gzip or deflate"),
        ("gzip, gzip", b"x", "is not known"),
        ("gzip", b"", "cut short"),
    ],
)
def test_broken_encodings(http: httpx.Client, encoding: str, body: bytes, told: str) -> None:
    answer = http.post(INFER, content=body, headers={"Content-Encoding": encoding})
    assert told in refused(answer, 400, "invalid-input")


def test_both_kinds_of_compression_are_read(http: httpx.Client) -> None:
    plain = infer_json([3.5])
    for encoding, body in (("gzip", gzip.compress(plain, mtime=0)), ("deflate", zlib.compress(plain))):
        answer = http.post(INFER, content=body, headers={"Content-Encoding": encoding})
        assert answer.json()["outputs"][0]["data"] == [3.5]


def test_a_long_list_of_numbers_as_json_is_refused(http: httpx.Client) -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1, 9], "datatype": "FP32", "data": [' + b"0," * (9 * MEBI) + b"0]}]}"
    assert "binary data" in refused(http.post(INFER, content=body), 413, "too-large")


@pytest.mark.parametrize("path", [INFER, "/v1/detect?model=yard"])
def test_200_megabytes_are_refused_before_they_are_sent(house: Node, path: str) -> None:
    agent = psutil.Process(house.agent_pid)
    before = agent.memory_info().rss
    size, sent, chunk = 200_000_000, 0, bytes(MEBI)
    with connection(house.url) as made:
        made.sendall(request(path, {"Content-Length": str(size), "Content-Type": "image/jpeg"}))
        status, headers, body = response(made)
        assert (status, headers["connection"]) == (413, "close")
        assert "larger than 64.0 MiB" in problem_of(body)["error"]
        try:
            while sent < size:
                made.sendall(chunk)
                sent += len(chunk)
        except ConnectionError:
            pass
    assert sent < 50_000_000, "the gateway went on reading"  # what the buffers of two sockets hold
    assert agent.memory_info().rss - before < 20 * MEBI


def test_200_megabytes_in_a_common_client(http: httpx.Client) -> None:
    answer = http.post(INFER, content=bytes(200_000_000))
    refused(answer, 413, "too-large")


# -- HTTP itself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        request(INFER, {"Content-Length": "-5"}),
        request(INFER, {"Content-Length": "5", "Transfer-Encoding": "chunked"}, b"0\r\n\r\n"),
        request(INFER, {"Transfer-Encoding": "chunked"}, b"zz\r\n"),
    ],
    ids=repr,
)
def test_what_is_not_http(house: Node, sent: bytes) -> None:
    status, _, _ = exchange(house.url, sent)
    assert status == 400


@pytest.mark.parametrize("head", [b"X: " + b"a" * MEBI, b"".join(b"X-%d: a\r\n" % i for i in range(20_000))])
def test_endless_headers(house: Node, head: bytes) -> None:
    status, headers, _ = exchange(house.url, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + head)
    assert (status, headers["connection"]) == (431, "close")


def test_paths_that_lead_nowhere(http: httpx.Client) -> None:
    for path in ("/", "/v2/models", "/v2/models//infer", "/v2/models/a%2Fb/infer", "/docs", "/v2/models/../../etc"):
        answer = http.post(path, content=infer_json([1.0])) if path.endswith("infer") else http.get(path)
        assert answer.status_code == 404, path
        problem_of(answer.content)


def test_names_that_no_model_has(http: httpx.Client) -> None:
    for name in ("*", "**", "%00", "A", "..a", "a" * 1000, "%F0%9F%98%80", "a b"):
        answer = http.post(f"/v2/models/{name}/infer", content=infer_json([1.0]))
        assert answer.status_code == 404, name
        answer = http.get(f"/v2/models/{name}")
        assert answer.status_code == 404, name


def test_wrong_methods(http: httpx.Client) -> None:
    for method, path in (("GET", INFER), ("PUT", "/v1/detect"), ("POST", "/v1/fleet"), ("DELETE", "/metrics")):
        answer = http.request(method, path)
        refused(answer, 405, "method-not-allowed")
        assert answer.headers["allow"]


# -- pictures ---------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG of 1 bit a pixel that states any size, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(width // 8 + 1, 1000) * min(height, 1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_that_unpacks_to_gigabytes(house: Node, http: httpx.Client) -> None:
    service = psutil.Process(house.service_pid("yard"))
    before = service.memory_info().rss
    bomb = png(60_000, 60_000)
    assert len(bomb) < 2000
    answer = http.post("/v1/detect?model=yard", content=bomb, headers={"Content-Type": "image/png"})
    assert "60000 x 60000" in refused(answer, 413, "too-large")
    assert service.memory_info().rss - before < 20 * MEBI
