"""`nearfar chat` in a terminal: a conversation, its commands, and Ctrl-C; and what is wrong with what was typed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import environment, nearfar
from tests.fleetlab import Lab, talking
from tests.fleetlab import lab as lab

LIMIT = 60.0


class Terminal:
    """A command that believes a person sits in front of it."""

    def __init__(self, home: Path, *words: str) -> None:
        self._screen, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nearfar.cli.main", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment(home), "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # so that Ctrl-C arrives as one
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def until(self, text: str, *, again: str = "") -> str:
        """What is shown up to and with a text; `again` is typed at each second without it."""
        shown, end = "", time.monotonic() + LIMIT
        more = time.monotonic() + 1
        while text not in shown:
            assert time.monotonic() < end, f"{text!r} was not shown: {shown}"
            if again and time.monotonic() > more:
                self.type(again)
                more += 1
            if select.select([self._screen], [], [], 0.1)[0]:
                try:
                    shown += os.read(self._screen, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    raise AssertionError(f"{text!r} was not shown: {shown}") from None
        return shown

    def interrupt(self) -> str:
        """Ctrl-C, and what is shown until the next prompt. Readline misses one that comes while it takes up a key, as
        only a machine can type it: what was typed must be on the screen before, and a second one helps."""
        self.type("\x03")
        return self.until("> ", again="\x03")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.fixture
def terminal(lab: Lab, tmp_path: Path) -> Iterator[Terminal]:
    says = [{"when": "how many eggs", "text": "You have 6 eggs."}]
    node = lab.node("a", [talking(tmp_path, "tiny", delay_ms=20.0, says=says)])
    made = Terminal(node.home, "chat", "--max-tokens", "3000")
    yield made
    made.close()


def test_a_conversation_in_a_terminal(terminal: Terminal) -> None:
    assert "/help for more" in terminal.until("auto> ")
    terminal.type("tell me a very long tale\n")
    terminal.until("tale\r\n")
    terminal.until(" ")  # in the middle of an answer that takes a minute
    assert "it is not part of the conversation" in terminal.interrupt()
    terminal.type("how many eggs?\n")
    shown = terminal.until("auto> ")
    assert "You have 6 eggs." in shown and "near: tiny on a" in shown and "free" in shown
    terminal.type("half a sentence")
    terminal.until("sentence")
    terminal.interrupt()
    for typed, then, told in (
        ("/private\n", "auto, private> ", ""),
        ("/why\n", "auto, private> ", "no far end is there"),
        ("/far\n", "far, private> ", ""),
        ("how many eggs?\n", "far, private> ", "It may not go far"),
        ("/nonsense\n", "far, private> ", "/nonsense is no command"),
        ("/new\n", "far, private> ", "forgotten"),
        ("/why\n", "far, private> ", "nothing was answered yet"),
    ):
        terminal.type(typed)
        assert told in terminal.until(then)
    terminal.type("\x04")
    assert terminal.process.wait(LIMIT) == 0


@pytest.mark.parametrize(
    ("words", "piped", "code", "told"),
    [
        (["--url", "nonsense", "Hello"], b"", 2, "no address of a gateway"),
        (["--url", "http://127.0.0.1:1", "Hello"], b"", 6, "cannot be reached"),
        (["--url", "http://127.0.0.1:1", " "], b"", 2, "nothing to say"),
        (["--url", "http://127.0.0.1:1"], b"\n", 2, "nothing to say"),
        (["--url", "http://127.0.0.1:1"], b"\xff\xfe", 2, "no UTF-8 text"),
        (["--url", "http://127.0.0.1:1", "--system", "@/nowhere/to/be/found", "Hello"], b"", 2, "cannot be read"),
    ],
)
def test_what_cannot_be_said_is_told_at_once(
    tmp_path: Path, words: list[str], piped: bytes, code: int, told: str
) -> None:
    command = [sys.executable, "-m", "nearfar.cli.main", "chat", *words]
    env = environment(tmp_path / "home")
    done = subprocess.run(command, input=piped, capture_output=True, env=env, check=False, timeout=LIMIT)
    said = " ".join(done.stderr.decode().split())
    assert done.returncode == code and told in said and "Traceback" not in said and not done.stdout


def test_errors_of_the_gateway_end_with_their_own_code(lab: Lab, tmp_path: Path) -> None:
    node = lab.node("a", [talking(tmp_path, "tiny")])
    far = nearfar("chat", "--far", "Hello", home=node.home)
    assert far.code == 7 and "No far end is there" in far.sentence and "nearfar far add" in far.sentence
    both = nearfar("chat", "--far", "--private", "Hello", home=node.home)
    assert both.code == 7 and "private, fleet at most" in both.sentence
    unknown = nearfar("chat", "--model", "tinny", "Hello", home=node.home)
    assert unknown.code == 3 and "did you mean tiny" in unknown.sentence
