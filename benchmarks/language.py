"""A language model through the gateway, beside the same engine without nearfar, and beside a proxy.

What is measured, all on this machine, client included; one GGUF, the same threads, slots and context on both sides:
  decode     tokens a second of one streamed chat completion, from its first piece to its last:
             nearfar's gateway (server-sent events over HTTP) | llama.cpp called directly through xllamacpp
  first      seconds until the first piece of the same: the difference is what nearfar adds to the time to first token
  streams    tokens a second of 16 streamed completions at once, all together: gateway | direct (its own batching)
  one-token  requests a second of a chat completion of one token with 16 clients, and the median with one client:
             gateway | llama.cpp's own HTTP server (xllamacpp's port) | a LiteLLM proxy in front of that server
Decode, first and streams are taken in pairs, one after the other, so that drift hurts both; each figure is a median,
each ratio the median of the ratios within a pair, with the quartiles beside it. Warm-up: one pair that is not counted,
and a quarter of each load run. LiteLLM lives in its own virtual environment (`--litellm PYTHON`; else made once in
.venvs/litellm, 310 MB) and is left out with a reason when it cannot be had. llama.cpp has the settings that a service
of nearfar gives it; with `--as-shipped` it keeps its own where nearfar's are only faster.

    python -m benchmarks.language [--model FILE.gguf] [--pairs 15] [--seconds 4] [--rounds 3] [--as-shipped]
                                  [--no-litellm]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gateway import ROOT, free_port, load, post, process, wait_until

SLOTS = 16
CONTEXT = 512
STREAMS = 16
ONE = "one"
NAME = "measured"
Run = dict[str, float]


def chat(tokens: int, *, stream: bool, model: str = NAME) -> bytes:
    """A completion of exactly so many tokens: no end of the text stops it early."""
    said = [{"role": "user", "content": "Once upon a time there was a little girl who"}]
    body: dict[str, Any] = {"model": model, "messages": said, "max_tokens": tokens, "temperature": 0, "stream": stream}
    body["nearfar"] = {"cache": False}
    if tokens > 1:
        body["ignore_eos"] = True
    return json.dumps(body).encode()


@contextlib.contextmanager
def node(folder: Path, model: Path, threads: int) -> Iterator[int]:
    """nearfar with the model, as a user would start it."""
    port = free_port()
    nearfar = (sys.executable, "-m", "nearfar.cli.main")
    environment = {
        **os.environ,
        "NEARFAR_HOME": str(folder / "home"),
        "NEARFAR_LANGUAGE_SLOTS": str(SLOTS),
        "NEARFAR_LANGUAGE_CONTEXT": str(CONTEXT),
        "NEARFAR_NODE_QUEUE_LIMIT": "256",
        "NEARFAR_NODE_SELF_TEST_EVERY_MS": "0",
    }
    add = (*nearfar, "models", "add", str(model), "--name", NAME)
    subprocess.run(add, env=environment, check=True, stdout=subprocess.DEVNULL)
    up = (*nearfar, "up", "--port", str(port), "--fleet", f"bench{os.getpid()}", "--no-discover")
    command = (*up, "--threads", str(threads), "--model", NAME)
    with process(*command, env=environment, stderr=subprocess.DEVNULL):
        wait_until(f"http://127.0.0.1:{port}/v2/models/{NAME}/ready")
        yield port


class Direct:
    """llama.cpp in a process of its own."""

    def __init__(self, started: subprocess.Popen[bytes]) -> None:
        assert started.stdin is not None and started.stdout is not None
        self._in, self._out = started.stdin, started.stdout
        self.port = int(self._out.readline())

    def generate(self, streams: int, body: bytes) -> dict[str, float]:
        self._in.write(f"{streams} ".encode() + body + b"\n")
        self._in.flush()
        found: dict[str, float] = json.loads(self._out.readline())
        return found


@contextlib.contextmanager
def direct(model: Path, threads: int, *, shipped: bool = False) -> Iterator[Direct]:
    command = [sys.executable, "-m", "benchmarks.llama_direct", str(model), str(SLOTS), str(threads), str(CONTEXT)]
    if shipped:
        command.append("shipped")
    with process(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as started:
        yield Direct(started)


class Events(asyncio.Protocol):
    """Reads server-sent events of one answer, noting when they came and how many there were."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.pieces = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        refused = not self.pieces and not self._tail and not data.startswith(b"HTTP/1.1 200 ")
        if refused or b'data: {"error"' in data:  # else one would wait for an end that does not come
            self.done.set_exception(RuntimeError(f"the stream failed: {data[-600:]!r}"))
            self.transport.close()
            return
        data = self._tail + data
        whole, _, self._tail = data.rpartition(b"\n")
        count = whole.count(b"data: {")
        if count:
            self.first = self.first or now
            self.last = now
            self.pieces += count
        if b"data: [DONE]" in data:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"the stream ended early: {self._tail[-300:]!r}"))


