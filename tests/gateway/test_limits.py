"""Deadlines, overload, privacy and keys: what the gateway refuses, with which words, and that nothing hangs."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from nearfar.errors import SettingsError
from nearfar.gateway.server import Address
from tests.fleetlab import Lab, Node, fake, identity, poll
from tests.fleetlab import lab as lab
from tests.gateway.raw import count, infer_json, metrics, problem_of

SLOW = "/v2/models/slow/infer"
BODY = infer_json([1.0, 2.0, 3.0, 4.0])
KEYS = ("first-key-7f3a", "second-key-91bc")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that holds little: 3 places in a queue, 12 requests in flight, bodies of 1 MiB; and asks for a key."""
    folder = tmp_path_factory.mktemp("narrow")
    env = {
        "NEARFAR_NODE_QUEUE_LIMIT": "3",
        "NEARFAR_GATEWAY_MAX_IN_FLIGHT": "12",
        "NEARFAR_GATEWAY_MAX_BODY": "1MiB",
    }
    with Lab(folder) as made:
        yield made.node("narrow", [fake(folder, "slow", delay_ms=50.0)], env=env, api_key="\n".join(KEYS))


@pytest.fixture
def narrow_http(narrow: Node) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=narrow.url, headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=30) as client:
        yield client


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_a_deadline_that_cannot_be_kept(http: httpx.Client) -> None:
    before = count(http, "slow", "deadline-exceeded")
    answer = http.post(SLOW, content=BODY, headers={"Nearfar-Deadline": "1ms"})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    told = problem_of(answer.content)
    assert told["code"] == "deadline-exceeded" and told["retry_after"] > 0
    assert count(http, "slow", "deadline-exceeded") == before + 1


def test_a_deadline_that_can(http: httpx.Client) -> None:
    assert http.post(SLOW, content=BODY, headers={"Nearfar-Deadline": "20s"}).status_code == 200


@pytest.mark.parametrize("value", ["soon", "-1ms", "0", "0ms", "nan", "inf", "1e999s", "", "10 parsecs"])
def test_deadlines_that_are_none(http: httpx.Client, value: str) -> None:
    answer = http.post(SLOW, content=BODY, headers={"Nearfar-Deadline": value})
    assert answer.status_code == 400
    assert "Nearfar-Deadline" in problem_of(answer.content)["error"]


# -- where it may go --------------------------------------------------------------------------------------------------


def test_private_data_stays_although_another_node_could(lab: Lab, house: Node, tmp_path: Path) -> None:
    alone = lab.node("alone", [fake(tmp_path, "other")], join=[house], fleet=house.fleet)
    with alone.http() as http:
        poll(lambda: alone.service_json("identity", "house"), "alone knows of the service on house")
        path = "/v2/models/identity/infer"
        poll(lambda: http.post(path, content=BODY).status_code == 200, "alone asks house")
        assert http.post(path, content=BODY).headers["nearfar-served-by"] == "house/identity"
        answer = http.post(path, content=BODY, headers={"Nearfar-Privacy": "local"})
        assert answer.status_code == 503
        told = problem_of(answer.content)
        assert told["code"] == "no-candidate"
        refusals = {refusal["subject"]: refusal for refusal in told["refusals"]}
        assert refusals["house/identity"]["code"] == "private"
        assert "privacy is local and the data is on alone" in refusals["house/identity"]["reason"]
        assert refusals["alone"]["code"] == "not-served"
        answer = http.post(path, content=BODY, headers={"Nearfar-Node": "alone"})
        assert answer.status_code == 503
        assert {r["code"] for r in problem_of(answer.content)["refusals"]} == {"pinned", "not-served"}


def test_privacy_that_is_none(http: httpx.Client) -> None:
    answer = http.post(SLOW, content=BODY, headers={"Nearfar-Privacy": "secret"})
    assert answer.status_code == 400
    assert "Use one of local, fleet, any" in problem_of(answer.content)["error"]


