"""One who asks a fleet all the while, in a process of its own, and checks every answer.

    python -m benchmarks.faults.asker '{"node": ..., "home": ..., ...}'      (`Post`, as JSON)

At one gateway over HTTP: two that send tensors nobody else sends and want them back, one that sends known pictures to
`/v1/detect`. In this process, as a program that uses the library: one live stream with a deadline and one of a file
that waits. Told what to do by JSON lines on standard input (`Order`), answers `tell` and `stop` with one `Account`.

What is held true of everything that is asked, at any time:
- it ends once, with the right answer or with a code and words, at most `SLACK` seconds after its deadline;
- an answer has the shape and dtype of its model, and nobody else's content;
- a connection breaks only while its gateway's node is being broken (`excused`);
- frames of a stream come out in order, each once, each with an answer, a code or a reason.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.faults.truth import FRAMES, Truth, pictures
from nearfar.client.connect import connect
from nearfar.settings import load
from nearfar.types.ids import ModelName, StreamId
from nearfar.types.image import ImageKind
from nearfar.types.request import Qos
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame, Source
from nearfar.vision.results import FrameResult, Outcome
from nearfar.vision.stream import Watch

DEADLINE = 2.0
SLACK = 10.0
"""Seconds after a deadline at which an end is no longer only late on a busy machine, but lost."""
PAUSE = 0.03
STREAM_DEADLINE_MS = 500.0
STATED = frozenset({429, 499, 500, 503})


class Post(msgspec.Struct, frozen=True):
    """Where this one stands and what it needs."""

    node: str
    home: str
    fleet: str
    join: tuple[str, ...]
    frames: str
    truth: str
    seed: int


class Order(msgspec.Struct, frozen=True):
    do: str
    """`set` (excused, exposed), `mark`, `tell` or `stop`."""
    excused: bool = False
    exposed: bool = False


class Account(msgspec.Struct, frozen=True):
    """What happened since the last one."""

    counts: dict[str, int]
    """By asker and outcome: `tensor/ok`, `tensor/deadline-exceeded`, `live/dropped`, ..."""
    broken: tuple[str, ...]
    """What must never happen, and did."""
    running: dict[str, int]
    """Good answers in a row of each asker since the last `mark`; the least of those of one kind."""
    longest_s: float
    """The longest that anything with a deadline of `DEADLINE` took to its end."""


class Book:
    """Counts, and what must not be."""

    def __init__(self) -> None:
        self.excused = False
        self.exposed = False
        self.excused_until = 0.0
        self._counts: collections.Counter[str] = collections.Counter()
        self._broken: list[str] = []
        self._rows: dict[str, int] = {}
        self._longest = 0.0

    def good(self, who: str) -> None:
        self._counts[f"{_kind(who)}/ok"] += 1
        self._rows[who] = self._rows.get(who, 0) + 1

    def stated(self, who: str, what: str) -> None:
        """No answer, and it was said why."""
        self._counts[f"{_kind(who)}/{what}"] += 1
        self._rows[who] = 0

    def wrong(self, who: str, what: str) -> None:
        """A wrong answer that looks right: counted while a service is known to lie, else a breach."""
        if self.exposed:
            self.stated(who, "exposed")
        else:
            self.breach(who, f"wrong answer: {what}")

    def breach(self, who: str, what: str) -> None:
        self.stated(who, "BROKEN")
        if len(self._broken) < 20:
            self._broken.append(f"{who}: {what}")

    def took(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)

    def follow(self, who: str) -> None:
        """It asks, so it must come to a good answer after a `mark`."""
        self._rows[who] = 0

    def mark(self) -> None:
        self._rows = dict.fromkeys(self._rows, 0)

    def tell(self) -> Account:
        rows: dict[str, int] = {}
        for who, count in self._rows.items():
            rows[_kind(who)] = min(count, rows.get(_kind(who), count))
        account = Account(dict(self._counts), tuple(self._broken), rows, self._longest)
        self._counts.clear()
        self._broken.clear()
        self._longest = 0.0
        return account


def _kind(who: str) -> str:
    return who.partition("-")[0]


class Gateway:
    """The gateway of a node, also after it came back at another port."""

    def __init__(self, post: Post, book: Book, *, name: str) -> None:
        self._run_file = Path(post.home) / "run" / f"{post.node}.json"
        self._book = book
        self._http = httpx.AsyncClient(timeout=DEADLINE + SLACK, trust_env=False)
        self.name = name
        book.follow(name)

    async def ask(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response | None:
        """The answer with status 200; None when there is none, which is in the book then."""
        book = self._book
        try:
            url = json.loads(self._run_file.read_bytes())["gateway"]
        except (OSError, ValueError, KeyError):
            self._torn("its node does not run")
            await asyncio.sleep(0.2)
            return None
        headers = {**headers, "Nearfar-Deadline": f"{DEADLINE * 1000:.0f}ms"}
        start = time.monotonic()
        try:
            response = await self._http.post(url + path, content=body, headers=headers)
        except httpx.TimeoutException:
            self._torn(f"no end in {time.monotonic() - start:.1f} s")
            return None
        except httpx.TransportError as error:
            self._torn(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)
            return None
        book.took(time.monotonic() - start)
        if response.status_code == 200:
            return response
        try:
            told = response.json()
        except ValueError:
            told = {}
        if response.status_code in STATED and told.get("code") and told.get("detail"):
            book.stated(self.name, told["code"])
        else:
            book.breach(self.name, f"{response.status_code} {response.text[:200]}")
        await asyncio.sleep(0.05)
        return None

    def _torn(self, what: str) -> None:
        """No HTTP answer at all. Its reason is that the gateway was ended or stopped, or there is none."""
        if self._book.excused or time.monotonic() < self._book.excused_until:
            self._book.stated(self.name, "gateway-gone")
        else:
            self._book.breach(self.name, f"lost without a reason: {what}")


async def send_tensors(gateway: Gateway, book: Book, seed: int) -> None:
    """Tensors of many sizes whose every number is its own: an answer to another request cannot pass for one's own."""
    rng = np.random.default_rng(seed)
    for number in itertools.count():
        size = int(rng.choice((4, 300, 5_000, 40_000)))
        x = rng.random((1, size), np.float32)
        x[0, 0] = number % 1_000_000
        head = {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, size], "parameters": {"binary_data_size": 4 * size}}
            ],
            "parameters": {"binary_data_output": True},
        }
        text = json.dumps(head).encode()
        response = await gateway.ask(
            "/v2/models/mirror/infer", text + x.tobytes(), {"Inference-Header-Content-Length": str(len(text))}
        )
        if response is not None:
            _check_tensor(gateway.name, book, x, response)
        await asyncio.sleep(PAUSE)


