"""The ledger of far ends: one row for every request that was sent to somebody's API, before it is sent and after.

A row is written as `open`, with what the prompt will cost at least, before the first byte leaves, and completed when
the attempt has ended. A process that is killed in between leaves its row open: that call may have been billed, and the
totals say so. No text of a prompt or an answer is ever written, nor a key; every text is bounded.

SQLite in WAL mode, one file below the home folder, for any number of threads and processes. A commit reaches the disk
before the request leaves (`synchronous=FULL`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import LedgerError

FILE = "ledger.sqlite3"
"""Its name in the home folder."""
SCHEMA = 1
BUSY_MS = 5000
"""Milliseconds to wait for another writer; each holds the file for one row."""
RECENT = 50
"""Calls that the expected price of the next one is the mean of."""
LONGEST = 300
"""Characters of any text that is kept."""


class Outcome(StrEnum):
    """How an attempt ended, as far as money goes."""

    OPEN = "open"
    """Not ended yet, or its process died: it may have been billed."""
    OK = "ok"
    NOT_BILLED = "not-billed"
    """It failed before the far end had the whole request, or the far end refused it."""
    MAYBE_BILLED = "maybe-billed"
    """It failed after the far end had the request; only the provider's bill can tell."""
    CUT = "cut"
    """The answer broke off: what came is counted."""
    CANCELLED = "cancelled"
    """The caller left: what came is counted."""


MAYBE = frozenset({Outcome.OPEN, Outcome.MAYBE_BILLED})
"""Outcomes whose cost is uncertain; it is added up apart from what is known to be owed."""


class Counted(StrEnum):
    """Where the numbers of tokens come from."""

    REPORTED = "reported"
    ESTIMATED = "estimated"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before a request is sent. Prices are per million tokens; `tokens_in` is an estimate."""

    far_end: str
    model: str
    """The far end's own name of it."""
    request: str
    """An id that all attempts of one request share."""
    attempt: int
    """1 for the first."""
    operation: str
    privacy: str
    conversation: str = ""
    caller: str = ""
    why: str = ""
    """Why it went far."""
    tokens_in: int
    price_in: float
    price_out: float
    currency: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What is known after it. `status` is HTTP's, 0 when there was no answer; `failure` in our own words."""

    outcome: Outcome
    status: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    counted: Counted = Counted.ESTIMATED
    milliseconds: float = 0.0
    failure: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `began` is UTC in ISO 8601; `cost` in `currency`, for an open row that of the prompt alone."""

    id: int
    began: str
    far_end: str
    model: str
    request: str
    attempt: int
    operation: str
    privacy: str
    conversation: str
    caller: str
    why: str
    outcome: Outcome
    status: int
    tokens_in: int
    tokens_out: int
    counted: Counted
    price_in: float
    price_out: float
    cost: float
    currency: str
    milliseconds: float
    failure: str


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """A day (UTC) at one far end in one currency. `cost_maybe` is what uncertain attempts cost at least, if billed."""

    day: str
    far_end: str
    currency: str
    attempts: int
    ok: int
    failed: int
    uncertain: int
    """Attempts that are open or may have been billed."""
    tokens_in: int
    tokens_out: int
    """Tokens of what is owed; uncertain attempts are not in them."""
    cost: float
    cost_maybe: float


_COLUMNS = ", ".join(Row.__struct_fields__)
_CREATE = """
CREATE TABLE IF NOT EXISTS attempts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  day TEXT NOT NULL, began TEXT NOT NULL, far_end TEXT NOT NULL, model TEXT NOT NULL, request TEXT NOT NULL,
  attempt INTEGER NOT NULL, operation TEXT NOT NULL, privacy TEXT NOT NULL, conversation TEXT NOT NULL,
  caller TEXT NOT NULL, why TEXT NOT NULL, outcome TEXT NOT NULL, status INTEGER NOT NULL, tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL, counted TEXT NOT NULL, price_in REAL NOT NULL, price_out REAL NOT NULL,
  cost REAL NOT NULL, currency TEXT NOT NULL, milliseconds REAL NOT NULL, failure TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_by_day ON attempts (day, far_end);
