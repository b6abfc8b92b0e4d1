"""Runtimes by name: short names, `module:attr`, entry points; and what a file is."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ModelFileError, NearfarError, RuntimeUnavailable
from nearfar.limits import usable_memory
from nearfar.runtimes import accelerators, inspect, registry
from nearfar.runtimes.base import LoadedVariant, LoadOptions, Runtime
from nearfar.runtimes.fake import FakeRuntime
from nearfar.runtimes.modelfile import check_tflite, format_of
from nearfar.types.tensor import DType
from tests.runtimes import tiny


class Mine(FakeRuntime):
    """A plug-in as a third party writes it."""

    name = "mine"


class NeedsAnArgument(Mine):
    def __init__(self, argument: str) -> None: ...


NOT_A_RUNTIME = object


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_built_in_comes_by_its_short_name(name: str) -> None:
    assert registry.runtime(name).name == name


def test_a_plug_in_comes_by_its_place() -> None:
    assert isinstance(registry.runtime(f"{__name__}:Mine"), Mine)


def test_a_plug_in_comes_by_its_entry_point_and_cannot_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
        assert group == "nearfar.runtimes"
        place = f"{__name__}:Mine"
        return tuple(importlib.metadata.EntryPoint(name, place, group) for name in ("mine", "onnx"))

    monkeypatch.setattr(importlib.metadata, "entry_points", offered)
    assert isinstance(registry.runtime("mine"), Mine)
    assert not isinstance(registry.runtime("onnx"), Mine)
    assert [entry.name for entry in registry.installed()] == [*registry.BUILT_IN, "mine"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("onxn", "Did you mean 'onnx'"),
        ("zzz", f"Known are: {', '.join(registry.BUILT_IN)}"),
        ("no.such.module:Thing", "no.such.module"),
        (f"{__name__}:Absent", "Absent"),
        (f"{__name__}:NeedsAnArgument", "argument"),
        (f"{__name__}:NOT_A_RUNTIME", "not a runtime"),
        (":", "cannot be made"),
        ("", "Known are"),
    ],
)
def test_a_name_that_leads_nowhere_says_so(name: str, says: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=says):
        registry.runtime(name)


def test_an_engine_that_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nearfar.runtimes.engine.installed", lambda module: False)
    for entry in registry.installed():
        if entry.name in registry.FAKES:
            assert entry.reason == ""
        else:
            assert "pip install" in entry.reason
            assert entry.runtime is not None
            assert entry.runtime.units() == ()
    assert registry.able("onnx") == []
    with pytest.raises(RuntimeUnavailable, match=r"format 'onnx'.*pip install"):
        registry.inspect_here(tiny.onnx_add(tmp_path / "m.onnx"))


def test_an_engine_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, runtime in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(RuntimeUnavailable, match=f"{module}.*pip install"):
            registry.runtime(runtime).load(tiny.onnx_add(tmp_path / "m.onnx"))


def test_a_broken_plug_in_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUILT_IN", {"broken": "no.such:Thing", "fake": registry.BUILT_IN["fake"]})
    entries = {entry.name: entry for entry in registry.installed()}
    assert entries["broken"].runtime is None
    assert "no.such" in entries["broken"].reason
    assert entries["fake"].runtime is not None


def test_choosing_a_runtime_imports_only_its_own_file_and_no_engine() -> None:
    code = (
        "import sys; from nearfar.runtimes.registry import installed, runtime; runtime('fake'); a = set(sys.modules);"
        "runtime('onnx').available(); installed();"
        "print([m for m in ('nearfar.runtimes.onnx', 'nearfar.runtimes.litert') if m in a],"
        "[m for m in ('onnxruntime', 'ai_edge_litert', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_idle_threads_are_told_to_sleep_before_an_engine_is_imported(tmp_path: Path) -> None:
    path = tiny.onnx_add(tmp_path / "m.onnx")
    code = (
        "import os, sys; from pathlib import Path; from nearfar.runtimes.registry import runtime;"
        f"runtime('onnx').load(Path({str(path)!r})); print(os.environ['OMP_WAIT_POLICY'])"
    )
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for env, expected in ((clean, "PASSIVE"), ({**clean, "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == expected


def test_every_unit_of_every_engine_is_listed_for_the_device() -> None:
    units = registry.all_units()
    assert ("onnx", "cpu") in {(name, unit.name) for name, unit in units}
    assert registry.FAKES.isdisjoint(name for name, _ in units)


def test_an_accelerator_that_no_runtime_drives_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.idle_accelerators() == []
    monkeypatch.setattr(accelerators, "coral", lambda: "/dev/apex_0")
    monkeypatch.setattr(accelerators, "nvidia", lambda: "/dev/nvidia0")
    coral, cuda = registry.idle_accelerators()
    assert "/dev/apex_0" in coral
    assert "libedgetpu" in coral
    assert "pip install onnxruntime-gpu" in cuda


def test_a_small_file_cannot_ask_for_all_the_memory(tmp_path: Path) -> None:
    code = (
        "import resource; from nearfar.runtimes.inspect import limit_memory; limit_memory();"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == max(4 * 1024**3, usable_memory().value // 2)


def test_a_file_is_inspected_in_a_child_process(tmp_path: Path) -> None:
    found = registry.inspect_file(tiny.onnx_add(tmp_path / "blob"))
    assert found.runtime == "onnx"
    assert [(spec.name, spec.dtype, spec.shape) for spec in found.inputs] == [
        ("a", DType.FLOAT32, (1, 4)),
        ("b", DType.FLOAT32, (1, 4)),
    ]
    name, inputs, outputs, text = registry.inspect_file(tiny.fake_identity(tmp_path / "fake"))
    assert (name, len(inputs), len(outputs), text) == ("fake", 2, 2, None)


def test_what_no_runtime_loads_comes_back_from_the_child_as_our_error(tmp_path: Path) -> None:
    path = tiny.onnx_add(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ModelFileError, match=r"No runtime loads m\.onnx\. onnx: .*"):
        registry.inspect_file(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        registry.inspect_file(tmp_path / "absent")


def test_an_engine_that_crashes_on_a_file_takes_nobody_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", _script(tmp_path, "kill -SEGV $$"))
    with pytest.raises(ModelFileError, match=r"crashed on m\.onnx \(exit -11"):
        inspect.inspect_isolated(tmp_path / "m.onnx")


def test_an_engine_that_hangs_on_a_file_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", _script(tmp_path, "exec sleep 600"))
    with pytest.raises(ModelFileError, match="No engine got done"):
        inspect.inspect_isolated(tmp_path / "m.onnx", timeout=0.2)


def _script(folder: Path, line: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x1c\0\0\0TFL3" + bytes(40), "tflite"),
        (b'<?xml version="1.0"?>\n<net name="x" version="11">', "openvino"),
        (b'\xef\xbb\xbf<net name="x">', "openvino"),
        (b'format = "nearfar-fake"\n', "fake"),
        (b'{"format": "nearfar-fake"}', "fake"),
        (b"\x08\x08\x12\x04test", "onnx"),
    ],
)
def test_formats_are_told_by_content(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(content)
    assert format_of(path) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_of_some_format_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    for look in (format_of, check_tflite):
        try:
            look(path)
        except NearfarError as error:
            assert error.hint


def test_a_tflite_head_whose_root_lies_outside_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\xff\xff\0\0TFL3" + bytes(100))
    with pytest.raises(ModelFileError, match="truncated"):
        check_tflite(path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelFileError, match="Permission denied"):
        format_of(tmp_path / "m.onnx")


def test_the_seam_is_what_a_plug_in_must_fill() -> None:
    assert set(Runtime.__abstractmethods__) == {"available", "units", "load"}
    assert set(LoadedVariant.__abstractmethods__) == {"infer", "close"}
    assert LoadOptions() == LoadOptions(threads=1, unit="cpu")
