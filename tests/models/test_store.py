"""The store: what is in it is whole, whoever writes, dies or runs out of disk meanwhile."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nearfar.errors import ManifestError, ModelFileError, StoreError, UnknownModel
from nearfar.models import blobs, embedded
from nearfar.models.manifest import Manifest, Task, Variant
from nearfar.models.store import Store


def described(path: Path, name: str = "thing", variant: str = "onnx-fp32") -> Manifest:
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return Manifest(name, Task.TENSORS, (Variant(variant, "onnx", "fp32", path.name, sha256, len(data)),))


def made(folder: Path, data: bytes = b"model", name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def files_in(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != "lock")


def test_what_is_added_is_there(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)
    manifest = store.add(file, described(file))
    model = store.get("thing")
    assert model.manifest == manifest
    assert not model.embedded
    path = model.open("onnx-fp32")
    assert path.read_bytes() == b"model"
    sha = manifest.variants[0].sha256
    assert files_in(store.root) == [f"blobs/sha256/{sha[:2]}/{sha}", "manifests/thing.toml"]
    assert "thing" in [m.name for m in store.list()]
    assert store.verify("thing") == {}


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)
    store.add(file, described(file))
    before = files_in(store.root)
    store.add(file, described(file))
    assert files_in(store.root) == before


def test_a_second_variant_extends_the_model(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one, two = made(tmp_path, b"one", "1.onnx"), made(tmp_path, b"two", "2.onnx")
    store.add(one, described(one))
    store.add(two, described(two, variant="other"))
    model = store.get("thing")
    assert [v.id for v in model.manifest.variants] == ["onnx-fp32", "other"]
    assert [model.open(v).read_bytes() for v in ("onnx-fp32", "other")] == [b"one", b"two"]


def test_a_variant_that_is_replaced_leaves_no_file_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for data in (b"old", b"new"):
        file = made(tmp_path, data)
        store.add(file, described(file))
    assert store.get("thing").open("onnx-fp32").read_bytes() == b"new"
    assert len(files_in(store.root)) == 2


def test_variants_that_no_longer_fit_are_dropped(tmp_path: Path) -> None:
    import msgspec

    store = Store(tmp_path / "store")
    one, two = made(tmp_path, b"one", "1.onnx"), made(tmp_path, b"two", "2.onnx")
    store.add(one, described(one))
    other = msgspec.structs.replace(described(two, variant="other"), labels=("new",))
    store.add(two, other)
    assert [v.id for v in store.get("thing").manifest.variants] == ["other"]


def test_two_models_share_a_file_until_the_last_one_goes(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)
    store.add(file, described(file, "a"))
    store.add(file, described(file, "b"))
    store.remove("a")
    assert store.verify("b") == {}
    store.remove("b")
    assert files_in(store.root) == []
    with pytest.raises(UnknownModel):
        store.remove("b")


def test_a_file_that_is_not_the_manifests_is_not_kept(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)
    manifest = described(file)
    file.write_bytes(b"other")
    with pytest.raises(ModelFileError, match="the manifest says 5 bytes"):
        store.add(file, manifest)
    assert files_in(store.root) == []


def test_a_changed_file_is_never_opened(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)
    store.add(file, described(file))
    path = store.get("thing").paths["onnx-fp32"]
    path.chmod(0o644)
    for data, message in ((b"mod", "has 3 bytes, not 5"), (b"MODEL", "has the sha256")):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=message):
            store.get("thing").open("onnx-fp32")
        assert message in store.verify("thing")["onnx-fp32"]
    path.unlink()
    with pytest.raises(ModelFileError, match=r"is gone.*add or pull it again"):
        store.get("thing").open("onnx-fp32")
    store.add(file, described(file))  # and it heals
    assert store.verify("thing") == {}


@pytest.mark.parametrize(("asked", "guess"), [("yolo-nano", "yolox-nano"), ("YOLOX-Nano", "yolox-nano")])
def test_an_unknown_model_offers_the_nearest_name(tmp_path: Path, asked: str, guess: str) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)
    store.add(file, described(file, "yolox-nano"))
    with pytest.raises(UnknownModel, match=f"did you mean '{guess}'"):
        store.get(asked)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a/b", "..", "x" * 99, "a\0b"])
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(UnknownModel):
        store.get(name)
    with pytest.raises(UnknownModel):
        store.remove(name)


def test_an_empty_store_lists_what_is_embedded_and_makes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert {m.name for m in store.list()} | set(store.broken()) == set(embedded.folders())
    assert not store.root.exists()


def test_a_broken_manifest_is_named_and_the_others_stay(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)
    store.add(file, described(file, "good"))
    store.add(file, described(file, "bad"))
    path = store.root / "manifests" / "bad.toml"
    for data in (b"schema = [", b"\xff", path.read_bytes().replace(b'"bad"', b'"else"')):
        path.write_bytes(data)
        assert "good" in [m.name for m in store.list()]
        assert "bad.toml" in store.broken()["bad"]
        with pytest.raises(ManifestError, match=r"bad\.toml"):
            store.get("bad")
    store.remove("bad")
    assert store.verify("good") == {}


def test_a_root_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    blocker, file = made(tmp_path, name="blocker"), made(tmp_path)
    with pytest.raises(StoreError, match=r"cannot be written.*NEARFAR_HOME"):
        Store(blocker / "store").add(file, described(file))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    file = made(tmp_path)
    manifest = described(file)
    file.unlink()
    with pytest.raises(ModelFileError, match=r"m\.onnx cannot be read"):
        Store(tmp_path / "store").add(file, manifest)


def _fill(root: str, file: str, prefix: str) -> None:
    for i in range(8):
        Store(Path(root)).add(Path(file), described(Path(file), "shared", f"{prefix}{i}"))


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    root = tmp_path / "store"
    context = multiprocessing.get_context("spawn")
    workers = []
    for prefix in ("a", "b"):
        file = made(tmp_path, prefix.encode() * 1000, f"{prefix}.onnx")
        workers.append(context.Process(target=_fill, args=(str(root), str(file), prefix)))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    store = Store(root)
    ids = {v.id for v in store.get("shared").manifest.variants}
    assert ids == {f"{p}{i}" for p in "ab" for i in range(8)}
    assert store.verify("shared") == {}


def test_two_threads_exclude_each_other(tmp_path: Path) -> None:
    inside = threading.Event()
    done = threading.Event()
    order: list[str] = []

    def second() -> None:
        inside.wait(30)
        with blobs.locked(tmp_path):
            order.append("second")
        done.set()

    thread = threading.Thread(target=second)
    thread.start()
    with blobs.locked(tmp_path):
        inside.set()
        order.append("first")
    assert done.wait(30)
    thread.join()
    assert order == ["first", "second"]


_DIES = """
import os, signal, sys
from pathlib import Path
import nearfar.models.blobs as blobs
from nearfar.models.store import Store
from tests.models.test_store import described
step = sys.argv[3]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "copy":
    def copy(source, partial):
        with partial.open("wb") as file:
            file.write(source.read_bytes()[:3]); file.flush(); die()
    blobs._copy = copy