def _check_tensor(who: str, book: Book, x: NDArray[np.float32], response: httpx.Response) -> None:
    length = int(response.headers["inference-header-content-length"])
    head = json.loads(response.content[:length])
    (output,) = head["outputs"] if len(head["outputs"]) == 1 else ({},)
    if (output.get("datatype"), output.get("shape")) != ("FP32", list(x.shape)):
        book.breach(who, f"an output of another shape or dtype was delivered: {head['outputs']}")
        return
    y = np.frombuffer(response.content[length:], np.float32)
    if y.tobytes() == x.tobytes():
        book.good(who)
    else:
        book.wrong(who, f"from {response.headers.get('nearfar-served-by')}: {y[:4]} for {x[0, :4]}")


async def send_pictures(gateway: Gateway, book: Book, truth: Truth, jpegs: list[bytes]) -> None:
    for number in itertools.cycle(range(len(jpegs))):
        response = await gateway.ask("/v1/detect?model=yard", jpegs[number], {"Content-Type": "image/jpeg"})
        if response is not None:
            if truth.right_json(response.json(), number):
                book.good(gateway.name)
            else:
                book.breach(gateway.name, f"wrong detections of picture {number}: {response.text[:300]}")
        await asyncio.sleep(2 * PAUSE)


class Known(Source):
    """The known pictures over and over, at a rate. Live ones come when they come; a file waits to be read."""

    def __init__(self, known: list[tuple[bytes, NDArray[np.uint8]]], rate: float, *, live: bool) -> None:
        self.uri = "known pictures"
        self.live = live
        self._known = known
        self._rate = rate
        self._index = 0
        self._due = 0.0
        self._closing = threading.Event()

    def read(self) -> Frame | None:
        now = time.monotonic()
        self._due = max(self._due + 1 / self._rate, now - 1.0) if self._index else now
        if self._closing.wait(max(0.0, self._due - now)):
            self.ended = "stopped"
            return None
        jpeg, image = self._known[self._index % FRAMES]
        frame = Frame(self._index, Seconds(time.monotonic()), image, jpeg=jpeg)
        self._index += 1
        return frame

    def close(self) -> None:
        self._closing.set()


