"""Pulling from a hub: a real one on the loopback, a closed door, and whatever may differ from what was promised."""

from __future__ import annotations

import hashlib
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nearfar.errors import PullError, StoreError
from nearfar.models.adding import AddOptions
from nearfar.models.pull import parse_reference, pull
from nearfar.models.store import Store
from nearfar.types.tensor import DType, TensorSpec
from tests.models.hub import COMMIT, Hub, serving

pytest.importorskip("huggingface_hub")

DATA = b"a model" * 100
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


def inspect(path: Path) -> tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return (
        "onnx",
        (TensorSpec("x", DType.FLOAT32, (1, 3, 416, 416)),),
        (TensorSpec("y", DType.FLOAT32, (1, 3549, 85)),),
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    played = Hub()
    played.add("owner/repo", "onnx/nano.onnx", DATA)
    with serving(played) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield played


def test_a_file_is_pulled_checked_and_added(hub: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    manifest = pull("hf:owner/repo/onnx/nano.onnx", store, inspect, SHA256.upper())
    assert manifest.name == "nano"
    assert manifest.decoder is not None
    source = {"source": "hf:owner/repo/onnx/nano.onnx", "commit": COMMIT, "sha256": SHA256}
    assert {k: manifest.provenance[k] for k in source} == source
    assert store.get("nano").open("onnx-fp32").read_bytes() == DATA
    assert [p.name for p in store.root.iterdir() if p.name.startswith(".pull")] == []
    assert any(COMMIT in request for request in hub.requests if request.startswith("GET"))


def test_a_revision_and_options_are_respected(hub: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    pull(f"hf:owner/repo/onnx/nano.onnx@{COMMIT}", store, inspect, options=AddOptions(name="cams", licence="MIT"))
    assert store.get("cams").manifest.licence == "MIT"


def test_a_file_called_model_is_named_after_its_repository(hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/repo", "model.onnx", DATA)
    assert pull("hf:owner/repo/model.onnx", Store(tmp_path / "store"), inspect).name == "repo"


@pytest.mark.parametrize(("expected", "stated", "who"), [(OTHER, None, "You asked for"), (None, OTHER, "The hub says")])
def test_another_checksum_is_refused_and_nothing_is_kept(
    hub: Hub, tmp_path: Path, expected: str | None, stated: str | None, who: str
) -> None:
    hub.add("owner/repo", "onnx/nano.onnx", DATA, stated)
    store = Store(tmp_path / "store")
    with pytest.raises(PullError, match=f"sha256 is {SHA256}.*{who} {OTHER}.*do not trust"):
        pull("hf:owner/repo/onnx/nano.onnx", store, inspect, expected)
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:owner/repo/absent.onnx", r"owner/repo has no file 'absent\.onnx' at 'main'.*Check the path"),
        ("hf:owner/repo/onnx/nano.onnx@v9", r"has no revision 'v9'.*Leave @"),
        ("hf:owner/absent/x.onnx", r"no repository 'owner/absent'.*HF_TOKEN"),
    ],
)
def test_what_is_not_there_is_told_apart(hub: Hub, tmp_path: Path, reference: str, message: str) -> None:
    with pytest.raises(PullError, match=message):
        pull(reference, Store(tmp_path / "store"), inspect)


def test_a_hub_that_fails_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.broken = 418
    with pytest.raises(PullError, match=r"the hub answered 418.*nearfar models add FILE"):
        pull("hf:owner/repo/onnx/nano.onnx", Store(tmp_path / "store"), inspect)


def test_offline_says_so_and_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Bound but not listening: the port stays ours, and every connection is refused.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(PullError, match=r"cannot be reached.*offline\?.*nearfar models add FILE"):
            pull("hf:owner/repo/x.onnx", Store(tmp_path / "store"), inspect)
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def test_a_file_that_breaks_off_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.cut = True
    store = Store(tmp_path / "store")
    with pytest.raises(PullError, match="nearfar models add FILE"):
        pull("hf:owner/repo/onnx/nano.onnx", store, inspect)
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


def test_a_file_larger_than_the_disk_is_refused_before_it_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nearfar.models.pull.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(StoreError, match=r"needs 1\.4 KiB \(1400 bytes\) while it is pulled, 9 B are free"):
        pull("hf:owner/repo/onnx/nano.onnx", Store(tmp_path / "store"), inspect)
    assert not any(request.startswith("GET") for request in hub.requests)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PullError, match=r"pip install 'nearfar\[hub\]'"):
        pull("hf:owner/repo/x.onnx", Store(tmp_path / "store"), inspect)


def test_a_store_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "blocker").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be kept"):
        pull("hf:owner/repo/onnx/nano.onnx", Store(tmp_path / "blocker" / "store"), inspect)


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "hf:",
        "hf:owner/repo",
        "hf:owner/repo/",
        "owner/repo/x.onnx",
        "hf:owner/repo/../x.onnx",
        "hf:owner/../repo/x.onnx",
        "hf:owner/repo//x.onnx",
        "hf:owner/repo/x.onnx@",
        "hf:owner/repo/x.onnx@../main",
        "hf:owner/re po/x.onnx",
        "s3:bucket/x.onnx",
    ],
)
def test_what_is_no_reference_is_refused_with_the_form(reference: str) -> None:
    with pytest.raises(PullError, match=r"hf:owner/repo/path/file\.onnx"):
        parse_reference(reference)


def test_web_addresses_are_refused_with_another_way() -> None:
    with pytest.raises(PullError, match=r"web address.*nearfar models add FILE"):
        parse_reference("https://example.com/x.onnx")


def test_a_checksum_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PullError, match="is no sha256"):
        pull("hf:owner/repo/x.onnx", Store(tmp_path / "store"), inspect, "abc")
