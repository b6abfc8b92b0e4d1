"""Routing outcomes: kept through kills and full disks, without the prompt, and summed up honestly."""

from __future__ import annotations

import math
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import InputError, StoreError
from nearfar.language.outcomereport import Prices, report
from nearfar.language.outcomes import OutcomeStore, Record
from nearfar.types.request import Privacy

SECRET = "the prompt that nobody may read 4711"


def made(number: int = 0, **more: Any) -> Record:
    values: dict[str, Any] = {"id": f"req-{number}", "at": 1000.0 + number, "privacy": Privacy.ANY, "decision": "near",
                              "answered": "near", "score": 0.8, "near_in": 100, "near_out": 50}  # fmt: skip
    return Record(**{**values, **more})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OutcomeStore]:
    kept = OutcomeStore(tmp_path / "home" / "outcomes.sqlite3")
    yield kept
    kept.close()


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_a_record_comes_back_as_it_was(store: OutcomeStore) -> None:
    full = made(1, decision="cascade", answered="far", escalated=True, refused=True, threshold=0.5, judged=0.25,
                features={"words": 2.5, "agreement": math.nan}, cost=0.5, far_in=7, far_out=8, saved_in=9, saved_out=1,
                latency_ms=12.5, feedback=-1.0, privacy=Privacy.FLEET)  # fmt: skip
    store.record(full, SECRET)
    store.record(made(2, score=None), SECRET)
    one, two = store.records()
    assert one.features == {"words": 2.5}, "what is absent stays absent"
    assert (one.privacy, one.escalated, one.refused, one.judged, one.near_chance) == (
        Privacy.FLEET,
        True,
        True,
        0.25,
        0.25,
    )
    assert (two.score, two.judged, two.features, two.near_chance) == (None, None, None, None)
    assert [r.id for r in store.records(since=1001.5)] == ["req-2"]
    assert [r.id for r in store.records(until=1002.0)] == ["req-1"]


def test_the_prompt_is_not_in_the_file_and_the_file_is_the_owners(store: OutcomeStore, tmp_path: Path) -> None:
    store.record(made(), SECRET)
    assert SECRET.encode() not in all_bytes(tmp_path / "home")
    assert store.prompts() == {}
    assert stat.S_IMODE((tmp_path / "home" / "outcomes.sqlite3").stat().st_mode) == 0o600


def test_prompts_are_kept_only_when_asked_for_and_only_those_that_may_go_anywhere(tmp_path: Path) -> None:
    kept = OutcomeStore(tmp_path / "o.sqlite3", keep_prompts=True)
    kept.record(made(1), "open prompt")
    kept.record(made(2, privacy=Privacy.FLEET), SECRET)
    kept.record(made(3, privacy=Privacy.LOCAL), SECRET)
    assert kept.prompts() == {"req-1": "open prompt"}
    assert SECRET.encode() not in all_bytes(tmp_path)
    kept.close()


