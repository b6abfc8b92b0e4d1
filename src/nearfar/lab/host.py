"""One node of the scenario: `nearfar up` in a home of its own, with a fake model as quick as its device."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nearfar.errors import MeshError
from nearfar.lab.network import Network
from nearfar.models.manifest import Manifest, manifest_of
from nearfar.models.store import Store
from nearfar.runtimes.fake import FakeModel, FakeTensor, LogNormal
from nearfar.simulate.devices import Device
from nearfar.simulate.world import MODEL
from nearfar.types.tensor import DType

SIDE = 8
"""Pixels of the model's input: making it smaller must cost nothing beside the emulated inference."""
STOP_LIMIT = 15.0
RUNS_AT_START = 7
"""Inferences of a service that starts: warm-up and profile (`node/service.py`)."""
OPENING = 0.25
"""Seconds that a loaded and warmed-up service needs to be seen by others."""


def model_of(device: Device, seed: int, delay_file: Path, held: Path) -> FakeModel:
    """A classifier of nothing whose inference takes as long as the device's: log-normal around its mean."""
    median = device.mean_ms * math.exp(-device.sigma * device.sigma / 2)
    return FakeModel(
        inputs=(FakeTensor("picture", DType.UINT8, (1, SIDE, SIDE, 3)),),
        outputs=(FakeTensor("scores", DType.FLOAT32, (1, 2)),),
        behaviour="constant",
        value=0.5,
        delay_ms=LogNormal(median, device.sigma),
        seed=seed,
        delay_file=str(delay_file),
        load_while=str(held),
    )


def manifest_for(file: Path) -> Manifest:
    data = file.read_bytes()
    return manifest_of(
        {
            "schema": 1,
            "name": MODEL,
            "task": "classification",
            "labels": ["one", "other"],
            "input": {"width": SIDE, "height": SIDE},
            "decoder": {"kind": "classification"},
            "variants": [
                {
                    "id": "fake",
                    "format": "fake",
                    "file": file.name,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "bytes": len(data),
                    "layout": "nhwc",
                    "dtype": "uint8",
                }
            ],
        }
    )


class Host:
    """One node's processes. Methods may be called whether it runs or not; those that wait belong on a thread."""

    def __init__(
        self,
        folder: Path,
        name: str,
        device: Device,
        network: Network,
        environment: dict[str, str],
        fleet: str,
        join: Sequence[str],
        *,
        queue_limit: int,
        lease_s: float,
        seed: int,
    ) -> None:
        self.name = name
        self.device = device
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._factor = self._folder / "factor"
        self._held = self._folder / "held"
        self._log = self._folder / "log"
        self._running: subprocess.Popen[bytes] | None = None
        self.leaving = False
        """Whether it was asked to end and was not started anew since."""
        impairment = network.impairment(name)
        settings = {
            "MESH_LEASE_MS": f"{lease_s * 1000:.0f}",
            "NODE_QUEUE_LIMIT": str(queue_limit),
            "NODE_THREADS": "1",
            "EMULATE_DELAY_MS": f"{impairment.delay_ms:.4f}",
            "EMULATE_JITTER_MS": f"{impairment.jitter_ms:.4f}",
            "EMULATE_BANDWIDTH": f"{impairment.bandwidth:.0f}",
            "EMULATE_LOSS": f"{impairment.loss:.6f}",
        }
        self._environment = environment | {f"NEARFAR_{key}": value for key, value in settings.items()}
        home = self._folder / "home"
        self._command = (
            *network.inside(name),
            *(sys.executable, "-m", "nearfar.cli.main", "up"),
            *("--name", name, "--home", str(home), "--fleet", fleet, "--model", MODEL),
            *("--port", "0", "--no-discover", "--insecure", "--listen", network.endpoint(name)),
            *(word for endpoint in join for word in ("--join", endpoint)),
        )
        file = self._folder / f"{MODEL}.fake.json"
        file.write_bytes(msgspec.json.encode(model_of(device, seed, self._factor, self._held)))
        Store(home / "models").add(file, manifest_for(file))

    def pace(self, factor: float) -> None:
        """Inference takes so many times as long from the next one on. In one step, so that nobody reads a half."""
        new = self._factor.with_suffix(".new")
        new.write_text(repr(factor))
        new.replace(self._factor)

    def launch(self, *, held: bool = False) -> None:
        """Start it, at the speed of its data sheet: that is what it finds out of itself at its start.

        One that is held does not load its model before it is released: so it serves at a moment that can be chosen.
        """
        self.pace(1.0)
        self.leaving = False
        if held:
            self._held.touch()
        else:
            self.release()
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self._environment,
                cwd=self._folder,  # no nearfar.toml of whoever runs the lab
                start_new_session=True,
            )

    def release(self) -> None:
        """It serves `warming_s` from now, if it was launched long enough ago."""
        self._held.unlink(missing_ok=True)

    @property
    def warming_s(self) -> float:
        return RUNS_AT_START * self.device.mean_ms / 1000 + OPENING

    @property
    def runs(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def crash(self) -> None:
        """kill -9 of agent and services at once, as when the power fails."""
        import psutil

        if self._running is None:
            return
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            self._running.send_signal(signal.SIGSTOP)  # so that it starts no service anew meanwhile
            for child in psutil.Process(self._running.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        self._running.kill()
        self._running.wait()

    def leave(self) -> None:
        """Ask it to end (SIGTERM); returns at once."""
        if self.runs and not self.leaving:
            assert self._running is not None
            self.leaving = True
            self._running.terminate()

    def wait_ended(self) -> None:
        """Until it has ended; one that does not is killed."""
        if self._running is None:
            return
        try:
            self._running.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.crash()

    def must_run(self) -> None:
        """Raises `MeshError` with the last line that it printed when it ended by itself."""
        if self._running is not None and (code := self._running.poll()) is not None:
            raise MeshError(f"Node {self.name} of the lab ended with exit code {code}: {self.last_words()}")

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else "it said nothing"
        return "it said nothing"


def wait_all(hosts: Sequence[Host], limit: float = STOP_LIMIT) -> None:
    """Stop them all: asked first, then waited for, then killed."""
    for host in hosts:
        host.leave()
    end = time.monotonic() + limit
    while any(host.runs for host in hosts) and time.monotonic() < end:
        time.sleep(0.05)
    for host in hosts:
        host.crash()


def clean_environment(mark: dict[str, str]) -> dict[str, str]:
    """This process's own without settings of nearfar, which are for its user's nodes, and with the lab's mark."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("NEARFAR_")}
    return own | {"NO_COLOR": "1"} | mark
