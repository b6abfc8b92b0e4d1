"""Requests to a gateway as a client sends them, and what became of each."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import httpx

from tests.fleetlab import Node, poll

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}


class Outcome(NamedTuple):
    """`code` is "" for an answer, the problem's code for a refusal; a broken connection is no outcome."""

    status: int
    code: str
    detail: str
    served_by: str

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def stated(self) -> bool:
        """Answered, or refused with a reason."""
        return self.ok or bool(self.status in (429, 500, 503) and self.code and self.detail)


def ask(http: httpx.Client, model: str, deadline: str = "", node: str = "") -> Outcome:
    """One inference of four floats."""
    headers = {"Nearfar-Deadline": deadline} if deadline else {}
    if node:
        headers["Nearfar-Node"] = node
    answer = http.post(f"/v2/models/{model}/infer", json=BODY, headers=headers)
    if answer.status_code == 200:
        assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
        return Outcome(200, "", "", answer.headers["nearfar-served-by"])
    problem: dict[str, Any] = answer.json()
    told = problem["detail"] + " ".join(r["reason"] for r in problem.get("refusals", ()))
    return Outcome(answer.status_code, problem["code"], told, "")


class Load:
    """Clients that ask one after the other until they are stopped; a context manager."""

    def __init__(self, gateway: Node, model: str, clients: int = 4, deadline: str = "") -> None:
        self.outcomes: list[Outcome] = []
        self.broken: list[Exception] = []
        """What is no outcome at all: a hang, or a connection that broke off."""
        self._stop = threading.Event()
        self._gateway = gateway
        self._model = model
        self._deadline = deadline
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        with self._gateway.http(timeout=45.0) as http:
            while not self._stop.is_set():
                try:
                    self.outcomes.append(ask(http, self._model, self._deadline))
                except (httpx.HTTPError, KeyError, ValueError, AssertionError) as error:
                    self.broken.append(error)
                if self.outcomes and not self.outcomes[-1].ok:
                    time.sleep(0.02)  # as Retry-After asks of a client, only sooner

    def wait_for(self, count: int, what: str, limit: float = 30.0) -> None:
        """Until so many more answers came."""
        there = self.answered
        poll(lambda: self.answered >= there + count, what, limit, every=0.02)

    @property
    def answered(self) -> int:
        return sum(outcome.ok for outcome in self.outcomes)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def healthy(gateway: Node, model: str, node: str = "") -> bool:
    """Whether a gateway sees a service as ready."""
    return bool((gateway.service_json(model, node) or {}).get("healthy"))


def reason(gateway: Node, model: str, node: str = "") -> str:
    """What a gateway says of a service; "" when it does not know it."""
    return str((gateway.service_json(model, node) or {}).get("reason", ""))
