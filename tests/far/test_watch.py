"""What a node makes of its far ends as their files come, change, break and go: on a real store."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from pathlib import Path

import pytest

from nearfar.language import far
from nearfar.language.farwatch import FarWatch
from nearfar.models.store import Store
from nearfar.node.identity import write_later
from nearfar.node.plan import Wanted
from nearfar.runtimes.remote.description import FarEnd
from nearfar.types.ids import ModelName

LARGE, SMALL = ModelName("large"), ModelName("small")
FREE = FarEnd(base_url="https://far.example/v1", model="m", price_in=1, price_out=2)
KEYED = FarEnd(base_url="https://far.example/v1", model="m", price_in=1, price_out=2, key_env="FAR_WATCH_KEY")


class World:
    def __init__(self, folder: Path, *models: str) -> None:
        self.store = Store(folder / "models")
        self.later = folder / "pi.serve"
        self.environment: dict[str, str] = {}
        self.watch = FarWatch(Store(folder / "models"), "pi", models or ("yard",), self.later, self.environment)
        self.first = self.look()

    def look(self) -> Wanted:
        wanted = self.watch.look()
        assert wanted is not None, "something has changed"
        assert self.watch.look() is None, "and is told once"
        return wanted

    def manifest(self, name: str) -> Path:
        return self.store.manifests / f"{name}.toml"

    def description(self, name: str) -> Path:
        path = far.file_of(self.store, name)
        path.chmod(0o644)
        return path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_comes_changes_and_goes(world: World) -> None:
    assert world.first == Wanted((ModelName("yard"),))
    far.add(world.store, "large", FREE)
    one = world.look()
    assert one.models == ("yard", "large") and not one.refused
    far.add(world.store, "small", FREE)
    two = world.look()
    assert two.models == ("yard", "large", "small") and two.revisions[LARGE] == one.revisions[LARGE]
    far.add(world.store, "large", FarEnd(base_url="https://far.example/v1", model="m", price_in=9, price_out=2))
    three = world.look()
    assert three.revisions[LARGE] != two.revisions[LARGE] and three.revisions[SMALL] == two.revisions[SMALL]
    far.remove(world.store, "large")
    assert world.look().models == ("yard", "small")
    far.remove(world.store, "small")
    assert world.look() == world.first


def test_the_same_again_is_no_change(world: World) -> None:
    far.add(world.store, "large", FREE)
    world.look()
    far.add(world.store, "large", FREE)
    assert world.watch.look() is None


def test_a_model_of_another_kind_is_not_served_unasked(world: World, tmp_path: Path) -> None:
    from tests.fleetlab import fake

    model = fake(tmp_path, "other")
    world.store.add(model.file, model.manifest)
    assert world.watch.look() is None


def test_a_key_in_the_environment(world: World) -> None:
    far.add(world.store, "large", KEYED)
    wanted = world.look()
    assert wanted.models == ("yard",)
    assert "FAR_WATCH_KEY is not set in the environment of node pi" in wanted.refused[LARGE]
    assert "export FAR_WATCH_KEY=" in wanted.refused[LARGE]
    world.environment["FAR_WATCH_KEY"] = "two words"
    far.add(world.store, "large", FarEnd(**{f: getattr(KEYED, f) for f in KEYED.__struct_fields__} | {"slots": 2}))
    assert "cannot be a key" in world.look().refused[LARGE]
    world.environment["FAR_WATCH_KEY"] = "k-1"
    far.add(world.store, "large", KEYED)
    assert world.look().models == ("yard", "large")


def test_a_far_end_that_was_named_is_refused_as_the_others_are(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    far.add(store, "large", KEYED)
    world = World(tmp_path, "large", "yard")
    assert world.first.models == ("yard",) and "large" in world.first.refused
    world.environment["FAR_WATCH_KEY"] = "k-1"
    far.add(store, "large", FarEnd(**{f: getattr(KEYED, f) for f in KEYED.__struct_fields__} | {"slots": 2}))
    assert world.look().models == ("large", "yard")
    far.remove(store, "large")
    gone = world.look()
    assert gone.models == ("large", "yard") and "large" not in gone.revisions, "the agent says that it is not there"


@pytest.mark.parametrize("what", ["manifest", "description", "folder"])
def test_what_is_broken_stays_as_it_was_and_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    for name, price in (("large", 1), ("small", 2)):
        made = FarEnd(base_url="https://far.example/v1", model="m", price_in=price, price_out=2)
        far.add(world.store, name, made)
    before = world.look()
    caplog.set_level(logging.WARNING)
    whole = world.manifest("large").read_bytes()
    description = world.description("large")
    text = description.read_bytes()
    if what == "manifest":
        world.manifest("large").write_bytes(whole[: len(whole) // 2])
    elif what == "description":
        description.write_bytes(text[: len(text) // 2])
        world.manifest("large").write_bytes(whole + b"\n")
    else:
        world.store.manifests.rename(world.store.root / "elsewhere")
    for _ in range(3):
        assert world.watch.look() is None
    assert len(caplog.messages) == 1 and "stays as it was" in caplog.messages[0]
    if what == "folder":
        (world.store.root / "elsewhere").rename(world.store.manifests)
    description.write_bytes(text)
    world.manifest("large").write_bytes(whole)
    assert world.watch.look() is None, "it is again what it was"
    far.remove(world.store, "large")
    assert world.look().models == ("yard", "small")
    assert before.models == ("yard", "large", "small") and len(caplog.messages) == 1


def test_a_new_one_that_cannot_be_read_is_refused_until_it_can(world: World) -> None:
    far.add(world.store, "large", FREE)
    description = world.description("large")
    text = description.read_bytes()
    description.write_bytes(b"")
    assert "0 bytes" in world.look().refused[LARGE]
    description.write_bytes(text)
    assert world.look().models == ("yard", "large")


def test_a_key_file_that_is_replaced(world: World, tmp_path: Path) -> None:
    key = tmp_path / "key"
    keyed = FarEnd(base_url="https://far.example/v1", model="m", price_in=1, price_out=2, key_file=str(key))
    far.add(world.store, "large", keyed)
    assert str(key) in world.look().refused[LARGE]
    key.write_text("k-1\n")
    one = world.look()
    assert one.models == ("yard", "large")
    key.write_text("k-1\n\n")
    assert world.watch.look() is None, "it is the same key"
    key.write_text("")
    assert world.watch.look() is None, "it is being written: who runs has read it"
    key.write_text("k-another")
    assert world.look().revisions[LARGE] != one.revisions[LARGE]
    shutil.rmtree(world.store.root)
    assert world.watch.look() is None, "a disk that is not there removes nothing"


def test_models_that_are_asked_for_later(world: World, caplog: pytest.LogCaptureFixture) -> None:
    write_later(world.later, ("other", "yard"))
    assert world.look().models == ("yard", "other")
    far.add(world.store, "large", FREE)
    assert world.look().models == ("yard", "other", "large")
    world.later.write_bytes(b"other\n\xff\xfe")
    assert world.watch.look() is None and "stays as it was" in caplog.text
    write_later(world.later, ())
    assert world.look().models == ("yard", "large")


def _write(root: Path) -> None:
    store = Store(root)
    for price in range(60):
        made = FarEnd(base_url="https://far.example/v1", model="m", price_in=price, price_out=2)
        far.add(store, "large", made)


def test_a_far_end_that_is_changed_all_the_time_is_never_seen_half(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    far.add(world.store, "large", FREE)
    world.look()
    writer = multiprocessing.get_context("spawn").Process(target=_write, args=(world.store.root,))
    writer.start()
    changes = 0
    while writer.is_alive():
        wanted = world.watch.look()
        if wanted is not None:
            changes += 1
            assert wanted.models == ("yard", "large") and not wanted.refused
    writer.join()
    world.watch.look()
    assert writer.exitcode == 0 and changes > 1
    assert world.watch.look() is None and far.get(world.store, "large").price_in == 59
