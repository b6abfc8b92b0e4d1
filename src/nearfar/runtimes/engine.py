"""What every engine needs before it is imported, and how its exceptions become ours."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from nearfar.errors import RuntimeUnavailable

_ENVIRONMENT = {
    # Idle worker threads that spin starve everything else on a busy host.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Since 1.31 onnxruntime's wheel for Linux reports to its maker from its import on: an id of the device and what is
    # loaded. Nothing of a node may leave the fleet.
    "ORT_DISABLE_TELEMETRY": "1",
}
_REPORTERS = ("openvino_telemetry",)
"""Packages through which an engine reports to its maker, and without which it runs as well. `import openvino` keeps an
id in `~/intel` and posts to Google Analytics, unless a file there says no, or this package cannot be imported."""


def prepare_environment() -> None:
    """Set what engines read from the environment when they are imported; what the user has set stays. Packages that
    report cannot be imported afterwards."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _REPORTERS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: Python's own way to forbid an import


def installed(module: str) -> bool:
    """Whether the engine's module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package that is broken or half there
        return False


def load_engine(module: str, install: str) -> ModuleType:
    """Import an engine. Raises `RuntimeUnavailable` that says what to install, or why the import failed."""
    prepare_environment()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise RuntimeUnavailable(f"{module} is not installed.", f"Type: {install}") from error
        raise RuntimeUnavailable(f"{module} cannot be imported: {error}.", f"Type: {install}") from error
    except Exception as error:  # a wheel for another CPU or C library fails in many ways
        raise RuntimeUnavailable(f"{module} cannot be imported: {one_line(error)}.", f"Type: {install}") from error


def one_line(error: BaseException, limit: int = 300) -> str:
    """A foreign exception's words on one line, without its C++ source positions where they lead."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words.rstrip(".") if len(words) <= limit else words[: limit - 3] + "..."