async def through(port: int, streams: int, request: bytes) -> dict[str, float]:
    """As `Direct.generate`, through the gateway; connections are made before the clock starts."""
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(Events, "127.0.0.1", port))[1] for _ in range(streams)]
    start = time.perf_counter()
    for each in made:
        each.transport.write(request)
    await asyncio.gather(*(each.done for each in made))
    pieces = sum(each.pieces for each in made)
    rest = max(each.last for each in made) - min(each.first for each in made)
    return {"first_s": made[0].first - start, "rest_s": rest, "pieces": pieces}


def pairs(port: int, limit: Direct, streams: int, tokens: int, count: int) -> list[tuple[Run, Run]]:
    body = chat(tokens, stream=True)
    request = post("/v1/chat/completions", body, "Content-Type: application/json")
    found = []
    for number in range(count + 1):
        mine = asyncio.run(through(port, streams, request))
        theirs = limit.generate(streams, body)
        if abs(mine["pieces"] - theirs["pieces"]) > 3 * streams:
            raise SystemExit(f"the answers differ in length: {mine['pieces']} and {theirs['pieces']} pieces")
        if number:
            found.append((mine, theirs))
    return found


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def rate(figures: dict[str, float]) -> float:
    return (figures["pieces"] - 1) / figures["rest_s"]


@contextlib.contextmanager
def litellm(python: Path, folder: Path, port: int) -> Iterator[int]:
    config = folder / "litellm.yaml"
    upstream = f"http://127.0.0.1:{port}/v1"
    config.write_text(
        "model_list:\n"
        f"  - model_name: {NAME}\n"
        "    litellm_params:\n"
        f"      model: openai/{NAME}\n"
        f"      api_base: {upstream}\n"
        "      api_key: none\n"
    )
    own = free_port()
    command = (str(python.parent / "litellm"), "--config", str(config), "--port", str(own), "--host", "127.0.0.1")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with process(*command, env=environment, **quiet):
        wait_until(f"http://127.0.0.1:{own}/health/liveliness", 120)
        yield own


def litellm_python(stated: str | None, wanted: bool) -> tuple[Path | None, str]:
    if not wanted:
        return None, "left out with --no-litellm"
    if stated:
        return Path(stated), ""
    folder = ROOT / ".venvs" / "litellm"
    python = folder / "bin" / "python"
    if not (folder / "bin" / "litellm").exists():
        print("installing LiteLLM into .venvs/litellm (once, 310 MB) ...", file=sys.stderr)
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False)
        if made.returncode == 0:
            install = [str(python), "-m", "pip", "install", "-q", "litellm[proxy]==1.99.4"]
            made = subprocess.run(install, check=False)
        if made.returncode:
            return None, "LiteLLM could not be installed"
    return python, ""