CREATE INDEX IF NOT EXISTS attempts_by_far_end ON attempts (far_end, id);
"""
_INSERT = """
INSERT INTO attempts (day, began, far_end, model, request, attempt, operation, privacy, conversation, caller, why,
  outcome, status, tokens_in, tokens_out, counted, price_in, price_out, cost, currency, milliseconds, failure)
VALUES (:day, :began, :far_end, :model, :request, :attempt, :operation, :privacy, :conversation, :caller, :why,
  'open', 0, :tokens_in, 0, 'estimated', :price_in, :price_out, :cost, :currency, 0, '')
"""
_END = """
UPDATE attempts SET outcome = :outcome, status = :status, tokens_in = :tokens_in, tokens_out = :tokens_out,
  counted = :counted, cost = :cost, milliseconds = :milliseconds, failure = :failure
WHERE id = :id AND outcome = 'open'
"""
_TOTALS = """
SELECT day, far_end, currency, count(*) AS attempts,
  coalesce(sum(outcome = 'ok'), 0) AS ok,
  coalesce(sum(outcome NOT IN ('ok', 'open')), 0) AS failed,
  coalesce(sum(outcome IN ('open', 'maybe-billed')), 0) AS uncertain,
  coalesce(sum(CASE WHEN outcome IN ('ok', 'cut', 'cancelled') THEN tokens_in END), 0) AS tokens_in,
  coalesce(sum(CASE WHEN outcome IN ('ok', 'cut', 'cancelled') THEN tokens_out END), 0) AS tokens_out,
  coalesce(sum(CASE WHEN outcome IN ('ok', 'cut', 'cancelled') THEN cost END), 0.0) AS cost,
  coalesce(sum(CASE WHEN outcome IN ('open', 'maybe-billed') THEN cost END), 0.0) AS cost_maybe