# -- overload ---------------------------------------------------------------------------------------------------------


def test_overload_is_refused_and_every_request_is_accounted_for(narrow: Node, narrow_http: httpx.Client) -> None:
    def outcomes() -> Counter[str]:
        return Counter(
            {
                dict(labels)["outcome"]: int(value)
                for (name, labels), value in metrics(narrow_http).items()
                if name == "nearfar_requests_total" and dict(labels)["model"] == "slow"
            }
        )

    before, requests = outcomes(), 60

    def ask(_: int) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        return httpx.post(narrow.url + SLOW, content=BODY, headers=headers, timeout=60)

    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(ask, range(requests)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 429, 503}
    assert statuses[200] > 0 and statuses[200] < requests
    codes: Counter[str] = Counter()
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
            codes["ok"] += 1
            continue
        assert int(answer.headers["retry-after"]) >= 1
        told = problem_of(answer.content)
        assert told["retry_after"] > 0
        codes[told["code"]] += 1
        if told["code"] == "no-candidate":
            assert {refusal["code"] for refusal in told["refusals"]} == {"queue-full"}
    assert set(codes) <= {"ok", "too-many-requests", "overloaded", "no-candidate"}
    assert outcomes() - before == codes
    assert "nearfar_in_flight 0.0" in narrow_http.get("/metrics").text
    assert narrow_http.post(SLOW, content=BODY).status_code == 200


def test_a_body_without_a_stated_length_is_read_to_the_limit(narrow_http: httpx.Client) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield bytes(65536)

    answer = narrow_http.post(SLOW, content=parts())
    assert answer.status_code == 413 and problem_of(answer.content)["code"] == "too-large"
    assert answer.headers["connection"] == "close"
    assert sent < 1000 * 65536, "the gateway read it all"


# -- keys -------------------------------------------------------------------------------------------------------------

OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v2", {}),
    ("GET", "/v2/models/slow", {}),
    ("GET", "/v2/models/slow/ready", {}),
    ("POST", SLOW, {"content": BODY}),
    ("POST", "/v1/detect", {"content": b"x", "headers": {"Content-Type": "image/jpeg"}}),
    ("GET", "/v1/fleet", {}),
    ("GET", "/metrics", {}),
    ("GET", "/openapi.json", {}),
    ("GET", "/nothing", {}),
]


@pytest.mark.parametrize(("method", "path", "more"), OTHERS, ids=lambda value: str(value)[:30])
def test_without_the_key_nothing_is_told(narrow: Node, method: str, path: str, more: dict[str, Any]) -> None:
    for given in ("", KEYS[0], f"Bearer {KEYS[0]}x", f"Bearer {KEYS[0][:-1]}", "Bearer", f"Basic {KEYS[0]}"):
        headers = {**more.get("headers", {}), **({"Authorization": given} if given else {})}
        answer = httpx.request(method, narrow.url + path, **{**more, "headers": headers})
        assert answer.status_code == 401, given
        assert answer.headers["www-authenticate"] == "Bearer"
        told = problem_of(answer.content)
        assert told["code"] == "unauthorized" and "Authorization: Bearer KEY" in told["error"]
        assert KEYS[0] not in answer.text


def test_each_key_of_the_file_opens(narrow: Node) -> None:
    for key in KEYS:
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(narrow.url + "/v1/fleet", headers=headers).status_code == 200
        assert httpx.post(narrow.url + SLOW, content=BODY, headers=headers).status_code == 200


def test_health_needs_no_key(narrow: Node) -> None:
    assert httpx.get(narrow.url + "/v2/health/live").json() == {"live": True}
    assert httpx.get(narrow.url + "/v2/health/ready").json() == {"ready": True}


def test_a_key_is_never_printed(narrow: Node) -> None:
    assert not any(key in narrow.stderr for key in KEYS)


