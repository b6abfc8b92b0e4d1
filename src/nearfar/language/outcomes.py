"""What became of each prompt: where it went, why, what it cost, how it was judged and what people said of the answer.

One SQLite file under the home folder. A prompt itself is never in it, unless the owner opted in (`keep_prompts`), and
then only a prompt that may go anywhere; else there is a digest under a key of this file, which tells equal prompts from
different ones and nothing more. Each record is one transaction in write-ahead mode: what a killed process had recorded
is there, what it was recording is not. `outcomereport.py` sums it up.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from nearfar.errors import InputError, StoreError
from nearfar.language.judge.train import Row
from nearfar.types.request import Privacy

FILE = "outcomes.sqlite3"
"""Its name in the home folder."""

_STEPS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
    CREATE TABLE outcomes (
        id TEXT PRIMARY KEY, at REAL NOT NULL, digest BLOB NOT NULL, prompt TEXT, privacy TEXT NOT NULL,
        decision TEXT NOT NULL, answered TEXT NOT NULL, escalated INTEGER NOT NULL, refused INTEGER NOT NULL,
        score REAL, threshold REAL, judged REAL, features BLOB, cost REAL NOT NULL,
        near_in INTEGER NOT NULL, near_out INTEGER NOT NULL, far_in INTEGER NOT NULL, far_out INTEGER NOT NULL,
        saved_in INTEGER NOT NULL, saved_out INTEGER NOT NULL, latency_ms REAL NOT NULL, feedback REAL
    );
    CREATE INDEX outcomes_at ON outcomes (at);
    """,
)
"""Statements from each version of the file to the next; `user_version` says how many were made. Only ever add one."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt's outcome. None stands for what was not known, never for zero."""

    id: str
    """Of the request, as the answer's `nearfar` field names it."""
    at: float
    """When it was answered, seconds since 1970."""
    privacy: Privacy
    decision: str
    """`near`, `far`, `split`, `cascade` or `cache`."""
    answered: str
    """`near` or `far`: whose answer was given; `none` when there was none."""
    escalated: bool = False
    refused: bool = False
    """It should have gone far, and the budget did not allow it."""
    score: float | None = None
    """The router's probability that near is good enough."""
    threshold: float | None = None
    judged: float | None = None
    """The judge's probability that the near answer was good enough."""
    features: Mapping[str, float] | None = None
    """What the judge saw, for training it anew; numbers only."""
    cost: float = 0.0
    near_in: int = 0
    near_out: int = 0
    far_in: int = 0
    far_out: int = 0
    saved_in: int = 0
    saved_out: int = 0
    """Far tokens that a split saved."""
    latency_ms: float = 0.0
    feedback: float | None = None
    """From -1 (bad) to 1 (good), of whoever got the answer."""

    @property
    def near_chance(self) -> float | None:
        """The best that is known of the near answer: the judge saw the answer, the router only the prompt."""
        return self.judged if self.judged is not None else self.score


_COLUMNS = tuple(field for field in Record.__struct_fields__ if field != "features")