FROM attempts WHERE (:day = '' OR day = :day) AND (:far_end = '' OR far_end = :far_end)
GROUP BY day, far_end, currency ORDER BY day, far_end, currency
"""


def price(tokens_in: int, tokens_out: int, price_in: float, price_out: float) -> float:
    """What so many tokens cost at prices per million.

    >>> price(1000, 500, 2.5, 10.0)
    0.0075
    """
    return (tokens_in * price_in + tokens_out * price_out) / 1e6


class Ledger:
    """One process's door to the file, which is made when the first row is written. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def begin(self, attempt: Attempt) -> int:
        """Write an open row, on the disk when this returns; its id. Raises `LedgerError`: then nothing may be sent."""
        now = datetime.fromtimestamp(time.time(), UTC)
        values = {key: _bounded(value) for key, value in msgspec.structs.asdict(attempt).items()}
        values |= {"day": now.strftime("%Y-%m-%d"), "began": now.isoformat(timespec="milliseconds")}
        values["cost"] = price(attempt.tokens_in, 0, attempt.price_in, attempt.price_out)
        with self._open(write=True) as connection:
            row = connection.execute(_INSERT, values).lastrowid
        assert row is not None
        return row

    def end(self, row: int, attempt: Attempt, end: End) -> float:
        """Complete a row, once; the cost that was written. Raises `LedgerError`: the row then stays open."""
        free = end.outcome is Outcome.NOT_BILLED
        cost = 0.0 if free else price(end.tokens_in, end.tokens_out, attempt.price_in, attempt.price_out)
        values = {key: _bounded(value) for key, value in msgspec.structs.asdict(end).items()}
        with self._open(write=True) as connection:
            connection.execute(_END, values | {"id": row, "cost": cost})
        return cost

    def rows(self, day: str = "", far_end: str = "", limit: int = 1_000_000) -> list[Row]:
        """The last `limit` attempts, the oldest first; of one day (`YYYY-MM-DD`, UTC) or far end only. None of a ledger
        that is not there yet. Raises `LedgerError`."""
        asked = f"SELECT {_COLUMNS} FROM attempts WHERE (? = '' OR day = ?) AND (? = '' OR far_end = ?)"  # noqa: S608
        found = self._read(f"{asked} ORDER BY id DESC LIMIT ?", (day, day, far_end, far_end, limit))
        return [msgspec.convert(dict(row), Row) for row in reversed(found)]

    def totals(self, day: str = "", far_end: str = "") -> list[Total]:
        """By day, far end and currency, the oldest day first. Raises `LedgerError`."""
        return [msgspec.convert(dict(row), Total) for row in self._read(_TOTALS, {"day": day, "far_end": far_end})]

    def spent(self, day: str, currency: str) -> float:
        """Most that a day (UTC) may have cost at all far ends in one currency: uncertain attempts count. Raises
        `LedgerError`."""
        return sum(total.cost + total.cost_maybe for total in self.totals(day) if total.currency == currency)

    def means(self, far_end: str, model: str, prices: tuple[float, float]) -> tuple[float, float] | None:
        """Mean cost, at these `prices` per million tokens in and out, and mean time in milliseconds: of those of the
        last `RECENT` answers of a far end that `model` gave, None while there is none. What was paid at another price,
        or for another model of that name, says nothing of the next call. Raises `LedgerError`."""
        asked = (
            "SELECT * FROM (SELECT model, tokens_in, tokens_out, milliseconds FROM attempts "
            "WHERE far_end = ? AND outcome = 'ok' ORDER BY id DESC LIMIT ?) WHERE model = ?"
        )
        rows = self._read(asked, (far_end, RECENT, _bounded(model)))
        if not rows:
            return None
        costs = [price(row["tokens_in"], row["tokens_out"], *prices) for row in rows]
        return sum(costs) / len(rows), sum(float(row["milliseconds"]) for row in rows) / len(rows)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, asked: str, values: Sequence[Any] | dict[str, Any]) -> list[sqlite3.Row]:
        if not self.path.exists():
            return []
        with self._open() as connection:
            return connection.execute(asked, values).fetchall()

    @contextlib.contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """The connection, alone; a transaction is committed when the block ends well."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _connect(self.path)
                if write:
                    self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                if write:
                    self._connection.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._give_up(write)
                raise _translated(self.path, error) from error
            except BaseException:
                self._give_up(write)
                raise

    def _give_up(self, write: bool) -> None:
        if write and self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # what failed is told; the transaction may be gone already
                self._connection.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    end = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            return _connect_once(path)
        except sqlite3.OperationalError as error:
            # Turning WAL on does not wait for another process that is doing just that, whatever the timeout.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _connect_once(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, check_same_thread=False, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA:
            raise LedgerError(
                f"The ledger {path} was written by a newer nearfar (version {version} of its table).",
                "Update nearfar, or move the file away.",
            )
        if version < SCHEMA:
            connection.executescript(f"BEGIN IMMEDIATE; {_CREATE} PRAGMA user_version = {SCHEMA}; COMMIT;")
        path.chmod(0o600)
    except BaseException:
        connection.close()
        raise
    return connection


def _bounded(value: Any) -> Any:
    return " ".join(value.split())[:LONGEST] if isinstance(value, str) else value


def _translated(path: Path, error: sqlite3.Error | OSError) -> LedgerError:
    told = str(error)
    full = getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
    if full or (isinstance(error, OSError) and error.errno == 28):
        return LedgerError(
            f"The ledger {path} cannot be written: {told}; what a far end would cost could not be accounted for.",
            "Free some space on its disk; until then nothing is sent to a far end.",
        )
    return LedgerError(
        f"The ledger {path} cannot be used: {told}.",
        "Check its permissions and its disk; if it is damaged, move it away: a new one is begun.",
    )