def default_model() -> Path:
    """stories260K where the real data is, else the model that ships with nearfar."""
    data = os.environ.get("NEARFAR_TEST_DATA")
    if data and (found := Path(data) / "slm" / "stories260K.gguf").exists():
        return found
    shipped = sorted((ROOT / "src" / "nearfar" / "models" / "embedded").glob("*/*.gguf"))
    if not shipped:
        raise SystemExit("there is no model to measure; give --model FILE.gguf")
    return shipped[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--as-shipped", action="store_true", help="llama.cpp with its own settings, not with nearfar's")
    parser.add_argument("--litellm")
    parser.add_argument("--no-litellm", action="store_true")
    given = parser.parse_args()
    model = given.model or default_model()
    python, why = litellm_python(given.litellm, not given.no_litellm)
    result: dict[str, Any] = {"model": model.name, "tokens": given.tokens, "threads": given.threads}
    result["as_shipped"] = given.as_shipped
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(node(folder, model, given.threads))
        limit = stack.enter_context(direct(model, given.threads, shipped=given.as_shipped))
        alone = pairs(port, limit, 1, given.tokens, given.pairs)
        many = pairs(port, limit, STREAMS, given.tokens, max(5, given.pairs // 2))
        result["decode"] = {
            "nearfar_tokens_s": round(statistics.median(rate(mine) for mine, _ in alone), 1),
            "direct_tokens_s": round(statistics.median(rate(theirs) for _, theirs in alone), 1),
            "ratio": quartiles([rate(mine) / rate(theirs) for mine, theirs in alone]),
        }
        result["first_ms"] = {
            "nearfar": quartiles([mine["first_s"] * 1000 for mine, _ in alone]),
            "direct": quartiles([theirs["first_s"] * 1000 for _, theirs in alone]),
            "added": quartiles([(mine["first_s"] - theirs["first_s"]) * 1000 for mine, theirs in alone]),
        }
        result["streams"] = {
            "nearfar_tokens_s": round(statistics.median(rate(mine) for mine, _ in many), 1),
            "direct_tokens_s": round(statistics.median(rate(theirs) for _, theirs in many), 1),
            "ratio": quartiles([rate(mine) / rate(theirs) for mine, theirs in many]),
        }
        ports = {"nearfar": port, "llama.cpp": limit.port}
        if python is not None:
            ports["litellm"] = stack.enter_context(litellm(python, folder, limit.port))
        else:
            result["litellm"] = f"unavailable: {why}"
        result["one_token"] = one_token(folder, ports, given.seconds, given.rounds)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, cwd=ROOT, check=False)
    result |= {
        "benchmark": "language",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.decode().strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    show(result)
    print(json.dumps(result))


def one_token(folder: Path, ports: dict[str, int], seconds: float, rounds: int) -> dict[str, Any]:
    file = folder / ONE
    file.write_bytes(post("/v1/chat/completions", chat(1, stream=False), "Content-Type: application/json"))
    runs: dict[str, dict[int, list[dict[str, float]]]] = {name: {1: [], STREAMS: []} for name in ports}
    for _ in range(rounds):
        for clients in (1, STREAMS):
            for name, port in ports.items():
                runs[name][clients].append(load(port, clients, seconds, file))
    found: dict[str, Any] = {}
    for name, by_clients in runs.items():
        found[name] = {
            "per_s_16": round(statistics.median(run["requests_per_second"] for run in by_clients[STREAMS]), 1),
            "p50_ms_1": round(statistics.median(run["p50_ms"] for run in by_clients[1]), 3),
            "p50_ms_16": round(statistics.median(run["p50_ms"] for run in by_clients[STREAMS]), 3),
        }
    for name in ports:
        if name != "nearfar":
            mine, theirs = runs["nearfar"][STREAMS], runs[name][STREAMS]
            ratios = [a["requests_per_second"] / b["requests_per_second"] for a, b in zip(mine, theirs, strict=True)]
            found[f"ratio_16_{name}"] = round(statistics.median(ratios), 3)
    return found


def show(result: dict[str, Any]) -> None:
    print(f"{result['model']}, {result['tokens']} tokens, {result['threads']} thread(s)")
    for name in ("decode", "streams"):
        row = result[name]
        told = f"{row['nearfar_tokens_s']} tokens/s, direct {row['direct_tokens_s']}, ratio {row['ratio']['median']}"
        print(f"  {name:9} {told} ({row['ratio']['low']} to {row['ratio']['high']})")
    added = result["first_ms"]["added"]
    print(f"  first     {added['median']} ms added ({added['low']} to {added['high']})")
    for name, row in result["one_token"].items():
        print(f"  one-token {name}: {row}")


if __name__ == "__main__":
    main()
