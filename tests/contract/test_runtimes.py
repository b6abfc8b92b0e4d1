"""What holds for every runtime. A new engine adds one `Case` and nothing else."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from nearfar.errors import InferenceError, InputError, ModelFileError, NearfarError, RuntimeUnavailable
from nearfar.runtimes import registry
from nearfar.runtimes.base import LoadedVariant, LoadOptions, Runtime, check_inputs
from nearfar.types.tensor import DType
from tests.runtimes import tiny

Arrays = dict[str, NDArray[Any]]


class Case(NamedTuple):
    """A runtime and how to make it a model with the inputs a and b, float32 [batch, 4]."""

    runtime: str
    model: Callable[[Path], Path]
    free: Callable[[Path], Path]
    """The same with a free first dimension."""
    expected: Callable[[NDArray[Any], NDArray[Any]], Sequence[NDArray[Any]]]


def added(a: NDArray[Any], b: NDArray[Any]) -> list[NDArray[Any]]:
    return [a + b]


CASES = [
    Case("onnx", lambda f: tiny.onnx_add(f / "m.onnx"), lambda f: tiny.onnx_add(f / "f.onnx", "n"), added),
    Case("litert", lambda f: tiny.tflite_add(f / "m.tflite"), lambda f: tiny.tflite_add(f / "f.tflite", -1), added),
    Case("openvino", lambda f: tiny.onnx_add(f / "m.onnx"), lambda f: tiny.onnx_add(f / "f.onnx", "n"), added),
    Case(
        "fake",
        lambda f: tiny.fake_identity(f / "m.toml"),
        lambda f: tiny.fake_identity(f / "f.toml", -1),
        lambda a, b: [a, b],
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.runtime)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    reason = registry.runtime(chosen.runtime).available()
    if reason:
        pytest.skip(reason)
    return chosen


@pytest.fixture
def runtime(case: Case) -> Runtime:
    return registry.runtime(case.runtime)


@pytest.fixture
def variant(case: Case, runtime: Runtime, tmp_path: Path) -> LoadedVariant:
    return runtime.load(case.model(tmp_path))


def feed(batch: int = 1, seed: int = 1) -> Arrays:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal((batch, 4)).astype(np.float32) for name in ("a", "b")}


def test_it_has_a_name_formats_and_units_with_reasons(case: Case, runtime: Runtime) -> None:
    assert runtime.name == case.runtime
    assert runtime.formats
    units = runtime.units()
    assert "cpu" in {unit.name for unit in units}
    assert all(unit.reason for unit in units)


def test_specs_are_what_the_file_states(case: Case, runtime: Runtime, variant: LoadedVariant, tmp_path: Path) -> None:
    assert [(s.name, s.dtype, s.shape) for s in variant.inputs] == [
        ("a", DType.FLOAT32, (1, 4)),
        ("b", DType.FLOAT32, (1, 4)),
    ]
    free = runtime.load(case.free(tmp_path))
    assert [s.shape for s in free.inputs] == [(-1, 4), (-1, 4)]
    assert all(s.shape == (-1, 4) for s in free.outputs)


def test_outputs_are_right_and_in_the_order_of_their_specs(case: Case, variant: LoadedVariant) -> None:
    inputs = feed()
    results = variant.infer(inputs)
    expected = case.expected(inputs["a"], inputs["b"])
    assert len(results) == len(variant.outputs) == len(expected)
    for spec, got, want in zip(variant.outputs, results, expected, strict=True):
        assert spec.accepts(DType(got.dtype.name), got.shape)
        np.testing.assert_array_equal(got, want)


def test_the_order_in_which_inputs_come_does_not_matter(variant: LoadedVariant) -> None:
    inputs = feed()
    straight = variant.infer(inputs)
    turned = variant.infer({"b": inputs["b"], "a": inputs["a"]})
    for x, y in zip(straight, turned, strict=True):
        np.testing.assert_array_equal(x, y)


def test_results_are_the_callers_own(case: Case, variant: LoadedVariant) -> None:
    inputs = feed()
    results = variant.infer(inputs)
    kept = [result.copy() for result in results]
    sent = {name: array.copy() for name, array in inputs.items()}
    variant.infer(feed(seed=2))
    for array in inputs.values():
        array[:] = 99  # what the caller does to its own memory does not reach the results either
    variant.close()
    for result, copy in zip(results, kept, strict=True):
        np.testing.assert_array_equal(result, copy)
    assert not np.array_equal(sent["a"], inputs["a"])


def test_inputs_are_left_as_they_were(variant: LoadedVariant) -> None:
    inputs = feed()
    before = {name: array.copy() for name, array in inputs.items()}
    variant.infer(inputs)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


def test_inputs_may_be_read_only_and_strided(case: Case, variant: LoadedVariant) -> None:
    a = np.arange(8, dtype=np.float32).reshape(1, 8)[:, ::2]
    b = np.frombuffer(np.arange(4, dtype=np.float32).tobytes(), np.float32).reshape(1, 4)
    assert not a.flags.c_contiguous
    assert not b.flags.writeable
    for got, want in zip(variant.infer({"a": a, "b": b}), case.expected(a, b), strict=True):
        np.testing.assert_array_equal(got, want)


def test_free_dimensions_take_any_size_and_change_between_calls(case: Case, runtime: Runtime, tmp_path: Path) -> None:
    with runtime.load(case.free(tmp_path)) as variant:
        for batch in (1, 3, 3, 2):
            inputs = feed(batch)
            for got, want in zip(variant.infer(inputs), case.expected(inputs["a"], inputs["b"]), strict=True):
                np.testing.assert_array_equal(got, want)


def test_nan_and_infinity_pass_through_as_data(case: Case, variant: LoadedVariant) -> None:
    inputs = feed()
    inputs["a"][0, 0] = np.nan
    inputs["a"][0, 1] = np.inf
    check_inputs(variant.inputs, inputs)
    for got, want in zip(variant.infer(inputs), case.expected(inputs["a"], inputs["b"]), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"a": np.zeros((1, 4), np.float32)}, "'b' is missing"),
        ({"a": np.zeros((1, 5), np.float32), "b": np.zeros((1, 4), np.float32)}, "'a' is float32[1x5]"),
        ({"a": np.zeros(4, np.float32), "b": np.zeros((1, 4), np.float32)}, "'a' is float32[4]"),
        ({"a": np.zeros((1, 4), np.float32), "b": np.zeros((1, 4), np.float64)}, "'b' is float64[1x4]"),
        ({"a": np.zeros((1, 4), np.float32), "b": np.zeros((1, 4), "U1")}, "'b' is str"),
        ({"a": np.zeros((1, 4), ">f4"), "b": np.zeros((1, 4), np.float32)}, "foreign byte order"),
        ({n: np.zeros((1, 4), np.float32) for n in "abc"}, "no input 'c'"),
        ({}, "'a' is missing"),
    ],
)
def test_what_does_not_fit_is_named_before_the_engine_sees_it(
    variant: LoadedVariant, wrong: Arrays, named: str
) -> None:
    with pytest.raises(InputError, match=named.replace("[", r"\[")):
        check_inputs(variant.inputs, wrong)


@pytest.mark.parametrize("wrong", [{}, {"a": np.zeros((1, 4), np.float32)}], ids=["nothing", "half"])
def test_no_exception_of_the_engine_gets_out(variant: LoadedVariant, wrong: Arrays) -> None:
    with pytest.raises(NearfarError):
        variant.infer(wrong)
    variant.infer(feed())  # and it still works


def test_a_closed_variant_refuses_and_closes_again(variant: LoadedVariant) -> None:
    variant.close()
    variant.close()
    with pytest.raises(InferenceError, match="closed"):
        variant.infer(feed())


def test_a_second_load_of_the_same_file_is_independent(case: Case, runtime: Runtime, tmp_path: Path) -> None:
    path = case.model(tmp_path)
    with runtime.load(path) as kept:
        before = [array.tobytes() for array in kept.infer(feed())]
        runtime.load(path).close()
        assert [array.tobytes() for array in kept.infer(feed())] == before


def test_two_loads_in_two_threads_agree_to_the_bit(case: Case, runtime: Runtime, tmp_path: Path) -> None:
    path = case.model(tmp_path)
    calls = [feed(seed=seed) for seed in range(50)]
    results: dict[int, list[bytes]] = {}
    start = threading.Barrier(2)

    def work(which: int) -> None:
        with runtime.load(path, LoadOptions(threads=1 + which)) as variant:
            start.wait(timeout=60)
            results[which] = [b"".join(array.tobytes() for array in variant.infer(inputs)) for inputs in calls]

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert results[0] == results[1]
    assert len(set(results[0])) == len(calls)  # the comparison means something


def test_a_file_is_known_by_its_content_not_its_suffix(case: Case, runtime: Runtime, tmp_path: Path) -> None:
    blob = tmp_path / "6b86b273ff34fce1"
    blob.write_bytes(case.model(tmp_path).read_bytes())
    with runtime.load(blob) as variant, runtime.load(case.model(tmp_path)) as named:
        assert variant.inputs == named.inputs
        assert [a.tobytes() for a in variant.infer(feed())] == [a.tobytes() for a in named.infer(feed())]


def broken(kind: str, whole: bytes) -> bytes:
    return {
        "empty": b"",
        "one byte": whole[:1],
        "half": whole[: len(whole) // 2],
        "all but the end": whole[:-9],
        "random": random.Random(5).randbytes(3000),
        "zeros": bytes(3000),
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 7\n",
        "html": b"<html><body>404: not found</body></html>",
        "identifier and rubbish": whole[:8] + random.Random(6).randbytes(3000),
    }[kind]


BROKEN = [
    "empty",
    "one byte",
    "half",
    "all but the end",
    "random",
    "zeros",
    "text",
    "html",
    "identifier and rubbish",
]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_model_is_refused(case: Case, runtime: Runtime, tmp_path: Path, kind: str) -> None:
    path = case.model(tmp_path)
    path.write_bytes(broken(kind, path.read_bytes()))
    with pytest.raises(ModelFileError) as caught:
        runtime.load(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_an_absent_file_and_a_folder_are_refused(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.bin"):
        runtime.load(tmp_path / "absent.bin")
    with pytest.raises(ModelFileError, match="folder"):
        runtime.load(tmp_path)


def test_a_unit_that_is_not_there_is_refused(case: Case, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"no unit 'abacus'.*cpu"):
        runtime.load(case.model(tmp_path), LoadOptions(unit="abacus"))
