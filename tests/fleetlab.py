"""Real nodes for tests: `nearfar up` as processes of their own, on loopback, each in a home folder of its own.

    with Lab(tmp_path) as lab:
        fast = lab.node("fast", [identity(tmp_path)])
        slow = lab.node("slow", [fake(tmp_path, "slow", delay_ms=200.0)], join=[fast])
        httpx.get(fast.url + "/v1/fleet")
        slow.kill9_agent()

A node is ready when `lab.node` returns: its gateway answers and each of its models is healthy. Leaving the lab stops
every node by its pid and fails when a process of any of them is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import httpx
import msgspec
import psutil
import pytest

from nearfar.models.manifest import Manifest, manifest_of
from nearfar.models.store import Store
from nearfar.runtimes.fake import FakeModel, FakeTensor
from nearfar.runtimes.faketext import fake_text
from tests.waiting import until_now

MARK = "FLEETLAB_MARK"
"""Environment variable by which the processes of a lab, and theirs, are found again. Not a setting of nearfar."""
START_LIMIT = 60.0
STOP_LIMIT = 20.0


# -- models -----------------------------------------------------------------------------------------------------------


class LabModel(NamedTuple):
    """A model file and the manifest under which a node gets it."""

    manifest: Manifest
    file: Path
    answer: str = ""
    """What the file answers to the question of the self-test (`nearfar.runtimes.known_answer`); "" keeps none."""

    @property
    def name(self) -> str:
        return self.manifest.name


def tensors(file: Path, name: str, model_format: str = "") -> LabModel:
    """A file as a model of the task `tensors`: arrays in, arrays out."""
    data = file.read_bytes()
    variant = {
        "id": "v",
        "format": model_format or {".tflite": "tflite", ".onnx": "onnx"}.get(file.suffix, "fake"),
        "precision": "fp32",
        "file": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    return LabModel(manifest_of({"schema": 1, "name": name, "task": "tensors", "variants": [variant]}), file)


def talking(folder: Path, name: str, **fields: Any) -> LabModel:
    """A language model of the fake engine (`nearfar.runtimes.faketext`); `fields` are those of `FakeText`."""
    path = folder / f"{name}.json"
    path.write_bytes(fake_text(**fields))
    return text_model(path, name, "fake-text", "embedding" if fields.get("embedding") else "chat")


def text_model(file: Path, name: str, model_format: str = "gguf", task: str = "chat") -> LabModel:
    """A file as a language model."""
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    variant = {"id": "v", "format": model_format, "file": file.name, "sha256": sha256, "bytes": len(data)}
    return LabModel(manifest_of({"schema": 1, "name": name, "task": task, "variants": [variant]}), file)


def fake(folder: Path, name: str, **fields: Any) -> LabModel:
    """A model of the fake runtime (`nearfar.runtimes.fake`): by default float32 [-1, 4] through unchanged, x to y.

    `fields` are those of `FakeModel`: `delay_ms=200.0`, `crash_at=3`, `hang_at=1`, `fail_every=2`, `inputs=(...)`.
    """
    shape = (-1, 4)
    fields = {"inputs": (FakeTensor("x", shape=shape),), "outputs": (FakeTensor("y", shape=shape),)} | fields
    file = folder / f"{name}.fake.json"
    file.write_bytes(msgspec.json.encode(FakeModel(**fields)))
    return tensors(file, name, "fake")


def identity(folder: Path, name: str = "identity", dtype: str = "FLOAT", shape: Sequence[int] = (1, -1)) -> LabModel:
    """An ONNX identity, x to y; `dtype` is one of `onnx.TensorProto`, -1 in the shape is free."""
    return _onnx(folder, name, "Identity", ["x"], "y", dtype, shape)


def add(folder: Path, name: str = "add") -> LabModel:
    """ONNX: sum = a + b over float32 [1, 4]."""
    return _onnx(folder, name, "Add", ["a", "b"], "sum", "FLOAT", (1, 4))


def real(name: str) -> LabModel:
    """A real detector of `tests.models.zoo`, such as "yolox-nano"; skips the test when the data is absent."""
    from tests.models.zoo import DETECTORS, manifest_for
    from tests.realdata import need_data

    file = need_data("detection_models", DETECTORS[name][0])
    return LabModel(manifest_for(name, file), file)


def _onnx(
    folder: Path, name: str, operator: str, inputs: list[str], output: str, dtype: str, shape: Sequence[int]
) -> LabModel:
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    helper = onnx.helper
    element = getattr(onnx.TensorProto, dtype)
    dims = [size if size >= 0 else f"d{at}" for at, size in enumerate(shape)]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, [output])],
        "lab",
        [helper.make_tensor_value_info(tensor, element, dims) for tensor in inputs],
        [helper.make_tensor_value_info(output, element, dims)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = folder / f"{name}.onnx"
    file.write_bytes(model.SerializeToString())
    return tensors(file, name)


# -- nodes ------------------------------------------------------------------------------------------------------------


class Node:
    """One `nearfar up` process. Made by `Lab.node`; every method may be called on a node that is gone already."""

    def __init__(
        self,
        folder: Path,
        fleet: str,
        name: str,
        models: Sequence[LabModel | str],
        *,
        join: Sequence[Node | str] = (),
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        api_key: str = "",
        mark: str = "",
    ) -> None:
        self.name = name
        self.fleet = fleet
        self.home = folder / f"home-{name}"
        self.models = tuple(m if isinstance(m, str) else m.name for m in models)
        self.url = ""
        self.endpoints: tuple[str, ...] = ()
        self.agent_pid = 0
        self.verify: ssl.SSLContext | bool = True
        """Who is trusted to be the gateway, when it has TLS."""
        self._files = folder
        self._models = models
        self._api_key = api_key
        self._env = dict(env or {})
        self._mark = mark
        self._command = [sys.executable, "-m", "nearfar.cli.main", "up", "--port", "0", "--no-discover", "--name", name]
        self._command += ["--fleet", fleet, "--home", str(self.home)]
        for other in join:
            for endpoint in (other,) if isinstance(other, str) else other.endpoints:
                self._command += ["--join", endpoint]
        for model in self.models:
            self._command += ["--model", model]
        self._command += flags
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    # -- its life -------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process, without waiting for anything; also after it ended, in the same home folder."""
        store = Store(self.home / "models")
        for model in self._models:
            if isinstance(model, LabModel):
                store.add(model.file, model.manifest)
                if model.answer:
                    store.keep_answer(model.manifest.variants[0].sha256, model.answer)
        if self._api_key:
            key_file = self.home / "key"
            key_file.parent.mkdir(parents=True, exist_ok=True)
            key_file.write_text(self._api_key + "\n")
            self._env["NEARFAR_GATEWAY_API_KEY_FILE"] = str(key_file)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("NEARFAR_")}
        quiet = {
            "NEARFAR_NODE_SELF_TEST_EVERY_MS": "0"
        }  # fakes count their calls: a test that wants it says so in `env`
        environment = {**clean, **quiet, "NO_COLOR": "1", "COLUMNS": "200", **self._env, MARK: self._mark}
        self.starts += 1
        with self.stderr_file.open("wb") as err, (self._files / f"{self.name}-{self.starts}.out").open("wb") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=self._files,  # no nearfar.toml of the developer's
                start_new_session=True,
            )
        self.agent_pid = self._process.pid

    def wait_ready(self, limit: float = START_LIMIT) -> Node:
        """Return once the gateway answers and every model is healthy; fails with what the node said when it cannot."""
        run_file = self.home / "run" / f"{self.name}.json"

        def told() -> bool:
            self._must_run()
            with contextlib.suppress(OSError, ValueError, KeyError):
                running = json.loads(run_file.read_bytes())
                if running["pid"] == self.agent_pid:
                    self.url, self.endpoints = running["gateway"], tuple(running["endpoints"])
                    return True
            return False

        try:
            until_now(told, f"{self.name} says where its gateway is", limit)
            until_now(self._all_healthy, f"{self.name} serves {', '.join(self.models)}", limit)
        except AssertionError as error:
            pytest.fail(f"{error}\n{self.stderr}", pytrace=False)
        return self

    def _all_healthy(self) -> bool:
        self._must_run()
        mine = {row["model"]: row["healthy"] for row in self.fleet_json()["services"] if row["node"] == self.name}
        return all(mine.get(model, False) for model in self.models)

    def _must_run(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            raise AssertionError(f"{self.name} ended with exit code {code}")

    def stop(self, limit: float = STOP_LIMIT) -> int:
        """Ask it to end (SIGTERM), as a service manager does; its exit code. Killed and a failure when it does not."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
        return self.wait_ended(limit)

    def wait_ended(self, limit: float = STOP_LIMIT) -> int:
        """The exit code, once the agent ended by itself; negative for a signal."""
        assert self._process is not None
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{self.name} did not end within {limit} s\n{self.stderr}") from None

    def kill9_agent(self) -> None:
        """As a power cut, to the agent alone; its services find out by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill9_node(self) -> None:
        """As a power cut: agent and services at once."""
        pids = [child.pid for child in self._children()]
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # so that it cannot start a service anew meanwhile
        for pid in pids:
            _kill9(pid)
        self.kill9_agent()

    def kill9_service(self, model: str) -> int:
        """Kill a model's service process; the pid that it had."""
        pid = self.service_pid(model)
        _kill9(pid)
        return pid

    # -- what is known of it --------------------------------------------------------------------------------------

    def service_pid(self, model: str) -> int:
        """The pid of a model's service process. Fails when it does not run."""
        name = f"{self.name}/{model}"
        for child in self._children():
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[-1] == name:
                    return int(child.pid)
        raise AssertionError(f"{name} has no process\n{self.stderr}")

    def _children(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self.agent_pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    @property
    def stderr_file(self) -> Path:
        return self._files / f"{self.name}-{self.starts}.err"

    @property
    def stderr(self) -> str:
        """What the node printed on standard error since its last start."""
        return self.stderr_file.read_text(errors="replace")

    def http(self, timeout: float = 30.0) -> httpx.Client:
        """A new HTTP client of its gateway, with the key when it has one. For a `with` block."""
        headers = {"Authorization": f"Bearer {self._api_key.split()[0]}"} if self._api_key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, verify=self.verify, trust_env=False)

    def fleet_json(self) -> dict[str, Any]:
        """`GET /v1/fleet`."""
        with self.http() as http:
            answer = http.get("/v1/fleet").raise_for_status()
        told: dict[str, Any] = answer.json()
        return told

    def service_json(self, model: str, node: str = "") -> dict[str, Any] | None:
        """The row of one service in this node's `GET /v1/fleet`; None when it does not know of it."""
        for row in self.fleet_json()["services"]:
            if (row["node"], row["model"]) == (node or self.name, model):
                found: dict[str, Any] = row
                return found
        return None


class Lab:
    """Nodes of one fleet, in one folder; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = f"lab-{uuid.uuid4().hex[:12]}"
        self.nodes: list[Node] = []
        self._mark = uuid.uuid4().hex

    def node(
        self,
        name: str,
        models: Sequence[LabModel | str],
        *,
        join: Sequence[Node | str] = (),
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        api_key: str = "",
        fleet: str = "",
        wait: bool = True,
    ) -> Node:
        """Start a node and wait until it is ready (unless `wait` is False: then `wait_ready` or `wait_ended` follow).

        `models` are `LabModel`s, or names of embedded models; `join` are nodes that are ready, or endpoints; `flags`
        are more words for the command; `env` is added to the environment, for settings that have no flag; `api_key` is
        the text of its key file, of which `Node.http` sends the first line.
        """
        given = (self.folder, fleet or self.fleet, name, models)
        node = Node(*given, join=join, flags=flags, env=env, api_key=api_key, mark=self._mark)
        self.nodes.append(node)
        node.launch()
        return node.wait_ready() if wait else node

    def processes(self) -> list[psutil.Process]:
        """Every living process that a node of this lab started, the nodes included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def close(self) -> None:
        """Stop every node and all that is left. Raises `AssertionError` when one did not stop, or left something."""
        wrong: list[str] = []
        for node in self.nodes:  # all at once: each may have work to finish
            if node._process is not None and node._process.poll() is None:
                node._process.terminate()
        for node in self.nodes:
            try:
                node.stop()
            except AssertionError as error:
                wrong.append(str(error))
        try:
            until_now(lambda: not self.processes(), "no process of the nodes is left", 15.0)
        except AssertionError:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    wrong.append(f"process {process.pid} was left: {' '.join(process.cmdline())}")
                    process.kill()
        assert not wrong, "\n".join(wrong)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except AssertionError as left:
            if error is None:
                raise
            error.add_note(str(left))


def _kill9(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until_now(lambda: _gone(pid), f"process {pid} is gone")


def _gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab for one test. Import it where it is used: `from tests.fleetlab import lab as lab`."""
    with Lab(tmp_path) as made:
        yield made


def poll(condition: Callable[[], object], what: str, limit: float = 20.0, every: float = 0.05) -> None:
    """As `until_now`, asking less often: for conditions that cost a request each."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"still not so after {limit} s: {what}")
        time.sleep(every)
