"""A node's name is held once on a machine, and what is written of it is believed only while it lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nearfar.errors import DuplicateNode, StoreError
from nearfar.node.identity import Claim, Running, coming, node_id, running
from nearfar.types.ids import NodeId, is_name
from tests.waiting import until_now

PI = NodeId("pi")


def told(pid: int = 0) -> Running:
    return Running(PI, pid or os.getpid(), "garage", ("tcp/127.0.0.1:1",), "http://127.0.0.1:2")


def test_a_name_is_claimed_once_and_free_again_after(tmp_path: Path) -> None:
    first = Claim(tmp_path, PI)
    with pytest.raises(DuplicateNode, match=r"'pi' runs on this machine already.*--name"):
        Claim(tmp_path, PI)
    other = Claim(tmp_path, NodeId("pi2"))
    other.close()
    first.close()
    Claim(tmp_path, PI).close()


def test_a_running_node_is_found_until_it_ends(tmp_path: Path) -> None:
    assert running(tmp_path) == []
    claim = Claim(tmp_path, PI)
    assert running(tmp_path) == [], "claimed, but it did not say yet where it is"
    assert coming(tmp_path) == [PI], "it is on its way"
    claim.tell(told())
    assert coming(tmp_path) == []
    assert running(tmp_path) == [told()]
    claim.tell(told())
    assert running(tmp_path) == [told()], "told twice is told once"
    claim.close()
    assert running(tmp_path) == []


def test_the_name_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time, os; from pathlib import Path; from nearfar.node.identity import *;"
        "c = Claim(Path(sys.argv[1]), 'pi'); c.tell(Running('pi', os.getpid(), 'garage', ()));"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        assert [entry.pid for entry in running(tmp_path)] == [process.pid]
        with pytest.raises(DuplicateNode):
            Claim(tmp_path, PI)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (tmp_path / "run" / "pi.json").stat().st_size > 0, "it had no time to clean up"
    assert running(tmp_path) == []
    claim = Claim(tmp_path, PI)
    claim.tell(told())
    assert running(tmp_path) == [told()]
    claim.close()


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"node": 3}', b'{"node": "\xff"}', b"\xff\xfe"])
def test_a_run_file_that_makes_no_sense_is_no_node(tmp_path: Path, left: bytes) -> None:
    claim = Claim(tmp_path, PI)
    (tmp_path / "run" / "pi.json").write_bytes(left)
    assert running(tmp_path) == []
    claim.close()


def test_a_look_at_who_runs_does_not_keep_a_node_from_starting(tmp_path: Path) -> None:
    """`running` holds the lock for a moment: a claim at that moment must wait for it, not fail."""
    Claim(tmp_path, PI).close()
    stop = threading.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        while not stop.is_set():
            running(tmp_path)
            looks += 1

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        until_now(lambda: looks > 10, "somebody looks")
        for _ in range(50):
            Claim(tmp_path, PI).close()
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_a_name_is_made_once_and_kept(tmp_path: Path) -> None:
    made = node_id(tmp_path, "")
    assert is_name(made) and node_id(tmp_path, "") == made
    assert node_id(tmp_path, "stated") == "stated" and node_id(tmp_path, "") == made
    (tmp_path / "node-id").write_text("")
    assert is_name(node_id(tmp_path, "")), "a file that was cut short is made anew"


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="NEARFAR_HOME"):
        node_id(tmp_path / "file", "")
    with pytest.raises(StoreError, match="NEARFAR_HOME"):
        Claim(tmp_path / "file", PI)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_said_and_leaves_no_second_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pi.json").symlink_to("/dev/full")
    claim = Claim(tmp_path, PI)
    with pytest.raises(StoreError, match=r"(No space left|cannot be written).*Make room"):
        claim.tell(told())
    claim.close()


def test_what_is_written_is_json(tmp_path: Path) -> None:
    claim = Claim(tmp_path, PI)
    claim.tell(told())
    assert json.loads((tmp_path / "run" / "pi.json").read_text())["gateway"] == "http://127.0.0.1:2"
    claim.close()
