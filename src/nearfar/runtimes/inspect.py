"""Look at a model file in a process of its own: a hostile file may crash an engine, and must not take the caller along.

`python -m nearfar.runtimes.inspect FILE` prints one JSON object: an inspection, or a failure.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from nearfar.errors import ModelFileError, NearfarError, by_code
from nearfar.limits import usable_memory
from nearfar.runtimes import registry
from nearfar.types.tensor import TensorSpec

_LEAST_ADDRESSES = 4 * 1024**3
"""Engines reserve far more addresses than they use memory."""


class Finding(msgspec.Struct, frozen=True):
    """What the child says: `code` is empty when it found a runtime."""

    runtime: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    code: str = ""
    message: str = ""
    hint: str = ""


def inspect_isolated(path: Path, timeout: float = 120.0) -> registry.Inspection:
    """As `registry.inspect_here`, in a child process, `timeout` seconds at most.

    Raises what `inspect_here` raises, and `ModelFileError` when the engine crashed on the file or never came back.
    """
    command = [sys.executable, "-m", "nearfar.runtimes.inspect", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"No engine got done with {path.name} in {timeout:.0f} s.", "Export it again.") from None
    try:
        finding = msgspec.json.decode(done.stdout, type=Finding)
    except ValueError:  # not JSON, not UTF-8
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise ModelFileError(
            f"An engine crashed on {path.name} (exit {done.returncode}: {said[0]}).", "Do not use this file."
        ) from None
    if finding.code:
        raise by_code(finding.code)(finding.message, finding.hint)
    return registry.Inspection(finding.runtime, finding.inputs, finding.outputs)


def limit_memory() -> None:
    """Let this process have half of the machine, at least 4 GiB of addresses: a file of 300 bytes may ask for all."""
    import resource

    most = max(_LEAST_ADDRESSES, usable_memory().value // 2)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


def main(path: str) -> None:
    limit_memory()
    try:
        found = registry.inspect_here(Path(path))
        finding = Finding(found.runtime, found.inputs, found.outputs)
    except NearfarError as error:
        finding = Finding(code=error.code, message=error.message, hint=error.hint)
    sys.stdout.buffer.write(msgspec.json.encode(finding))


if __name__ == "__main__":
    main(sys.argv[1])
