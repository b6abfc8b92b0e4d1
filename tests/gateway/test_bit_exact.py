"""What comes out of the gateway and of the mesh is what the runtime gives when it is called directly, bit for bit.

Every model file of the real data is served as a model of tensors by one node, and asked with random inputs from a fixed
seed. The direct call runs in this process, through the same runtime with the same threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nearfar
from nearfar.gateway import oip
from nearfar.models.adding import name_of
from nearfar.runtimes import registry
from nearfar.runtimes.base import LoadOptions
from nearfar.settings import load
from nearfar.types.ids import ModelName
from nearfar.types.tensor import Tensor, TensorSpec
from tests.fleetlab import Lab, Node, tensors
from tests.realdata import data_dir

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")

THREADS = 1
RUNTIME = {".onnx": "onnx", ".tflite": "litert"}


def model_files() -> list[Path]:
    data = data_dir()
    if data is None:
        return []
    folders = (data / "detection_models", data / "classification_models")
    return sorted(path for folder in folders for path in folder.glob("*") if path.suffix in RUNTIME)


FILES = model_files()
each_model = pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])


def random_input(spec: TensorSpec, random: np.random.Generator) -> NDArray[Any]:
    """Values over the whole range of an integer, 0 to 255 for a float; 1 for a free dimension."""
    shape = [max(1, size) for size in spec.shape]
    if spec.dtype.value.startswith("float"):
        return random.uniform(0, 255, shape).astype(spec.dtype.value)
    bounds = np.iinfo(spec.dtype.value)
    return random.integers(bounds.min, bounds.max, shape, dtype=spec.dtype.value, endpoint=True)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if not FILES:
        pytest.skip("real models are absent; set NEARFAR_TEST_DATA to their folder")
    folder = tmp_path_factory.mktemp("zoo")
    loaded = [tensors(file, name_of(file.name)) for file in FILES]
    with Lab(folder) as lab:
        yield lab.node("zoo", loaded, flags=["--threads", str(THREADS)])


class Direct:
    """A model called in this process: its random inputs, and what it gives for them."""

    def __init__(self, file: Path) -> None:
        random = np.random.default_rng(20_26)
        with registry.runtime(RUNTIME[file.suffix]).load(file, LoadOptions(threads=THREADS)) as variant:
            self.inputs = {spec.name: random_input(spec, random) for spec in variant.inputs}
            self.names = [spec.name for spec in variant.outputs]
            self.outputs = [np.array(output) for output in variant.infer(self.inputs)]

    def must_equal(self, outputs: Sequence[NDArray[Any]]) -> None:
        for name, want, got in zip(self.names, self.outputs, outputs, strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape), name
            assert self._defined(got).tobytes() == self._defined(want).tobytes(), name

    def _defined(self, output: NDArray[Any]) -> NDArray[Any]:
        """What the engine has written. TFLite_Detection_PostProcess states in its last output how many rows of the
        others it fills, and leaves what was in memory in the rest: there two direct calls differ from each other."""
        if not self.names[-1].startswith("TFLite_Detection_PostProcess") or output.size == 1:
            return output
        return output[:, : int(self.outputs[-1][0])]


class Asker:
    """A client of the mesh in this process, which is no node, with an event loop of its own."""

    def __init__(self, runner: asyncio.Runner, client: nearfar.Client) -> None:
        self._runner = runner
        self._client = client

    def infer(self, model: ModelName, direct: Direct) -> list[NDArray[Any]]:
        inputs = [Tensor.of(name, array) for name, array in direct.inputs.items()]
        answer = self._runner.run(self._client.infer(model, inputs))
        assert [output.name for output in answer.outputs] == direct.names
        return [np.array(output.array()) for output in answer.outputs]


@pytest.fixture(scope="module")
def asker(zoo: Node) -> Iterator[Asker]:
    flags = {"home": str(zoo.home), "mesh.fleet": zoo.fleet, "mesh.discover": False}
    with asyncio.Runner() as runner:
        connection = nearfar.connect(load(flags, env={}))
        client = runner.run(connection.__aenter__())
        yield Asker(runner, client)
        runner.run(connection.__aexit__(None, None, None))


@each_model
def test_through_gateway_and_mesh(zoo: Node, asker: Asker, file: Path) -> None:
    direct = Direct(file)
    model = name_of(file.name)
    direct.must_equal(over_http(zoo, model, direct, binary=True))
    if all(np.isfinite(output).all() for output in direct.outputs):  # JSON has no word for the others
        direct.must_equal(over_http(zoo, model, direct, binary=False))
    direct.must_equal(asker.infer(ModelName(model), direct))  # over the network engine: no door is known yet
    direct.must_equal(asker.infer(ModelName(model), direct))  # through the door, when it was found meanwhile


def over_http(node: Node, model: str, direct: Direct, *, binary: bool) -> list[NDArray[Any]]:
    client = triton.InferenceServerClient(node.url.removeprefix("http://"), network_timeout=60)
    inputs = []
    for name, array in direct.inputs.items():
        tensor = triton.InferInput(name, list(array.shape), oip.OIP_NAMES[Tensor.of(name, array).dtype])
        inputs.append(tensor.set_data_from_numpy(array, binary_data=binary))
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in direct.names]
    try:
        answer = client.infer(model, inputs, outputs=outputs)
        return [answer.as_numpy(name) for name in direct.names]
    finally:
        client.close()
