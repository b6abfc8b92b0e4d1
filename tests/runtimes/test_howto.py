"""The how-to for plug-ins runs as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from nearfar.errors import InferenceError, ModelFileError
from nearfar.runtimes import registry
from nearfar.runtimes.fake import FakeModel, read_fake
from nearfar.runtimes.faketext import read_fake_text

PAGE = Path(__file__).parents[2] / "docs" / "how-to-add-a-runtime.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_plug_in_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "howto_table.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        table = registry.runtime("howto_table:TableRuntime")
        path = tmp_path / "blob"
        with path.open("wb") as file:
            np.save(file, np.eye(3, 2, dtype=np.float32) * 2)
        with table.load(path) as variant:
            (y,) = variant.infer({"x": np.ones((1, 3), np.float32)})
            assert y.tolist() == [[2, 2]]
        with pytest.raises(InferenceError):
            variant.infer({})
        path.write_bytes(b"")
        with pytest.raises(ModelFileError):
            table.load(path)
    finally:
        sys.modules.pop("howto_table", None)


def test_the_fake_of_the_page_loads(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(next(block for block in blocks("toml") if '"nearfar-fake"' in block))
    model: FakeModel = read_fake(path)
    assert model.crash_at == 50


def test_the_fake_of_a_language_engine_loads(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(next(block for block in blocks("toml") if "nearfar-fake-text" in block))
    assert read_fake_text(path).says[0].text == "Paris."


def test_every_built_in_is_named_on_the_page() -> None:
    for name in registry.BUILT_IN:
        assert f"`{name}`" in PAGE.read_text()
