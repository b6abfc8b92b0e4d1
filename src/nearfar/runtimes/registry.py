"""Runtimes by name. Built-ins come the way a plug-in comes, and each is imported only when it is chosen."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nearfar.errors import ModelFileError, RuntimeUnavailable
from nearfar.runtimes import accelerators
from nearfar.runtimes.base import LoadOptions, Runtime
from nearfar.runtimes.engine import one_line
from nearfar.runtimes.modelfile import format_of
from nearfar.runtimes.text import TextFacts, TextRuntime
from nearfar.types.telemetry import ComputeUnit
from nearfar.types.tensor import TensorSpec

GROUP = "nearfar.runtimes"
"""Entry point group in which a package offers a runtime of its own."""

BUILT_IN: Mapping[str, str] = {
    "onnx": "nearfar.runtimes.onnx:OnnxRuntime",
    "litert": "nearfar.runtimes.litert:LiteRtRuntime",
    "openvino": "nearfar.runtimes.openvino:OpenVinoRuntime",
    "llamacpp": "nearfar.runtimes.llamacpp:LlamaCppRuntime",
    "openvino-genai": "nearfar.runtimes.openvino_genai:OpenVinoGenAiRuntime",
    "remote": "nearfar.runtimes.remote.runtime:RemoteRuntime",
    "fake": "nearfar.runtimes.fake:FakeRuntime",
    "faketext": "nearfar.runtimes.faketext:FakeTextRuntime",
}
"""In the order in which they are tried for a file that several of them load."""
FAKES = frozenset({"fake", "faketext"})
"""Built-ins without an engine, for tests; no device has units for them."""


class Installed(NamedTuple):
    """A known runtime; `runtime` is None when it could not even be imported."""

    name: str
    runtime: Runtime | None
    reason: str
    """Empty when it can be used, else why not and what to install."""


class Inspection(NamedTuple):
    """Which runtime loads a file, and what the model takes and gives."""

    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    text: TextFacts | None = None
    """Of a language model, which takes no tensors."""


def known() -> dict[str, str]:
    """Every short name and the `module:attr` behind it. A plug-in cannot take a built-in's name."""
    offered = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=GROUP)}
    return {**BUILT_IN, **{name: value for name, value in offered.items() if name not in BUILT_IN}}


def runtime(name: str) -> Runtime:
    """The runtime of a short name, of an entry point's name, or of `module:attr` (a class without arguments).

    Raises `RuntimeUnavailable` for a name that is unknown (with the nearest one) or that leads to no runtime.
    Whether its engine is there is for `available()` to say.
    """
    names = known()
    place = name if ":" in name else names.get(name)
    if place is None:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(names)}; or give module:attr."
        raise RuntimeUnavailable(f"There is no runtime {name!r}.", hint)
    return _make(name, place)


def installed() -> list[Installed]:
    """Every known runtime with the reason why it cannot be used, if it cannot. Imports no engine."""
    found: list[Installed] = []
    for name, place in known().items():
        try:
            made = _make(name, place)
            found.append(Installed(name, made, made.available() or ""))
        except RuntimeUnavailable as error:
            found.append(Installed(name, None, str(error)))
    return found


def all_units() -> list[tuple[str, ComputeUnit]]:
    """(runtime name, unit) of every usable runtime, for `devices.detect`. Imports the engines: about half a second."""
    return [
        (entry.name, unit)
        for entry in installed()
        if entry.runtime is not None and not entry.reason and entry.name not in FAKES
        for unit in entry.runtime.units()
    ]


def idle_accelerators() -> list[str]:
    """Accelerators that are plugged in but that no runtime here can drive, each with what to install."""
    units = {unit.name for _, unit in all_units()}
    found: list[str] = []
    if "coral" not in units and (place := accelerators.coral()):
        found.append(f"a Coral Edge TPU is at {place}, but LiteRT with {accelerators.EDGETPU} is not installed")
    if "cuda" not in units and (place := accelerators.nvidia()):
        found.append(f"an NVIDIA GPU is at {place}, but onnxruntime has no CUDA here: pip install onnxruntime-gpu")
    return found


def able(model_format: str) -> list[str]:
    """Names of the usable runtimes that load a format, in the order in which to try them."""
    return [
        entry.name
        for entry in installed()
        if entry.runtime is not None and not entry.reason and model_format in entry.runtime.formats
    ]


def inspect_file(path: Path) -> Inspection:
    """Load a model file with the first runtime that can, and say what the model takes and gives.

    Done in a child process (about half a second), since a hostile file may crash an engine. Raises as `inspect_here`,
    and `ModelFileError` when an engine crashed.
    """
    from nearfar.runtimes.inspect import inspect_isolated

    return inspect_isolated(path)


def inspect_here(path: Path) -> Inspection:
    """`inspect_file` in this process, for a file that is trusted.

    Raises `ModelFileError` with what every runtime said, `RuntimeUnavailable` when none is
    installed for the format.
    """
    model_format = format_of(path)
    names = able(model_format)
    if not names:
        takers = [entry for entry in installed() if entry.runtime and model_format in entry.runtime.formats]
        hint = " ".join(entry.reason for entry in takers) or "Install a runtime for it."
        raise RuntimeUnavailable(f"No runtime here loads the format {model_format!r}.", hint)
    said: list[str] = []
    for name in names:
        try:
            engine = runtime(name)
            if isinstance(engine, TextRuntime):
                return Inspection(name, (), (), engine.facts(path))
            with engine.load(path, LoadOptions()) as variant:
                return Inspection(name, variant.inputs, variant.outputs)
        except (ModelFileError, RuntimeUnavailable) as error:
            said.append(f"{name}: {error.message}")
    raise ModelFileError(f"No runtime loads {path.name}. {' '.join(said)}", "Export it again.")


def _make(name: str, place: str) -> Runtime:
    module, _, attr = place.partition(":")
    try:
        made = getattr(importlib.import_module(module), attr)()
    except Exception as error:  # somebody else's module may fail in any way
        raise RuntimeUnavailable(
            f"The runtime {name!r} ({place}) cannot be made: {type(error).__name__}: {one_line(error)}.",
            "Check the name and that its package is installed.",
        ) from error
    if not isinstance(made, Runtime):
        raise RuntimeUnavailable(
            f"{place} is a {type(made).__name__}, not a runtime.", "Derive it from nearfar.runtimes.base.Runtime."
        )
    return made
