"""The models inside the package: readable, whole, and in the form that the manifest reference describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar.errors import ManifestError
from nearfar.models import embedded
from nearfar.models.store import Store


@pytest.mark.parametrize("name", sorted(embedded.folders()))
def test_each_is_whole_and_cannot_be_removed(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store")
    model = store.get(name)
    assert model.embedded
    assert store.verify(name) == {}
    assert name in [m.name for m in store.list()]
    assert model.manifest.licence
    with pytest.raises(ManifestError, match="embedded"):
        store.remove(name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(KeyError):
        embedded.read("absent")
