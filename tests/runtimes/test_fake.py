"""The fake: every behaviour that its file can ask for, the deadly ones in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from nearfar.errors import InferenceError, ModelFileError
from nearfar.runtimes import fake
from nearfar.runtimes.fake import FakeModel, FakeRuntime, FakeTensor
from nearfar.types.tensor import DType
from tests.runtimes import tiny


def write(path: Path, **stated: Any) -> Path:
    tensor = FakeTensor("x", shape=(-1, 3))
    model = FakeModel(**{"inputs": (tensor,), "outputs": (FakeTensor("y", shape=(-1, 3)),), **stated})
    path.write_bytes(msgspec.json.encode(model))
    return path


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Milliseconds that the fake asked to sleep; none of them passes."""
    asked: list[float] = []
    monkeypatch.setattr("nearfar.runtimes.fake.time.sleep", lambda seconds: asked.append(seconds * 1000))
    return asked


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_constant_fills_free_dimensions_from_the_first_input(tmp_path: Path) -> None:
    outputs = (FakeTensor("p", DType.UINT8, (-1, 2, -1)), FakeTensor("q", DType.FLOAT32, ()))
    with FakeRuntime().load(write(tmp_path / "m", behaviour="constant", value=7, outputs=outputs)) as variant:
        p, q = variant.infer({"x": X})
        assert (p.shape, p.dtype.name, p.ravel().tolist()) == ((2, 2, 1), "uint8", [7] * 4)
        assert (q.shape, float(q)) == ((), 7.0)


def test_zeros(tmp_path: Path) -> None:
    with FakeRuntime().load(write(tmp_path / "m", behaviour="zeros", value=9)) as variant:
        assert not variant.infer({"x": X})[0].any()


def test_every_nth_call_fails(tmp_path: Path) -> None:
    with FakeRuntime().load(write(tmp_path / "m", fail_every=3)) as variant:
        outcomes = []
        for _ in range(7):
            try:
                variant.infer({"x": X})
                outcomes.append("ok")
            except InferenceError:
                outcomes.append("failed")
        assert outcomes == ["ok", "ok", "failed", "ok", "ok", "failed", "ok"]


def test_delays_follow_their_distribution_and_seed(tmp_path: Path, slept: list[float]) -> None:
    def delays(delay: Any, seed: int = 1, calls: int = 400) -> list[float]:
        variant = FakeRuntime().load(write(tmp_path / "m", delay_ms=delay, seed=seed))
        slept.clear()
        for _ in range(calls):
            variant.infer({"x": X})
        return list(slept)

    assert delays(5.0, calls=3) == [5.0] * 3
    uniform = delays((10.0, 30.0))
    assert min(uniform) >= 10
    assert max(uniform) <= 30
    assert max(uniform) - min(uniform) > 15
    assert delays((10.0, 30.0)) == uniform
    assert delays((10.0, 30.0), seed=2) != uniform
    log_normal = delays(fake.LogNormal(median=20.0, sigma=0.5))
    assert 17 < float(np.median(log_normal)) < 23.5  # three standard errors of the median of 400
    assert max(log_normal) > 40


def test_a_file_makes_it_slower_while_it_runs(tmp_path: Path, slept: list[float]) -> None:
    told = tmp_path / "factor"
    with FakeRuntime().load(write(tmp_path / "m", delay_ms=10.0, delay_file=str(told))) as variant:
        for text in ("", "3", "0.5", "half written", "0"):
            if text:
                (tmp_path / "new").write_text(text)
                (tmp_path / "new").replace(told)
            variant.infer({"x": X})
        told.unlink()
        variant.infer({"x": X})
    assert slept == [10.0, 30.0, 5.0, 5.0, 10.0]  # nothing is slept at 0; without the file it is itself again


def test_loading_waits_while_a_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tmp_path / "held"
    held.touch()
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            held.unlink()

    monkeypatch.setattr("nearfar.runtimes.fake.time.sleep", sleep)
    FakeRuntime().load(write(tmp_path / "m", load_while=str(held)))
    assert len(looks) == 3


