"""Look at a model file in a process of its own: a hostile file may crash an engine, and must not take the caller along.

`python -m nearfar.runtimes.inspect FILE` prints an inspection or a failure as one line of JSON; with `--answer` behind
it a second one: the file's answer to the question of the self-test (`known_answer.py`), or why there is none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from nearfar.errors import ModelFileError, NearfarError, by_code
from nearfar.limits import usable_memory
from nearfar.runtimes import known_answer, registry
from nearfar.runtimes.base import LoadOptions, OutputForms
from nearfar.runtimes.text import TextFacts, TextRuntime
from nearfar.types.tensor import TensorSpec

_LEAST_ADDRESSES = 4 * 1024**3
"""Engines reserve far more addresses than they use memory."""


class Finding(msgspec.Struct, frozen=True):
    """What the child says: `code` is empty when it found a runtime."""

    runtime: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    text: TextFacts | None = None
    code: str = ""
    message: str = ""
    hint: str = ""


class Learned(msgspec.Struct, frozen=True):
    """The answer as text for the store, "" with the reason why there is none."""

    answer: str = ""
    reason: str = ""


def inspect_isolated(path: Path, timeout: float = 120.0) -> registry.Inspection:
    """As `registry.inspect_here`, in a child process, `timeout` seconds at most.

    Raises what `inspect_here` raises, and `ModelFileError` when the engine crashed on the file or never came back.
    """
    return _isolated(path, timeout, ())[0]


def learn_isolated(path: Path, timeout: float = 120.0) -> tuple[registry.Inspection, Learned]:
    """As `inspect_isolated`, and what the file answers to the question of the self-test.

    An engine that crashes, hangs or fails over the question costs the answer, not the inspection.
    """
    found, lines, end = _isolated(path, timeout, ("--answer",))
    try:
        return found, msgspec.json.decode(lines[0], type=Learned)
    except (ValueError, IndexError):
        return found, Learned(reason=f"asked the question, the engine {end}")


def _isolated(path: Path, timeout: float, flags: tuple[str, ...]) -> tuple[registry.Inspection, list[bytes], str]:
    """The inspection, further lines that were said, and how the process ended."""
    command = [sys.executable, "-m", "nearfar.runtimes.inspect", str(path), *flags]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
        out, err, end = done.stdout, done.stderr, f"ended with exit {done.returncode}"
    except subprocess.TimeoutExpired as late:
        out, err, end = late.stdout or b"", b"", f"was not done in {timeout:.0f} s"
        if not out:
            raise ModelFileError(
                f"No engine got done with {path.name} in {timeout:.0f} s.", "Export it again."
            ) from None
    lines = out.split(b"\n")
    try:
        finding = msgspec.json.decode(lines[0], type=Finding)
    except ValueError:  # not JSON, not UTF-8
        said = err.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise ModelFileError(
            f"An engine crashed on {path.name} ({end.removeprefix('ended with ')}: {said[0]}).", "Do not use this file."
        ) from None
    if finding.code:
        raise by_code(finding.code)(finding.message, finding.hint)
    return registry.Inspection(finding.runtime, finding.inputs, finding.outputs, finding.text), lines[1:], end


def limit_memory() -> None:
    """Let this process have half of the machine, at least 4 GiB of addresses: a file of 300 bytes may ask for all."""
    import resource

    most = max(_LEAST_ADDRESSES, usable_memory().value // 2)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


def learn_here(path: Path, name: str) -> Learned:
    """The file's answer with the runtime that loads it, in this process."""
    if isinstance(registry.runtime(name), TextRuntime):
        return Learned(reason="a language model is asked for its first answer when it starts")
    if name == "fake":
        return Learned(reason="what a fake answers depends on how often it was asked")
    try:
        with registry.runtime(name).load(path, LoadOptions()) as variant:
            forms = OutputForms(variant.outputs)

            def ask(inputs: known_answer.Arrays) -> Sequence[NDArray[Any]]:
                outputs = variant.infer(inputs)
                forms.check(outputs)
                return outputs

            shapes = known_answer.shapes_of(variant.inputs)
            return Learned(known_answer.encode(known_answer.learn(ask, variant.inputs, shapes, by=name)))
    except NearfarError as error:
        return Learned(reason=error.message)
    except (ValueError, MemoryError) as error:
        return Learned(reason=str(error) or type(error).__name__)


def main(path: str, answer: bool = False) -> None:
    limit_memory()
    try:
        found = registry.inspect_here(Path(path))
        finding = Finding(found.runtime, found.inputs, found.outputs, found.text)
    except NearfarError as error:
        finding = Finding(code=error.code, message=error.message, hint=error.hint)
    _say(finding)
    if answer and not finding.code:
        _say(learn_here(Path(path), finding.runtime))


def _say(line: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()  # whatever the next step does to this process


if __name__ == "__main__":
    main(sys.argv[1], "--answer" in sys.argv[2:])
