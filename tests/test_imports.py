"""A module that is only imported opens no socket, starts no process, reads no key and loads no heavy library.

Each check runs in a fresh interpreter, so that nothing which this process has loaded can hide anything.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nearfar

MODULES = sorted(m.name for m in pkgutil.walk_packages(nearfar.__path__, "nearfar.") if not m.name.endswith("__main__"))

HEAVY = {
    "numpy", "onnxruntime", "ai_edge_litert", "tensorflow", "openvino", "torch", "onnx", "cv2", "av", "zenoh",
    "fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "psutil", "huggingface_hub", "rich", "httpx",
    "httpcore", "uvloop", "scipy", "matplotlib",
}  # fmt: skip
"""Libraries that cost tens of milliseconds or more, or that start threads, when they are imported."""

LIGHT = ["nearfar", "nearfar.errors", "nearfar.settings", "nearfar.mesh.base", "nearfar.runtimes.base"]
LIGHT += [name for name in MODULES if name.split(".")[1] in ("types", "cli", "placement")]

ENGINES = HEAVY - {"numpy", "psutil", "rich"}
"""What no module may load but those whose very purpose it is."""
WEB = {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"}
PURPOSE = {
    "nearfar.mesh.zenoh": {"zenoh"},
    "nearfar.gateway": {"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"},
    "nearfar.vision.sources": {"av"},
    "nearfar.runtimes.remote.transport": {"httpcore"},
}
"""Modules and rooms that are an adapter of heavy libraries, and what their import may therefore load."""

WATCH = """
import sys, json
told, armed = [], False
KEYS = (".pem", ".key", ".crt", "id_rsa", "id_ed25519", "token", "credentials", ".netrc", "api-key", "api_key")

def hook(event, args):
    if not armed:
        return
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.exec", "os.system", "urllib.")):
        told.append(f"{event} {args!r:.200}")
    elif event == "open" and isinstance(args[0], str):
        name = args[0].rpartition("/")[2].lower()
        if name.endswith(KEYS) or name in KEYS:
            told.append(f"open {args[0]}")

def start(self):
    if armed:
        told.append(f"starts a thread: {self!r}")
    return started(self)

sys.addaudithook(hook)
import importlib, threading
started, threading.Thread.start = threading.Thread.start, start  # not every version audits it
modules = json.loads(sys.argv[1])
armed = True
out = {}
for name in modules:
    before = len(told)
    importlib.import_module(name)
    out[name] = told[before:]
armed = False
tops = sorted({m.partition(".")[0] for m in sys.modules})
print(json.dumps({"told": {k: v for k, v in out.items() if v}, "loaded": tops}))
"""


def imported(*modules: str) -> tuple[dict[str, list[str]], set[str]]:
    """What the imports did that they must not, by module, and the top-level packages that are loaded then."""
    command = [sys.executable, "-c", WATCH, json.dumps(modules)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["told"], set(answer["loaded"])


def test_the_watch_sees_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every other test here could pass for the wrong reason."""
    (tmp_path / "node.key").write_text("secret")
    (tmp_path / "guilty.py").write_text(
        "import socket, subprocess, threading, pathlib\n"
        "socket.socket().close()\n"
        "subprocess.run(['true'], check=False)\n"
        "threading.Thread(target=int).start()\n"
        f"pathlib.Path({str(tmp_path / 'node.key')!r}).read_text()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told, _ = imported("guilty")
    text = "\n".join(told["guilty"])
    for word in ("socket.__new__", "subprocess.Popen", "starts a thread", "node.key"):
        assert word in text, word


def test_no_import_opens_a_socket_starts_a_process_or_reads_a_key() -> None:
    told, loaded = imported(*MODULES)
    assert told == {}
    assert {"nearfar", "zenoh", "fastapi"} <= loaded, "every module was really imported"


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_heavy_library(module: str) -> None:
    _, loaded = imported(module)
    allowed = {"numpy"} if needs_numpy(module) else set()
    assert loaded & (HEAVY - allowed) == set()


def needs_numpy(module: str) -> bool:
    """Tensors and detections are arrays; a runtime's seam speaks of them. Nothing else among the light ones."""
    return module in {"nearfar.types.tensor", "nearfar.types.detections", "nearfar.types.wire", "nearfar.runtimes.base"}


def of_room(room: str) -> list[str]:
    return [name for name in MODULES if name == room or name.startswith(f"{room}.")]


def test_engines_are_loaded_by_their_adapters_alone() -> None:
    """All other modules in one process: what is loaded then was loaded by one that had no reason to."""
    adapters = {name for room in PURPOSE for name in of_room(room)}
    _, loaded = imported(*(name for name in MODULES if name not in adapters))
    assert loaded & ENGINES == set()


@pytest.mark.parametrize("room", sorted(PURPOSE))
def test_an_adapter_loads_its_own_library_and_no_engine(room: str) -> None:
    _, loaded = imported(*of_room(room))
    assert loaded & ENGINES == PURPOSE[room], "the list of purposes is out of date, or an import is in the wrong place"
