"""How far rounding moves the answer to the self-test's question, how far off nonsense is, and what the checks cost.

What is measured, for the embedded models and for every .onnx and .tflite below `--models`: the answer is recorded as
`nearfar models add` does (`runtimes/known_answer.py`), then given again by what may stand in for another machine: one
and two threads, ONNX Runtime without any graph optimisation, LiteRT's reference kernels without a delegate. `off` is
the root mean square of the differences in standard deviations of the recorded values, the largest over the outputs;
0.5 is allowed. All zeros are held against the same record. Models that no installed runtime loads are left out by name.
Then the time of `OutputForms.check` for one output, beside that of taking and giving back an idle lock, in the same
run: the least that anything between two threads costs. Repetitions: best of 7 times 20,000.
Run: python benchmarks/selftest.py [--models FOLDER]
"""

from __future__ import annotations

import argparse
import json
import threading
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import NearfarError
from nearfar.models import embedded
from nearfar.runtimes import registry
from nearfar.runtimes.base import LoadedVariant, LoadOptions, OutputForms
from nearfar.runtimes.known_answer import Arrays, KnownAnswer, compare, learn, question, shapes_of
from nearfar.types.tensor import DType, TensorSpec

NUMBER, REPEAT = 20_000, 7


def off(known: KnownAnswer, outputs: Sequence[NDArray[Any]]) -> float:
    worst = 0.0
    for want, have in zip(known.outputs, outputs, strict=True):
        if want.values:
            expected = np.array(want.values)
            values = have.reshape(-1)[list(want.places)].astype(np.float64)
            scale = expected.std() or want.std or abs(expected.mean()) or 1.0
            worst = max(worst, float(np.sqrt(np.mean((values - expected) ** 2)) / scale))
    return worst


def plain_onnx(path: Path, loaded: LoadedVariant, inputs: Arrays) -> list[NDArray[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run([spec.name for spec in loaded.outputs], dict(inputs)))


def reference_litert(path: Path, loaded: LoadedVariant, inputs: Arrays) -> list[NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from nearfar.runtimes.litert import LoadedLiteRt

    kernels = OpResolverType.BUILTIN_REF
    interpreter = Interpreter(str(path), experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    return list(LoadedLiteRt(interpreter, path.name).infer(inputs))


def look_at(path: Path) -> dict[str, Any]:
    name = registry.inspect_here(path).runtime
    row: dict[str, Any] = {"file": path.name, "runtime": name}
    with registry.runtime(name).load(path, LoadOptions(threads=1)) as loaded:
        shapes = shapes_of(loaded.inputs)
        known = learn(loaded.infer, loaded.inputs, shapes, name)
        asked = question(loaded.inputs, shapes)
        answers = {"again": loaded.infer(asked)}
        other = plain_onnx if name == "onnx" else reference_litert
        answers["other kernels"] = other(path, loaded, asked)
        with registry.runtime(name).load(path, LoadOptions(threads=2)) as two:
            answers["two threads"] = two.infer(asked)
        for what, outputs in answers.items():
            row[what] = round(off(known, outputs), 4)
            row["refused"] = row.get("refused", "") or compare(known, outputs)
        row["zeros noticed"] = bool(compare(known, [np.zeros_like(o) for o in answers["again"]]))
    return row


def microseconds(call: Any) -> float:
    return 1e6 * min(timeit.repeat(call, number=NUMBER, repeat=REPEAT)) / NUMBER


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, action="append", default=[])
    args = parser.parse_args()
    files = list(embedded.read("yard")[1].values())
    for folder in args.models:
        files += sorted(p for p in folder.rglob("*") if p.suffix in (".onnx", ".tflite"))
    rows, left_out = [], []
    for path in files:
        try:
            rows.append(look_at(path))
        except (NearfarError, ValueError, RuntimeError) as error:
            left_out.append(f"{path.name}: {error}"[:120])
            continue
        print(rows[-1])
    lock = threading.Lock()

    def take() -> None:
        with lock:
            pass

    array = np.zeros((1, 100, 85), np.float32)
    fixed = OutputForms([TensorSpec("y", DType.FLOAT32, (1, 100, 85))])
    free = OutputForms([TensorSpec("y", DType.FLOAT32, (1, -1, 85))])
    kernels = [row["other kernels"] for row in rows]
    summary = {
        "models": len(rows),
        "left_out": left_out,
        "refused": [row["file"] for row in rows if row["refused"]],
        "zeros_not_noticed": [row["file"] for row in rows if not row["zeros noticed"]],
        "off_by_threads_most": max(max(row["again"], row["two threads"]) for row in rows),
        "off_by_kernels_most": max(kernels),
        "off_by_kernels_at_most_0.02": sum(value <= 0.02 for value in kernels),
        "lock_us": round(microseconds(take), 3),
        "check_fixed_us": round(microseconds(lambda: fixed.check([array])), 3),
        "check_free_us": round(microseconds(lambda: free.check([array])), 3),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
