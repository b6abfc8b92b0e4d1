"""The ledger: rows by many writers, uncertain rows in the totals, and no call where no row can be written."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from nearfar.errors import LedgerError
from nearfar.ledger import MAYBE, Attempt, Counted, End, Ledger, Outcome

ROOT = Path(__file__).parents[2]
ATTEMPT = Attempt(
    far_end="large",
    model="large-1",
    request="r-1",
    attempt=1,
    operation="chat",
    privacy="any",
    why="told",
    tokens_in=100,
    price_in=2.0,
    price_out=10.0,
    currency="USD",
)
OK = End(outcome=Outcome.OK, status=200, tokens_in=90, tokens_out=50, counted=Counted.REPORTED, milliseconds=20.0)


def test_a_row_is_open_until_it_is_completed_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "home" / "ledger.sqlite3")
    assert ledger.rows() == [] and ledger.totals() == [] and not ledger.path.exists(), "reading makes nothing"
    number = ledger.begin(ATTEMPT)
    [row] = ledger.rows()
    assert (row.outcome, row.why) == (Outcome.OPEN, "told") and row.cost == pytest.approx(100 * 2.0 / 1e6)
    assert ledger.end(number, ATTEMPT, OK) == pytest.approx((90 * 2 + 50 * 10) / 1e6)
    ledger.end(number, ATTEMPT, End(outcome=Outcome.NOT_BILLED))
    assert [row.outcome for row in ledger.rows()] == [Outcome.OK]
    assert ledger.path.stat().st_mode & 0o077 == 0, "what was asked when is nobody else's business"
    ledger.close()


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_is_uncertain_is_added_up_apart(tmp_path: Path, outcome: Outcome) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    number = ledger.begin(ATTEMPT)
    if outcome is not Outcome.OPEN:
        ledger.end(number, ATTEMPT, msgspec.structs.replace(OK, outcome=outcome))
    [total] = ledger.totals()
    assert (total.cost_maybe > 0) == (outcome in MAYBE) == bool(total.uncertain)
    assert (total.cost > 0) == (outcome in (Outcome.OK, Outcome.CUT, Outcome.CANCELLED))
    assert ledger.spent(total.day, "USD") == total.cost + total.cost_maybe and not ledger.spent(total.day, "EUR")
    ledger.close()


def test_totals_are_by_far_end_and_currency(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    other = msgspec.structs.replace(ATTEMPT, currency="EUR", far_end="other")
    for attempt in (ATTEMPT, ATTEMPT, other):
        ledger.end(ledger.begin(attempt), attempt, OK)
    assert [(t.far_end, t.currency, t.attempts, t.tokens_out) for t in ledger.totals()] == [
        ("large", "USD", 2, 100),
        ("other", "EUR", 1, 50),
    ]
    assert len(ledger.totals(far_end="other")) == 1 and not ledger.totals("1999-01-01")
    assert [row.far_end for row in ledger.rows(limit=2)] == ["large", "other"], "the last ones, the oldest first"
    ledger.close()


def test_the_expected_price_is_that_of_the_last_answers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    model, prices = ATTEMPT.model, (ATTEMPT.price_in, ATTEMPT.price_out)
    assert ledger.means("large", model, prices) is None
    for outcome in (Outcome.OK, Outcome.NOT_BILLED, Outcome.CUT):
        ledger.end(ledger.begin(ATTEMPT), ATTEMPT, msgspec.structs.replace(OK, outcome=outcome))
    assert ledger.means("large", model, prices) == pytest.approx((680e-6, 20.0))
    assert ledger.means("large", model, (10 * prices[0], 10 * prices[1])) == pytest.approx((6800e-6, 20.0))
    assert ledger.means("large", "another", prices) is None, "what stood there before says nothing of what stands now"
    ledger.close()


def test_texts_are_bounded_and_on_one_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    ledger.begin(msgspec.structs.replace(ATTEMPT, why="a\nb " * 1000))
    assert ledger.rows()[0].why.startswith("a b a b") and len(ledger.rows()[0].why) <= 300
    ledger.close()


def test_threads_share_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")

    def write() -> None:
        for _ in range(10):
            ledger.end(ledger.begin(ATTEMPT), ATTEMPT, OK)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.outcome for row in ledger.rows()] == [Outcome.OK] * 40
    ledger.close()


WRITE = """
import sys
from pathlib import Path
from nearfar.ledger import Ledger
from tests.far.test_ledger import ATTEMPT, OK
ledger = Ledger(Path(sys.argv[1]))
for _ in range(25):
    ledger.end(ledger.begin(ATTEMPT), ATTEMPT, OK)
"""
FULL = """
import resource, signal, sys
from pathlib import Path
from nearfar.errors import LedgerError
from nearfar.runtimes.remote.runtime import RemoteText
from tests.far.calls import Far
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Far(sys.argv[1], Path(sys.argv[2])) as far:
    far.ask()
    size = sum(path.stat().st_size for path in Path(sys.argv[2]).iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        far.ask()
    except LedgerError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    far.ask()
"""


def child(code: str, *words: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_processes_share_a_ledger_from_its_first_moment(tmp_path: Path) -> None:
    children = [child(WRITE, str(tmp_path / "ledger.sqlite3")) for _ in range(3)]
    for process in children:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    assert [row.outcome for row in ledger.rows()] == [Outcome.OK] * 75
    ledger.close()


def test_a_full_disk_keeps_calls_at_home(tmp_path: Path) -> None:
    from tests.far.misbehaving import FarServer

    with FarServer() as server:
        process = child(FULL, server.url, str(tmp_path))
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "cannot be written" in out and "Free some space" in out
        assert len(server.requests) == 2, "the one in between was not made"
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    assert [row.outcome for row in ledger.rows()] == [Outcome.OK] * 2
    ledger.close()


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no database" * 100)
    with pytest.raises(LedgerError, match="move it away"):
        Ledger(tmp_path / "a").begin(ATTEMPT)
    with sqlite3.connect(tmp_path / "b") as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(LedgerError, match="newer nearfar"):
        Ledger(tmp_path / "b").begin(ATTEMPT)
    (tmp_path / "c").mkdir()
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "c").rows()