class OutcomeStore:
    """Use from any thread. Every method raises `StoreError` when the file cannot be read or written.

    Serving must not end for it: `note` is `record` for whoever answers prompts, and never raises that.
    """

    def __init__(self, path: Path, *, keep_prompts: bool = False) -> None:
        """Opens or makes the file, readable by its owner alone, and brings an older one to this version."""
        self._path, self._keep = path, keep_prompts
        self._lock = threading.Lock()
        self.dropped = 0
        """Outcomes that `note` could not record."""
        self.trouble = ""
        """What kept the last one from being recorded; empty when it was."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self._error(error) from error
        with self._translated():
            self._db = sqlite3.connect(path, timeout=2.0, check_same_thread=False, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._migrate()
                self._key = self._secret()
            except BaseException:
                self._db.close()
                raise

    def record(self, record: Record, prompt: str) -> None:
        """Keep an outcome. A second one of the same id replaces the first and keeps its feedback."""
        digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()
        kept = prompt if self._keep and record.privacy is Privacy.ANY else None
        features = None if record.features is None else msgspec.json.encode(_there(record.features))
        values = {name: _plain(getattr(record, name)) for name in _COLUMNS}
        values |= {"digest": digest, "prompt": kept, "features": features}
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        updates = ", ".join(f"{name} = excluded.{name}" for name in values if name not in ("id", "feedback"))
        updates += ", feedback = coalesce(excluded.feedback, feedback)"
        statement = f"INSERT INTO outcomes ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}"  # noqa: S608  # names of our own fields
        with self._lock, self._translated():
            self._db.execute(statement, values)

    def note(self, record: Record, prompt: str) -> bool:
        """`record` that does not raise when the disk is full or gone: False, and `dropped` and `trouble` tell."""
        try:
            self.record(record, prompt)
        except StoreError as error:
            self.dropped += 1
            self.trouble = str(error)
            return False
        self.trouble = ""
        return True

    def record_feedback(self, request: str, good: bool | float) -> None:
        """What somebody said of an answer: True or False, or from -1 to 1.

        Raises `InputError` for another value, and for a request that is not (or no longer) here.
        """
        value = (1.0 if good else -1.0) if isinstance(good, bool) else float(good)
        if not -1 <= value <= 1:
            raise InputError(f"Feedback of {value:g} is out of range.", "Send good or bad, or a number from -1 to 1.")
        with self._lock, self._translated():
            changed = self._db.execute("UPDATE outcomes SET feedback = ? WHERE id = ?", (value, request)).rowcount
        if not changed:
            raise InputError(
                f"No outcome of a request {request[:80]!r} is kept here.",
                "Send the id that stands as request in the answer's nearfar field.",
            )

    def records(self, since: float = 0.0, until: float = float("inf")) -> Iterator[Record]:
        """Outcomes from `since` to before `until`, oldest first, as they were when this was called."""
        names = ", ".join((*_COLUMNS, "features"))
        statement = f"SELECT {names} FROM outcomes WHERE at >= ? AND at < ? ORDER BY at, id"  # noqa: S608  # as above
        with self._lock, self._translated():
            rows = self._db.execute(statement, (since, until)).fetchall()
        for row in rows:
            values = dict(zip((*_COLUMNS, "features"), row, strict=True))
            yield _record(values)

    def training_rows(self) -> list[Row]:
        """Judged near answers that somebody gave feedback on: what `judge.train.train` learns from. Feedback of 0 says
        neither; feedback on a far answer says nothing of the near one."""
        statement = (
            "SELECT digest, features, feedback FROM outcomes WHERE answered = 'near' AND features IS NOT NULL "
            "AND feedback IS NOT NULL AND feedback != 0 ORDER BY at, id"
        )
        with self._lock, self._translated():
            found = self._db.execute(statement).fetchall()
        return [Row(digest.hex(), _features(features), feedback > 0) for digest, features, feedback in found]

    def prompts(self) -> dict[str, str]:
        """Kept prompts by request; empty unless the owner opted in."""
        with self._lock, self._translated():
            return dict(self._db.execute("SELECT id, prompt FROM outcomes WHERE prompt IS NOT NULL ORDER BY at"))

    def prune(self, before: float) -> int:
        """Remove what is older, and say how many. A day or so later its space is used again."""
        with self._lock, self._translated():
            return self._db.execute("DELETE FROM outcomes WHERE at < ?", (before,)).rowcount

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _migrate(self) -> None:
        while True:
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if version > len(_STEPS):
                raise StoreError(
                    f"{self._path} was written by a newer nearfar (version {version}).",
                    "Update nearfar, or move the file away to begin a new one.",
                )
            if version == len(_STEPS):
                return
            self._db.execute("BEGIN IMMEDIATE")  # another process may be at it too: look once more inside
            try:
                if int(self._db.execute("PRAGMA user_version").fetchone()[0]) == version:
                    for statement in _STEPS[version].split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {version + 1}")
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _secret(self) -> bytes:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('digest_key', ?)", (secrets.token_bytes(32),))
        return bytes(self._db.execute("SELECT value FROM meta WHERE name = 'digest_key'").fetchone()[0])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> StoreError:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(error, "errno", 0) == 28
        hint = "Free some space" if full else "Check its permissions, or move it away to begin a new one"
        what = "the disk is full" if full else str(error)
        return StoreError(
            f"Routing outcomes cannot be kept in {self._path}: {what}.", f"{hint}; prompts are answered meanwhile."
        )


def _plain(value: object) -> object:
    return value.value if isinstance(value, Privacy) else int(value) if isinstance(value, bool) else value


def _there(features: Mapping[str, float]) -> dict[str, float]:
    """Without NaN, which JSON does not have: a name that is absent is NaN when it is read."""
    return {name: round(value, 6) for name, value in features.items() if value == value}


def _features(data: bytes) -> dict[str, float]:
    return msgspec.json.decode(data, type=dict[str, float])


def _record(values: dict[str, object]) -> Record:
    data = values.pop("features")
    features = _features(data) if isinstance(data, bytes) else None
    made = {**values, "privacy": Privacy(str(values["privacy"])), "features": features}
    made |= {name: bool(values[name]) for name in ("escalated", "refused")}
    return Record(**made)  # type: ignore[arg-type]  # columns are the fields
