"""What an agent hears from a service process, whatever that process prints and however it ends."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from nearfar.node.child import CACHED, Child
from nearfar.node.spec import Milestone, ServiceSpec, TextSpec
from tests.node.calls import spec
from tests.waiting import until

READY = 'print(\'{"milestone": "ready", "profile_ms": 2.5}\', flush=True)'


async def child_of(code: str) -> Child:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return Child(spec(), process)


def life(code: str, *, kill: str = "") -> Child:
    async def body() -> Child:
        child = await child_of(code)
        if kill:
            child.kill(kill)
        await asyncio.wait_for(child.listen(), 60)
        return child

    return asyncio.run(body())


@pytest.mark.skipif(sys.platform != "linux", reason="it is of glibc")
def test_a_language_service_starts_with_room_for_small_objects_and_no_other_does() -> None:
    async def environment_of(given: ServiceSpec) -> str:
        child = await Child.start(given)
        told = Path(f"/proc/{child.pid}/environ").read_text()
        child.kill("seen")
        await asyncio.wait_for(child.listen(), 60)
        return told

    assert f"GLIBC_TUNABLES={CACHED}" in asyncio.run(environment_of(spec(text=TextSpec(512, 1))))
    assert CACHED not in asyncio.run(environment_of(spec()))


@pytest.mark.parametrize(
    "noise",
    [
        "print('x' * 300_000, end='', flush=True); print()",
        "import sys; sys.stderr.write('y' * 300_000); sys.stderr.flush()",
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 50 + b'\\n'); sys.stdout.flush()",
        'import sys; sys.stdout.buffer.write(b\'{"milestone": "\\xff"}\\n\'); sys.stdout.flush()',
        "print('{}'); print('[1]'); print('{\"milestone\": \"dancing\"}')",
        "import sys; sys.stdout.write('z' * 3_000_000); sys.stdout.flush(); print()",
    ],
)
def test_noise_of_an_engine_is_not_the_end_of_supervision(noise: str) -> None:
    child = life(f"{noise}\n{READY}\nimport sys; sys.stdin.close()")
    assert child.word is not None and child.word.milestone is Milestone.READY
    assert child.word.profile_ms == 2.5
    assert child.ended == "ended as asked"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import sys; sys.exit('the driver is missing')", "exit code 1: the driver is missing"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os, sys; print('bad heap', file=sys.stderr, flush=True); os.abort()", "killed by SIGABRT: bad heap"),
        (
            'print(\'{"milestone": "failed", "message": "cut short"}\', flush=True); raise SystemExit(3)',
            "cut short",
        ),
        (f"{READY}\nraise SystemExit(0)", "ended as asked"),
    ],
)
def test_every_end_is_explained(code: str, told: str) -> None:
    assert life(code).ended == told


def test_a_process_that_was_killed_says_why_and_a_dead_one_cannot_be_killed() -> None:
    child = life("import time; time.sleep(60)", kill="it used 2 GiB of memory")
    assert child.ended == "stopped because it used 2 GiB of memory"
    child.kill("again")
    child.stop()
    assert child.kill_reason == "it used 2 GiB of memory"
    assert child.memory() == 0


def test_every_word_ends_the_silence() -> None:
    async def body() -> None:
        child = await child_of(f"import sys\nfor line in sys.stdin:\n    {READY}")
        listening = asyncio.create_task(child.listen())
        for _ in range(2):
            child.silent = 1e9
            child._process.stdin.write(b"\n")  # type: ignore[union-attr]
            await until(lambda: child.silent == 0.0, "its word was heard")
        child.stop()
        await listening

    asyncio.run(body())
