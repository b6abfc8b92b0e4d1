"""`nearfar` as a person starts it: a process with an environment of its own, whose output never holds a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

LIMIT = 90.0


class Said(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """Standard error on one line, as rich wraps it to the width of the terminal."""
        return " ".join(self.err.split())


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NEARFAR_")}
    own = {"NEARFAR_HOME": str(home), "NEARFAR_MESH_DISCOVER": "false", "NO_COLOR": "1", "COLUMNS": "80"}
    return {**clean, **own, **(extra or {})}


def start(
    *words: object, home: Path, env: Mapping[str, str] | None = None, out: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start a command in `home`'s parent, without waiting for it; standard output (unless told) and error are pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "nearfar.cli.main", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE,
        env=environment(home, env),
        cwd=home.parent,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], limit: float = LIMIT) -> Said:
    """Wait for its end; fails when it shows a traceback, and kills it and fails when it does not end."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} did not end within {limit} s\n{out}\n{err}") from None
    out = out or ""  # it went elsewhere
    assert "Traceback" not in out + err, f"{process.args!r} shows a traceback\n{err}"
    return Said(process.returncode, out, err)


def nearfar(*words: object, home: Path, env: Mapping[str, str] | None = None, limit: float = LIMIT) -> Said:
    """Run a command to its end."""
    return finish(start(*words, home=home, env=env), limit)
