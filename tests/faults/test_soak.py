"""The soak itself: its checkers see what they are there for, and a short run on loopback breaks nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.faults.asker import Book, Stream, _check_tensor
from benchmarks.faults.census import slope
from benchmarks.faults.truth import Truth
from benchmarks.soak import FAULTS, rotation
from nearfar.errors import DeadlineExceeded
from nearfar.types.ids import ServiceId
from nearfar.types.image import ImageKind
from nearfar.types.request import Answer, Stages
from nearfar.types.tensor import Tensor
from nearfar.vision.results import FrameResult, Outcome

ROOT = Path(__file__).parents[2]
X = np.array([[7.0, 0.25, 0.5]], np.float32)


def answered(y: NDArray[Any], datatype: str = "FP32") -> httpx.Response:
    """An answer of the Open Inference Protocol with one binary output."""
    head = json.dumps({"outputs": [{"name": "y", "datatype": datatype, "shape": list(y.shape)}]}).encode()
    headers = {"inference-header-content-length": str(len(head)), "nearfar-served-by": "two/mirror"}
    return httpx.Response(200, headers=headers, content=head + y.tobytes())


def test_a_right_tensor_is_good_and_a_wrong_one_is_a_breach_unless_a_service_is_known_to_lie() -> None:
    book = Book()
    _check_tensor("tensor-1", book, X, answered(X))
    _check_tensor("tensor-1", book, X, answered(X * 0))
    told = book.tell()
    assert told.counts == {"tensor/ok": 1, "tensor/BROKEN": 1} and "wrong answer" in told.broken[0]
    book.exposed = True
    _check_tensor("tensor-1", book, X, answered(X * 0))
    assert book.tell().counts == {"tensor/exposed": 1}


@pytest.mark.parametrize(
    "wrong", [answered(X[:, :2]), answered(X[..., None]), answered(X.astype(np.float64), "FP64")], ids=str
)
def test_another_shape_or_dtype_is_a_breach_also_while_a_service_lies(wrong: httpx.Response) -> None:
    book = Book()
    book.exposed = True
    _check_tensor("tensor-1", book, X, wrong)
    told = book.tell()
    assert told.counts == {"tensor/BROKEN": 1} and "another shape or dtype" in told.broken[0]


def known(tmp_path: Path) -> tuple[Truth, Answer]:
    """A truth of one picture, and the right answer to it."""
    arrays = {
        "boxes": np.array([[1, 2, 3, 4]], np.float32),
        "scores": np.array([0.5], np.float32),
        "class_ids": np.array([1], np.int32),
    }
    file = tmp_path / "truth.npz"
    kept: dict[str, Any] = {f"v|onnx|bgr|{n}|{name}": array for n in range(6) for name, array in arrays.items()}
    np.savez(file, **kept)
    outputs = [Tensor.of(name, array) for name, array in arrays.items()]
    return Truth(file), Answer(outputs, ServiceId("one/yard"), "v", Stages())


def test_a_stream_is_told_of_frames_that_are_wrong_missing_doubled_or_unexplained(tmp_path: Path) -> None:
    truth, right = known(tmp_path)
    shifted = [Tensor.of(t.name, t.array() + 1) for t in right.outputs]
    wrong = Answer(shifted, right.served_by, "v", Stages())
    book = Book()
    stream = Stream("live-1", book, truth)

    def frame(index: int, **fields: Any) -> FrameResult:
        return FrameResult(index, **fields)

    good: dict[str, Any] = {"outcome": Outcome.ANSWERED, "answer": right, "sent": ImageKind.BGR}
    stream.take(frame(0, **good), None)
    stream.take(frame(1, outcome=Outcome.FAILED, error=DeadlineExceeded("late")), None)
    stream.take(frame(2, outcome=Outcome.DROPPED, reason="back-pressure"), None)
    told = book.tell()
    assert not told.broken and told.counts == {"live/ok": 1, "live/deadline-exceeded": 1, "live/dropped": 1}
    stream.take(frame(2, **good), None)
    stream.take(frame(5, **good), None)
    stream.take(frame(6, outcome=Outcome.ANSWERED, answer=wrong, sent=ImageKind.BGR), None)
    stream.take(frame(7, outcome=Outcome.DROPPED), None)
    broken = book.tell().broken
    assert [words.partition(": ")[2].partition(" from")[0] for words in broken] == [
        "frame 2 came where frame 3 was due",
        "frame 5 came where frame 3 was due",
        "wrong detections of frame 6",
        "frame 7 is dropped without a reason",
    ]
    stream.close(SimpleNamespace(summary=SimpleNamespace(accounted=8, read=9)))  # type: ignore[arg-type]
    assert "of 9 frames 8 accounted" in book.tell().broken[0]


def test_a_slope_is_robust_and_a_rotation_plays_all_before_any_comes_twice() -> None:
    assert slope([(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 90.0), (4.0, 5.0)]) == 1.0
    import random

    played = rotation(FAULTS, random.Random(1))
    for _ in range(3):
        assert {next(played).name for _ in FAULTS} == {fault.name for fault in FAULTS}


def test_every_fault_is_listed_and_explained() -> None:
    page = (ROOT / "docs" / "explanation-faults.md").read_text()
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert not [fault.name for fault in FAULTS if f"`{fault.name}`" not in page]


@pytest.mark.slow
def test_a_short_soak_on_loopback_breaks_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.soak",
            "--loopback",
            "--seconds",
            "0",
            "--seed",
            "1",
            "--only",
            "wrong-shape",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
        timeout=400,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and not told["broken"], f"{told['broken']}\n{done.stderr}"
    assert [row["fault"] for row in told["played"]] == ["wrong-shape"]
    assert told["counts"]["tensor/ok"] and told["counts"]["live/ok"] and told["watch"]["frames"]["answered"]
    assert not list(tmp_path.glob("soak-*")), "nothing is left of it"
