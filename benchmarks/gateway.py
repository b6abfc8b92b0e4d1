"""Requests per second and latency through HTTP -> placement -> service process -> back, beside its peers and limits.

What is measured, with `benchmarks/load.py` (raw sockets, a process of its own) and 1 and 16 clients:
  json-1k    an ONNX Identity on 256 floats as JSON (about 1.8 KB of text):
             nearfar | MLServer, the model inside its HTTP process (parallel_workers = 0, its fastest setting for
             such a model) | a bare uvicorn echo of the same bytes | the runtime called directly
  binary-1m  the same Identity on 1 MiB as a binary tensor: nearfar | echo | a raw Zenoh round trip of 1 MiB.
             Between processes of one machine nearfar takes a Unix socket, not Zenoh; the ratio says what that is worth
  mobilenet  MobileNetV2 int8 (LiteRT), 150,528 bytes as a binary tensor: nearfar | the runtime called directly,
             with one client the two request by request in turn
Everything runs on this machine: client, gateway and service share its cores. Warm-up: a quarter of each run, at most a
second, not counted. Repetitions: `--rounds` (3) rounds, the candidates in turn within a round so that drift hurts all;
each figure is the median of its rounds, each ratio the median of the ratios within a round. One thread per engine.
MLServer lives in its own virtual environment (`--mlserver PYTHON`; else made once in .venvs/mlserver, 300 MB) and is
left out with a reason when it cannot be had. MobileNetV2 needs the real data and is left out with a reason without it.

    python -m benchmarks.gateway [--seconds 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SIZE_1M = 1 << 20
Figures = dict[str, dict[str, list[float]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(*command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(command, start_new_session=True, cwd=ROOT, **options)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


def wait_until(url: str, limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if time.monotonic() > end:
            raise SystemExit(f"{url} did not answer in {limit:.0f} s")
        time.sleep(0.1)


def identity(folder: Path) -> Path:
    from onnx import TensorProto, helper, save

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n"])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    path = folder / "identity.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def json_request(model: str) -> bytes:
    values = [round(float(v), 3) for v in np.random.default_rng(0).random(256)]
    body = {"inputs": [{"name": "x", "shape": [1, 256], "datatype": "FP32", "data": values}]}
    return post(f"/v2/models/{model}/infer", json.dumps(body).encode(), "Content-Type: application/json")


def binary_request(model: str, name: str, datatype: str, array: Any) -> bytes:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": datatype,
                    "parameters": {"binary_data_size": array.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return post(
        f"/v2/models/{model}/infer",
        head + array.tobytes(),
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
    )


def load(port: int, clients: int, seconds: float, request: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", str(port), str(clients), str(seconds), str(request)],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr.decode()[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextlib.contextmanager
def nearfar_node(folder: Path, models: list[Path]) -> Iterator[int]:
    port = free_port()
    nearfar = (sys.executable, "-m", "nearfar.cli.main")
    environment = {**os.environ, "NEARFAR_HOME": str(folder / "home")}
    flags = []
    for model in models:
        add = (*nearfar, "models", "add", str(model), "--task", "tensors", "--name", model.stem)
        subprocess.run(add, env=environment, check=True, stdout=subprocess.DEVNULL)
        flags += ["--model", model.stem]
    up = (*nearfar, "up", "--port", str(port), "--fleet", f"bench{os.getpid()}", "--no-discover", "--threads", "1")
    with process(*up, *flags, env=environment, stderr=subprocess.DEVNULL):
        for model in models:
            wait_until(f"http://127.0.0.1:{port}/v2/models/{model.stem}/ready")
        yield port


def mlserver_python(stated: str | None) -> tuple[str | None, str]:
    """Its interpreter, or None and why not."""
    if stated:
        return stated, ""
    folder = ROOT / ".venvs" / "mlserver"
    python = folder / "bin" / "python"
    if not python.exists():
        print("installing MLServer into .venvs/mlserver (once, 300 MB) ...", file=sys.stderr)
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False)
        if made.returncode == 0:
            install = [str(python), "-m", "pip", "install", "-q", "mlserver==1.7.1", "onnxruntime", "ai-edge-litert"]
            made = subprocess.run(install, check=False)
        if made.returncode:
            return None, "MLServer could not be installed"
    return str(python), ""


@contextlib.contextmanager
def mlserver(python: str, folder: Path, model: Path) -> Iterator[int]:
    home = folder / "mlserver"
    (home / model.stem).mkdir(parents=True)
    source = (ROOT / "benchmarks" / "peers" / "mlserver_model.py").read_text()
    (home / model.stem / "peer.py").write_text(source)
    described = {"name": model.stem, "implementation": "peer.Direct", "parameters": {"uri": str(model)}}
    (home / model.stem / "model-settings.json").write_text(json.dumps(described))
    port = free_port()
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {**ports, "host": "127.0.0.1", "parallel_workers": 0, "debug": False}
    (home / "settings.json").write_text(json.dumps(settings))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with process(python, "-m", "mlserver.cli.main", "start", str(home), **quiet):
        wait_until(f"http://127.0.0.1:{port}/v2/models/{model.stem}/ready")
        yield port


@contextlib.contextmanager
def echo() -> Iterator[int]:
    with process(sys.executable, "-m", "benchmarks.echo", stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        yield int(started.stdout.readline())


def zenoh_p50_ms(count: int = 150) -> float:
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    command = (sys.executable, "-m", "benchmarks.zenoh_echo")
    with process(*command, "serve", endpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        asked = [*command, "ask", endpoint, str(SIZE_1M), str(count)]
        done = subprocess.run(asked, capture_output=True, cwd=ROOT, check=True)
    figure: float = json.loads(done.stdout)["p50_ms"]
    return figure


def answered(connection: socket.socket, request: bytes) -> None:
    """Send one prepared request and read its whole answer."""
    connection.sendall(request)
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(65536)
    at = data.lower().index(b"content-length:") + 15
    left = int(data[at:].split(b"\r\n", 1)[0]) - (len(data) - end - 4)
    if b" 200 " not in data[:16]:
        raise SystemExit(data[:500].decode(errors="replace"))
    while left > 0:
        left -= len(connection.recv(65536))


def direct_p50_ms(engine: str, model: Path, inputs: dict[str, Any], count: int = 2000) -> float:
    """The runtime called in this process, one thread."""
    from nearfar.runtimes.registry import runtime

    times = []
    with runtime(engine).load(model) as variant:
        for _ in range(count):
            start = time.perf_counter()
            variant.infer(inputs)
            times.append(time.perf_counter() - start)
    return statistics.median(times[count // 10 :]) * 1000


def alternated(port: int, request: bytes, model: Path, inputs: dict[str, Any], count: int = 120) -> tuple[float, float]:
    """(gateway, direct) p50 in ms: one through the gateway, one by the runtime in this process, in turn, one thread."""
    from nearfar.runtimes.registry import runtime

    through, direct = [], []
    with runtime("litert").load(model) as variant, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            start = time.perf_counter()
            answered(connection, request)
            middle = time.perf_counter()
            variant.infer(inputs)
            through.append(middle - start)
            direct.append(time.perf_counter() - middle)
    return statistics.median(through[10:]) * 1000, statistics.median(direct[10:]) * 1000


def note(figures: Figures, case: str, who: str, found: dict[str, float]) -> None:
    for name, value in found.items():
        figures.setdefault(f"{case} {who}", {}).setdefault(name, []).append(value)
    rate, p50, p99 = (found.get(n, float("nan")) for n in ("requests_per_second", "p50_ms", "p99_ms"))
    print(f"{case:<14} {who:<9} {rate:9.0f}/s   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms", flush=True)


def ratio(figures: Figures, over: str, under: str, figure: str) -> float | None:
    if over not in figures or under not in figures:
        return None
    pairs = zip(figures[over][figure], figures[under][figure], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def difference(figures: Figures, more: str, less: str) -> float | None:
    if more not in figures or less not in figures:
        return None
    pairs = zip(figures[more]["p50_ms"], figures[less]["p50_ms"], strict=True)
    return round(statistics.median(a - b for a, b in pairs), 3)


def mobilenet() -> Path | None:
    stated = os.environ.get("NEARFAR_TEST_DATA")
    folder = Path(stated) if stated else ROOT.parent / "shared" / "data"
    path = folder / "classification_models" / "mobilenet_v2_1.0_224_quant.tflite"
    return path if path.exists() else None


def run(seconds: float, rounds: int, python: str | None) -> dict[str, Any]:
    figures: Figures = {}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="nearfar-bench-") as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        small = identity(folder)
        large = mobilenet()
        models = [small]
        image = np.random.default_rng(1).integers(0, 255, (1, 224, 224, 3), np.uint8)
        if large is not None:
            models.append(folder / "mobilenet.tflite")
            models[1].symlink_to(large)
        else:
            skipped["mobilenet"] = "the real data is absent; set NEARFAR_TEST_DATA"
        requests = {"json-1k": json_request("identity")}
        megabyte = np.random.default_rng(2).random((1, SIZE_1M // 4), np.float32)
        requests["binary-1m"] = binary_request("identity", "x", "FP32", megabyte)
        if large is not None:
            requests["mobilenet"] = binary_request("mobilenet", "input", "UINT8", image)
        files = {}
        for name, content in requests.items():
            files[name] = folder / name
            files[name].write_bytes(content)
        node = stack.enter_context(nearfar_node(folder, models))
        bare = stack.enter_context(echo())
        peer = None
        if python is None:
            skipped["mlserver"] = "not installed"
        else:
            peer = stack.enter_context(mlserver(python, folder, small))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}")
            for clients in (1, 16):
                case = f"json-1k x{clients}"
                note(figures, case, "nearfar", load(node, clients, seconds, files["json-1k"]))
                if peer is not None:
                    note(figures, case, "mlserver", load(peer, clients, seconds, files["json-1k"]))
                note(figures, case, "echo", load(bare, clients, seconds, files["json-1k"]))
                case = f"binary-1m x{clients}"
                note(figures, case, "nearfar", load(node, clients, seconds, files["binary-1m"]))
                note(figures, case, "echo", load(bare, clients, seconds, files["binary-1m"]))
            values = {"x": np.random.default_rng(0).random((1, 256), np.float32)}
            note(figures, "json-1k x1", "direct", {"p50_ms": direct_p50_ms("onnx", small, values)})
            note(figures, "binary-1m x1", "zenoh", {"p50_ms": zenoh_p50_ms()})
            if large is not None:
                note(figures, "mobilenet x16", "nearfar", load(node, 16, seconds, files["mobilenet"]))
                through, direct = alternated(node, requests["mobilenet"], large, {"input": image})
                note(figures, "mobilenet x1", "nearfar", {"p50_ms": through})
                note(figures, "mobilenet x1", "direct", {"p50_ms": direct})
    return summary(figures, skipped)


def summary(figures: Figures, skipped: dict[str, str]) -> dict[str, Any]:
    rate, p50 = "requests_per_second", "p50_ms"
    return {
        "benchmark": "gateway",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "ratios": {
            "json-1k x16, requests/s over MLServer (aim 2.0)": ratio(
                figures, "json-1k x16 nearfar", "json-1k x16 mlserver", rate
            ),
            "json-1k x1, p50 over MLServer's (aim 1.0 or less)": ratio(
                figures, "json-1k x1 nearfar", "json-1k x1 mlserver", p50
            ),
            "json-1k x16, requests/s over a bare echo": ratio(figures, "json-1k x16 nearfar", "json-1k x16 echo", rate),
            "binary-1m x1, speed over a raw Zenoh round trip (aim 0.6)": ratio(
                figures, "binary-1m x1 zenoh", "binary-1m x1 nearfar", p50
            ),
            "mobilenet x1, p50 added to the direct call in ms (aim 1.0 or less)": difference(
                figures, "mobilenet x1 nearfar", "mobilenet x1 direct"
            ),
        },
        "medians": {
            name: {figure: round(statistics.median(values), 3) for figure, values in found.items()}
            for name, found in figures.items()
        },
        "skipped": skipped,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mlserver", help="Python of an environment that has MLServer")
    chosen = parser.parse_args()
    interpreter, _ = mlserver_python(chosen.mlserver)
    result = run(chosen.seconds, chosen.rounds, interpreter)
    print(json.dumps(result))
