"""Whatever the far end does: a row in the ledger for each request it saw, and an answer or an error, never nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import NearfarError
from nearfar.ledger import Ledger, Outcome
from tests.far.calls import Far
from tests.far.misbehaving import ON_PURPOSE, Act, FarServer, Kind, script
from tests.waiting import until_now

ENDED = {Outcome.OK, Outcome.NOT_BILLED, Outcome.MAYBE_BILLED, Outcome.CUT, Outcome.CANCELLED}


def play(acts: list[Act], streams: list[bool], folder: Path, leave_after: int = 0) -> None:
    with FarServer(acts) as server, Far(server.url, folder, timeout_s=0.15, max_retries=2) as far:
        for stream in streams:
            before = len(server.requests)
            try:
                asked = far.ask(stream, leave_after=leave_after, budget_ms=20_000)
            except NearfarError as error:
                assert error.message and error.hint
                answered = False
            else:
                answered = True
                assert asked.pieces
                assert leave_after or (asked.text == "one two three four" and asked.bill["cost"] > 0)
            rows = far.ledger.rows()
            assert len(rows) == len(server.requests) and 1 <= len(rows) - before <= 3
            mine = rows[before:]
            assert len({row.request for row in mine}) == 1
            assert [row.attempt for row in mine] == list(range(1, len(mine) + 1))
            assert {row.outcome for row in mine} <= ENDED
            assert (mine[-1].outcome in (Outcome.OK, Outcome.CANCELLED)) == answered
            assert all(row.outcome in (Outcome.NOT_BILLED, Outcome.MAYBE_BILLED) for row in mine[:-1])
        totals = far.ledger.totals()
        assert sum(total.attempts for total in totals) == len(server.requests)


@given(
    acts=st.lists(st.sampled_from((Act(), *ON_PURPOSE)), max_size=6),
    streams=st.lists(st.booleans(), min_size=1, max_size=3),
    leave_after=st.sampled_from((0, 0, 0, 2)),
)
@settings(max_examples=60)
def test_every_request_that_was_seen_has_its_row(acts: list[Act], streams: list[bool], leave_after: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        play(acts, streams, Path(folder), leave_after)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_evening_of_faults(seed: int, tmp_path: Path) -> None:
    play(script(seed, 40), [bool(number % 3) for number in range(20)], tmp_path)


CHILD = """
import json, sys
from pathlib import Path
from tests.far.calls import Far
with Far(sys.argv[1], Path(sys.argv[2])) as far:
    far.ask()
"""


@pytest.mark.parametrize("act", [Act(Kind.SILENT), Act(Kind.STALL, at=2)], ids=lambda act: act.kind)
def test_a_process_that_is_killed_leaves_an_open_row(act: Act, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "src"), str(root)])
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    with FarServer([act]) as server:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
        )
        try:
            until_now(lambda: server.requests, "the request is with the far end")
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.wait(10)
        [row] = ledger.rows()
        assert row.outcome is Outcome.OPEN and row.tokens_in > 0 and row.cost > 0
        [total] = ledger.totals()
        assert (total.uncertain, total.cost) == (1, 0.0) and total.cost_maybe == row.cost
        with Far(server.url, tmp_path) as again:
            again.ask()
        assert [row.outcome for row in ledger.rows()] == [Outcome.OPEN, Outcome.OK]
    ledger.close()