def test_digests_tell_equal_prompts_within_one_file_only(tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        kept = OutcomeStore(tmp_path / name)
        for i, prompt in enumerate(("same", "same", "other")):
            kept.record(made(i, features={"words": 1.0}, feedback=1.0), prompt)
        rows.append([row.prompt for row in kept.training_rows()])
        kept.close()
    assert rows[0][0] == rows[0][1] != rows[0][2]
    assert not set(rows[0]) & set(rows[1])


def test_feedback_by_id(store: OutcomeStore) -> None:
    store.record(made(1, features={"words": 3.0}), SECRET)
    store.record(made(2, features={"words": 1.0}), SECRET)
    store.record(made(3, answered="far", features={"words": 1.0}), SECRET)
    store.record_feedback("req-1", True)
    store.record_feedback("req-2", -0.5)
    store.record_feedback("req-3", False)
    assert [r.feedback for r in store.records()] == [1.0, -0.5, -1.0]
    assert [(row.features, row.good) for row in store.training_rows()] == [
        ({"words": 3.0}, True),
        ({"words": 1.0}, False),
    ]
    store.record(made(1, cost=3.0), SECRET)
    assert next(store.records()).feedback == 1.0, "recording again keeps what was said"
    with pytest.raises(InputError, match="request"):
        store.record_feedback("req-9", True)
    for bad in (2.0, math.nan):
        with pytest.raises(InputError, match="range"):
            store.record_feedback("req-1", bad)


def test_old_ones_are_pruned(store: OutcomeStore) -> None:
    for i in range(5):
        store.record(made(i), SECRET)
    assert store.prune(1003.0) == 3
    assert [r.id for r in store.records()] == ["req-3", "req-4"]


def test_many_threads(store: OutcomeStore) -> None:
    def work(first: int) -> None:
        for i in range(25):
            store.record(made(first + i), SECRET)

    threads = [threading.Thread(target=work, args=(k * 100,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.records())) == 100


KILLED = """
import sys
from pathlib import Path
from nearfar.language.outcomes import OutcomeStore, Record
from nearfar.types.request import Privacy
store = OutcomeStore(Path(sys.argv[1]))
for i in range(1_000_000):
    store.record(Record(id=f"req-{i}", at=float(i), privacy=Privacy.ANY, decision="near", answered="near"), "p")
    print(i, flush=True)
"""


def test_what_a_killed_process_had_recorded_is_there(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite3"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(30)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
    kept = OutcomeStore(path)
    found = {record.id for record in kept.records()}
    assert {f"req-{i}" for i in told} <= found
    assert len(found) <= len(told) + 1
    kept.record(made(-1), "goes on")
    kept.close()


def test_a_full_disk_is_told_and_serving_goes_on(store: OutcomeStore) -> None:
    store.record(made(0), SECRET)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    large = {f"feature {i}": float(i) for i in range(2000)}
    with pytest.raises(StoreError, match=r"disk is full.*Free some space"):
        store.record(made(1, features=large), SECRET)
    assert not store.note(made(2, features=large), SECRET)
    assert (store.dropped, "full" in store.trouble) == (1, True)
    store._db.execute("PRAGMA max_page_count = 100000")
    assert store.note(made(3), SECRET)
    assert store.trouble == ""
    assert [r.id for r in store.records()] == ["req-0", "req-3"]


def test_a_place_that_cannot_be_written_and_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 5000)
    with pytest.raises(StoreError, match="move it away"):
        OutcomeStore(tmp_path / "file")
    with pytest.raises(StoreError):
        OutcomeStore(tmp_path / "file" / "below.sqlite3")


def test_versions_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "o.sqlite3"
    OutcomeStore(path).close()
    OutcomeStore(path).close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer"):
        OutcomeStore(path)


def test_the_report_by_hand() -> None:
    prices = Prices(far_in=0.01, far_out=0.02, near_in=0.001, near_out=0.0)
    records = [
        made(1, score=0.8, cost=0.1, latency_ms=1),
        made(2, score=0.9, judged=0.2, decision="cascade", answered="far", escalated=True,
             far_in=100, far_out=50, cost=2.1),
        made(3, score=0.5, feedback=-1.0, privacy=Privacy.FLEET, cost=0.1, refused=True),
        made(4, score=None, decision="split", answered="far", far_in=50, far_out=50,
             saved_in=50, saved_out=10, cost=1.6),
        made(5, answered="none", decision="near"),
    ]  # fmt: skip
    found = report(records, prices, far_quality=0.9)
    assert (found.prompts, found.escalated, found.refused, found.private) == (4, 1, 1, 1)
    assert found.decisions == {"cascade": 1, "near": 2, "split": 1}
    assert found.answered == {"far": 2, "near": 2}
    assert (found.feedback, found.good, found.unknown, found.tokens_saved) == (1, 0, 0, 60)
    assert found.ways["always-far"].cost == pytest.approx(4 * (100 * 0.01 + 50 * 0.02))
    assert found.ways["always-near"].cost == pytest.approx(4 * 100 * 0.001)
    assert found.ways["routed"].cost == pytest.approx(3.9)
    assert found.saved == pytest.approx(8 - 3.9)
    assert found.ways["routed"].quality == pytest.approx((0.8 + 0.9 + 0.0 + 0.9) / 4)
    assert found.ways["always-near"].quality == pytest.approx((0.8 + 0.2 + 0.5) / 3)
    assert found.ways["random"].quality == pytest.approx(0.5 * 0.9 + 0.5 * 0.5)
    assert found.ways["random"].cost == pytest.approx(0.5 * 8 + 0.5 * 0.4)


def test_a_report_of_nothing_claims_nothing() -> None:
    found = report([], Prices(1.0, 1.0))
    assert found.prompts == 0
    assert {way.quality for way in found.ways.values()} == {None}