# -- beyond this machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (["--host", "0.0.0.0"], {}),
        (["--host", "0.0.0.0"], {"NEARFAR_GATEWAY_TLS_CERT": "cert.pem", "NEARFAR_GATEWAY_TLS_KEY": "key.pem"}),
    ],
    ids=["neither", "TLS without a key"],
)
def test_open_to_the_network_without_key_and_tls_it_does_not_start(
    lab: Lab, flags: list[str], env: dict[str, str]
) -> None:
    node = lab.node("open", ["yard"], flags=flags, env=env, wait=False)
    assert node.wait_ended() == 2
    assert "beyond this machine, without a key and TLS" in node.stderr
    assert "Set [gateway] api_key_file, tls_cert and tls_key, or listen on 127.0.0.1" in node.stderr
    assert "Traceback" not in node.stderr


@pytest.mark.parametrize("host", ["::", "127.example.org", "10.0.0.1", "", "0.0.0.0"])
@pytest.mark.parametrize("more", [{}, {"tls_certificate": "c", "tls_key": "k"}, {"keyed": True}], ids=str)
def test_addresses_beyond_this_machine_need_both(host: str, more: dict[str, Any]) -> None:
    keyed = more.get("keyed", False)
    tls = {name: value for name, value in more.items() if name != "keyed"}
    with pytest.raises(SettingsError, match="without a key and TLS"):
        Address(host, **tls).check(keyed=keyed)
    Address(host, tls_certificate="c", tls_key="k").check(keyed=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_addresses_of_this_machine_need_neither(host: str) -> None:
    Address(host).check(keyed=False)


def test_with_a_key_alone_it_does_not_start_either(lab: Lab) -> None:
    node = lab.node("open", ["yard"], flags=["--host", "0.0.0.0"], api_key=KEYS[0], wait=False)
    assert node.wait_ended() == 2
    assert "beyond this machine, without a key and TLS" in node.stderr


def test_an_empty_key_file_is_no_key(lab: Lab, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n \n")
    node = lab.node("open", ["yard"], env={"NEARFAR_GATEWAY_API_KEY_FILE": str(empty)}, wait=False)
    assert node.wait_ended() == 2
    assert "holds no key" in node.stderr


def test_over_tls(lab: Lab, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is needed to make a certificate")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    made = subprocess.run(
        ["openssl", *words.split(), *files.split()],
        cwd=tmp_path,
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr.decode()[-500:]
    env = {"NEARFAR_GATEWAY_TLS_CERT": str(tmp_path / "cert.pem"), "NEARFAR_GATEWAY_TLS_KEY": str(tmp_path / "key.pem")}
    node = lab.node("tls", [fake(tmp_path, "slow")], env=env, wait=False)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    node.verify = trusted
    node.wait_ready()
    assert node.url.startswith("https://")
    assert httpx.post(node.url + SLOW, content=BODY, verify=trusted).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(node.url + "/v2/health/live")


def test_a_web_page_of_another_site_may_not_use_a_gateway_without_a_key(lab: Lab, tmp_path: Path) -> None:
    """A browser on this machine is inside the loopback address that protects such a gateway."""
    node = lab.node("browsed", [identity(tmp_path)])
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    for origin, status in (("https://evil.example", 403), ("http://localhost:3000", 200), ("null", 403)):
        with node.http() as client:
            answers = (
                client.post("/v2/models/identity/infer", json=body, headers={"Origin": origin}),
                client.get("/v1/fleet", headers={"Origin": origin}),
            )
        assert [answer.status_code for answer in answers] == [status, status], origin


def test_a_name_that_was_bound_anew_to_this_machine_may_not_use_it_either(lab: Lab, tmp_path: Path) -> None:
    """DNS rebinding: to the browser the page is of the same site, so it sends no Origin; its Host tells."""
    node = lab.node("rebound", [identity(tmp_path)])
    with node.http() as client:
        for host, status in (("evil.example:80", 403), ("127.0.0.1:1", 200), ("localhost", 200)):
            assert client.get("/v1/fleet", headers={"Host": host}).status_code == status, host