elif step == "blob":
    blobs.write_text = die
elif step == "manifest":
    real = blobs._into_place
    blobs._into_place = lambda p, t: die() if t.suffix == ".toml" else real(p, t)
file = Path(sys.argv[2])
Store(Path(sys.argv[1])).add(file, described(file))
"""


@pytest.mark.parametrize("step", ["copy", "blob", "manifest"])
def test_a_writer_that_is_killed_half_way_leaves_a_store_that_works(tmp_path: Path, step: str) -> None:
    root, file = tmp_path / "store", made(tmp_path)
    folder = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _DIES, str(root), str(file), step], cwd=folder, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    store = Store(root)
    with pytest.raises(UnknownModel):
        store.get("thing")
    other = made(tmp_path, b"other", "o.onnx")
    store.add(other, described(other, "other"))  # cleans up
    assert len(files_in(root)) == 2
    store.add(file, described(file))
    assert store.verify("thing") == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_says_what_is_needed_and_keeps_what_was_there(small_disk: Path, tmp_path: Path) -> None:
    store = Store(small_disk / "store")
    small, large = made(tmp_path, b"s" * 1000, "s.onnx"), made(tmp_path, bytes(1 << 20), "l.onnx")
    store.add(small, described(small, "small"))
    with pytest.raises(StoreError, match=r"is full: 1\.0 MiB \(1048576 bytes\) are needed.*nearfar models remove"):
        store.add(large, described(large, "large"))
    assert store.verify("small") == {}
    assert len(files_in(store.root)) == 2
    with pytest.raises(UnknownModel):
        store.get("large")


def test_a_limit_on_file_size_is_a_full_disk(tmp_path: Path) -> None:
    store, large = Store(tmp_path / "store"), made(tmp_path, bytes(1 << 20))
    manifest = described(large)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreError, match="1048576 bytes"):
            store.add(large, manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_in(store.root) == []
    store.add(large, manifest)


def test_the_manifest_cannot_be_written_so_the_file_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path)

    def full(*_: object) -> None:
        raise StoreError("full")

    monkeypatch.setattr(blobs, "write_text", full)
    with pytest.raises(StoreError):
        store.add(file, described(file))
    assert files_in(store.root) == []