def test_each_call_takes_longer_than_the_one_before_when_told(tmp_path: Path, slept: list[float]) -> None:
    variant = FakeRuntime().load(write(tmp_path / "m", delay_ms=5.0, delay_step_ms=0.5))
    for _ in range(3):
        variant.infer({"x": X})
    assert slept == [5.5, 6.0, 6.5]


def test_loading_takes_its_time_and_may_fail(tmp_path: Path, slept: list[float]) -> None:
    FakeRuntime().load(write(tmp_path / "m", load_ms=250.0))
    assert slept == [250.0]
    with pytest.raises(ModelFileError, match="no such weights"):
        FakeRuntime().load(write(tmp_path / "m", load_error="no such weights"))


def test_memory_is_kept_and_given_back(tmp_path: Path) -> None:
    variant = FakeRuntime().load(write(tmp_path / "m", allocate_at_load_mib=1.0, allocate_mib=0.5))
    for _ in range(4):
        variant.infer({"x": X})
    assert sum(map(len, variant._kept)) == 3 * 1024**2
    variant.close()
    assert not variant._kept


CHILD = """
import sys; from pathlib import Path; import numpy as np; from nearfar.runtimes.registry import runtime
variant = runtime("fake").load(Path(sys.argv[1]))
for call in range(1, 5):
    print(call, flush=True); variant.infer({"x": np.zeros((1, 3), np.float32)})
"""


def test_the_nth_call_kills_the_process(tmp_path: Path) -> None:
    path = write(tmp_path / "m", crash_at=3)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["1", "2", "3"]


def test_the_nth_call_never_returns(tmp_path: Path) -> None:
    path = write(tmp_path / "m", hang_at=2)
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert [child.stdout.readline().strip() for _ in range(2)] == ["1", "2"]
        with pytest.raises(subprocess.TimeoutExpired):  # it would be done in far less
            child.wait(timeout=1)
        child.kill()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('format = "nearfar-fake"', "inputs"),
        ("inputs = []\noutputs = []", "format"),
        ('format = "nearfar-fake"\ninputs = []\noutputs = []\nspeed = 3', "speed"),
        ('format = "nearfar-fake"\ninputs = []\noutputs = []\ndelay_ms = -1', "delay_ms"),
        ('format = "nearfar-fake"\ninputs = []\noutputs = []\ndelay_ms = [9, 1]', "delay_ms"),
        ('format = "nearfar-fake"\ninputs = []\noutputs = []\ndelay_ms = {sigma = 1}', "median"),
        ('format = "nearfar-fake"\ninputs = []\noutputs = []\nfail_every = -2', "fail_every"),
        ('format = "nearfar-fake"\ninputs = [{name = "x", dtype = "float33"}]\noutputs = []', "float33"),
        ('format = "nearfar-fake"\ninputs = [{name = "x"}, {name = "x"}]\noutputs = []', "same name"),
        ('format = "nearfar-fake"\ninputs = [{name = "x"}]\noutputs = []', "identity needs"),
        (
            'format = "nearfar-fake"\nbehaviour = "constant"\nvalue = 256\n'
            'inputs = []\noutputs = [{name = "y", dtype = "uint8"}]',
            "256",
        ),
        ('{"format": "nearfar-fake", "inputs": 3}', "inputs"),
        ("format = nearfar-fake", "not a fake model"),
    ],
)
def test_a_wrong_file_names_the_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(ModelFileError, match=says):
        FakeRuntime().load(path)


def test_the_example_of_the_documentation_loads(tmp_path: Path) -> None:
    lines = [line[4:] for line in (fake.__doc__ or "").splitlines() if line.startswith("    ") or not line]
    path = tmp_path / "m.toml"
    path.write_text("\n".join(lines).replace("load_ms = 100", "load_ms = 0"))
    model = fake.read_fake(path)
    assert model.crash_at == 50
    assert set(FakeModel.__struct_fields__) <= {line.split(" ")[0].strip("[]") for line in lines if line}


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = fake.read_fake(tiny.fake_identity(tmp_path / "m.toml", more="seed = 3\ndelay_ms = [1, 2]\n"))
    (tmp_path / "m.json").write_bytes(msgspec.json.encode(toml))
    assert fake.read_fake(tmp_path / "m.json") == toml
