"""A raw Zenoh round trip between two processes, publish and subscribe, no nearfar: the limit for large tensors.

python -m benchmarks.zenoh_echo serve ENDPOINT      # answers; ends with its standard input
python -m benchmarks.zenoh_echo ask ENDPOINT BYTES COUNT   # prints {"p50_ms": ...}
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

os.environ.setdefault("ZENOH_RUNTIME", "(rx: (worker_threads: 16))")

import zenoh


def opened(listen: list[str], connect: list[str]) -> Any:
    config = zenoh.Config()
    for key, value in {
        "listen/endpoints": listen,
        "connect/endpoints": connect,
        "scouting/multicast/enabled": False,
        "transport/shared_memory/enabled": False,
    }.items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


def callback(function: Any) -> Any:
    return zenoh.handlers.Callback(function, indirect=False)


def serve(endpoint: str) -> None:
    session = opened([endpoint], [])

    def back(sample: Any) -> None:
        session.put(
            "bench/back", sample.payload.to_bytes(), congestion_control=zenoh.CongestionControl.BLOCK, express=True
        )

    session.declare_subscriber("bench/there", callback(back))
    print("ready", flush=True)
    sys.stdin.read()
    session.close()


def ask(endpoint: str, size: int, count: int) -> None:
    session = opened([], [endpoint])
    arrived = threading.Event()

    def back(sample: Any) -> None:
        sample.payload.to_bytes()
        arrived.set()

    session.declare_subscriber("bench/back", callback(back))
    data = os.urandom(size)
    times = []
    deadline = time.monotonic() + 10
    while not arrived.is_set():  # until both sides know of each other
        session.put("bench/there", b"?", congestion_control=zenoh.CongestionControl.BLOCK)
        arrived.wait(0.1)
        if time.monotonic() > deadline:
            raise SystemExit("no echo in 10 s")
    time.sleep(0.3)
    for _ in range(count):
        arrived.clear()
        start = time.perf_counter()
        session.put("bench/there", data, congestion_control=zenoh.CongestionControl.BLOCK, express=True)
        if not arrived.wait(10):
            raise SystemExit("an echo was lost")
        times.append(time.perf_counter() - start)
    session.close()
    print(json.dumps({"p50_ms": sorted(times)[count // 2] * 1000}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