class Stream:
    """Checks what a stream gives; its account is complete when it has ended."""

    def __init__(self, name: str, book: Book, truth: Truth) -> None:
        self.name = name
        self._book = book
        self._truth = truth
        self._next = 0
        book.follow(name)

    def take(self, result: FrameResult, image: Any) -> None:
        book = self._book
        if result.index != self._next:
            book.breach(self.name, f"frame {result.index} came where frame {self._next} was due")
        self._next = result.index + 1
        if result.outcome in (Outcome.ANSWERED, Outcome.LATE):
            assert result.answer is not None and result.sent is not None
            if not self._truth.right(result.answer, result.sent, result.index % FRAMES):
                book.breach(self.name, f"wrong detections of frame {result.index} from {result.served_by}")
            elif result.outcome is Outcome.ANSWERED:
                book.good(self.name)
            else:
                book.stated(self.name, "late")
        elif result.outcome is Outcome.FAILED and result.error is not None and result.error.code:
            book.stated(self.name, result.error.code)
        elif result.outcome is Outcome.DROPPED and result.reason:
            book.stated(self.name, "dropped")
        else:
            book.breach(self.name, f"frame {result.index} is {result.outcome.value} without a reason")

    def close(self, watch: Watch) -> None:
        summary = watch.summary
        if summary.accounted != summary.read or self._next != summary.read:
            told = f"{summary.accounted} accounted, {self._next} delivered"
            self._book.breach(self.name, f"of {summary.read} frames {told}")


async def main(post: Post) -> None:
    book = Book()
    truth = Truth(Path(post.truth))
    known = pictures(Path(post.frames))
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[Order | None] = asyncio.Queue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(orders.put_nowait, msgspec.json.decode(line, type=Order))
        loop.call_soon_threadsafe(orders.put_nowait, None)

    threading.Thread(target=listen, daemon=True).start()
    gateways = [Gateway(post, book, name=name) for name in ("tensor-1", "tensor-2", "picture-1")]
    flags = {"home": post.home, "mesh.fleet": post.fleet, "mesh.join": post.join, "mesh.discover": False}
    async with connect(load(flags), wait=20.0) as client:
        random.seed(post.seed)
        model = ModelName("yard")
        await client.wait_for(model, 30.0)
        live, file = Stream("live-1", book, truth), Stream("file-1", book, truth)
        watches = [
            Watch(
                Known(known, 8.0, live=True),
                client,
                model,
                Qos(Milliseconds(STREAM_DEADLINE_MS)),
                on_result=live.take,
                stream=StreamId("live"),
                always=ImageKind.ENCODED,
            ),
            Watch(
                Known(known, 5.0, live=False),
                client,
                model,
                on_result=file.take,
                stream=StreamId("file"),
                always=ImageKind.BGR,
                give_up=Seconds(3600.0),
            ),
        ]
        streaming = [asyncio.create_task(watch.run()) for watch in watches]
        asking = [
            asyncio.create_task(send_tensors(gateways[0], book, post.seed)),
            asyncio.create_task(send_tensors(gateways[1], book, post.seed + 1)),
            asyncio.create_task(send_pictures(gateways[2], book, truth, [jpeg for jpeg, _ in known])),
        ]
        while True:
            order = await orders.get()
            for task in (*asking, *streaming):
                if task.done():  # one that asks must not end by itself: show why
                    book.breach("asker", f"a task ended: {task.exception() if not task.cancelled() else 'cancelled'}")
            if order is None or order.do == "stop":
                break
            if order.do == "set":
                if book.excused and not order.excused:  # what was sent while it was broken may end a little later
                    book.excused_until = time.monotonic() + DEADLINE
                book.excused, book.exposed = order.excused, order.exposed
            elif order.do == "mark":
                book.mark()
            elif order.do == "tell":
                _say(book.tell())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for watch in watches:
            watch.stop()
        await asyncio.gather(*streaming)
        live.close(watches[0])
        file.close(watches[1])
    _say(book.tell())


def _say(account: Account) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(account) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1].encode(), type=Post)))
    os._exit(0)  # a thread still reads standard input, and Python would wait for it
