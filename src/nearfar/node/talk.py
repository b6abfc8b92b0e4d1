"""The heart of a language service: as many threads as the engine has slots, each with one conversation at a time.

The engine batches what its slots do. Pieces of a streamed answer leave as they come, the first at once; those that come
faster than a reader could tell apart travel together.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sized

import msgspec

from nearfar.errors import DeadlineExceeded, InferenceError, InputError, Moved, NearfarError, Overloaded
from nearfar.mesh.base import Call
from nearfar.node.handover import OFFERED, Handover
from nearfar.node.meter import Meter
from nearfar.node.talkmeter import TextMeter
from nearfar.node.talktest import Probe
from nearfar.node.worker import Description, refuse
from nearfar.runtimes.states import Resumed
from nearfar.runtimes.text import LoadedText, OnPiece
from nearfar.types.request import Stages
from nearfar.types.wire import TEXT, CallHead, Operation, ReplyHead, TextContext, decode_call, encode

log = logging.getLogger(__name__)
TOGETHER = 0.008
"""Seconds within which pieces of one answer travel together: above 125 pieces a second nobody sees the difference."""
FEW = 2
"""More pieces than this in that time are written faster than anybody reads: they travel together for twice as long, as
a screen shows 60 pictures a second."""
MOST_TOGETHER = 0.032
"""The same while several answers are written at once, which share the machine: 30 pieces a second, as a film has."""
GRACE = 0.5
"""Seconds that a streamed answer is given to end when the service is to; then it is handed over to another one. That of
a far end, which nobody can go on with, has as long as there is."""
GOODBYE = 1.0
"""Seconds before the end at which whoever still waits for a whole answer is told to ask another."""
NEWLINE = b"\n"
_NO_STAGES = Stages()
_NO_CONTEXT = TextContext()


class _Sender:
    """The pieces of one answer on their way to the caller."""

    __slots__ = ("_at_once", "_call", "_held", "_sent", "_streamed", "dropped", "first", "last")

    def __init__(self, call: Call, streamed: bool, at_once: Sized) -> None:
        """`at_once`: what is worked on now, this call included."""
        self._call = call
        self._at_once = at_once
        self._streamed = streamed
        self._held: list[bytes] = []
        self._sent = 0.0
        self.first = 0.0
        """Moment of the monotonic clock at which the first piece came."""
        self.last = b""
        self.dropped = False
        """Whether the engine was stopped in the middle, as the service is to end."""

    def take(self, piece: bytes) -> bool:
        if not piece:  # the engine is at work, and says no more
            return self._call.cancelled
        now = time.monotonic()
        if not self.last:
            self.first = now
        self.last = piece
        self._held.append(piece)
        if self._streamed and self._due(now - self._sent):
            self._call.reply(b"", [NEWLINE.join(self._held)], last=False)
            self._held.clear()
            self._sent = now
        return self._call.cancelled

    def _due(self, since: float) -> bool:
        """Whether what is held goes out, so many seconds after the last message."""
        together = min(MOST_TOGETHER, TOGETHER * len(self._at_once))
        return since >= together and (len(self._held) <= FEW or since >= min(MOST_TOGETHER, 2 * together))

    def flush(self) -> None:
        """Send what is held back; more is to come."""
        if self._streamed and self._held:
            self._call.reply(b"", [NEWLINE.join(self._held)], last=False)
            self._held.clear()

    def end(self, head: bytes) -> None:
        self._call.reply(head, [NEWLINE.join(self._held)] if self._held else ())


class TextPool:
    """The queue of a language service and its threads; the face of `worker.Pool`."""

    def __init__(
        self,
        loaded: LoadedText,
        meter: Meter,
        text: TextMeter,
        description: Description,
        limit: int,
        changed: Callable[[], None],
        handover: Handover | None = None,
    ) -> None:
        """`handover`: by what states of answers come and go; without it none does."""
        self._loaded = loaded
        self._handover = handover
        self._waiting: queue.SimpleQueue[Call | Probe | None] = meter.waiting
        self._meter = meter
        self._text = text
        self._limit = limit
        self._variant = description.variant
        self._description = msgspec.json.encode(description)
        self._changed = changed
        self._closing: NearfarError | None = None
        self._handing_over = False
        """Streamed answers go on elsewhere, from now on."""
        self._ending = False
        """Nothing is worked on any more."""
        self.broken: NearfarError | None = None
        self._since: dict[int, float] = {}
        """Number of a thread -> moment at which it last heard of its call's engine."""
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"slot-{number}", daemon=True)
            for number in range(loaded.slots)
        ]
        for thread in self._threads:
            thread.start()

    def accept(self, call: Call) -> None:
        """The mesh's callback: refuses at once when the queue is full."""
        queued = self._waiting.qsize()
        error = self.broken or self._closing
        if error is None and queued >= self._limit:
            self._meter.refuse()
            wait = max(0.05, queued * self._meter.recent_ms / 1000 / len(self._threads))
            error = Overloaded(f"The queue is full: {queued} requests wait.", "Try again later.", retry_after=wait)
        if error is not None:
            with contextlib.suppress(NearfarError):  # the caller is gone; this thread is the mesh's
                refuse(call, error, self._variant, queued)
            return
        self._waiting.put(call)
        if queued >= len(self._threads):
            self._changed()

    def probe(self, probe: Probe) -> None:
        """A question of the self-test: in turn, counted as no call."""
        self._waiting.put(probe)

    def _run(self, number: int) -> None:
        meter = self._meter
        while (call := self._waiting.get()) is not None:
            if call.cancelled:
                continue
            if isinstance(call, Probe):
                self._since[number] = time.monotonic()
                call.run()
                del self._since[number]
                continue
            meter.count_in()
            self._since[number] = time.monotonic()
            try:
                self._answer(call, number)
            except NearfarError as error:  # the answer could not be sent: too large, or the way is gone
                with contextlib.suppress(NearfarError):
                    self._refuse(call, error)
            except Exception:  # a thread that dies would leave a service that looks healthy and answers less
                log.exception("an answer could not be sent")
            finally:
                del self._since[number]
                meter.count_out()
                self._changed()

    def _answer(self, call: Call, number: int) -> None:
        start = time.monotonic()
        waited = (start - call.received) * 1000
        try:
            head = decode_call(call.head)
            if self.broken is not None:
                raise self.broken
            if self._handing_over:
                raise self._closing or Overloaded("The service is stopping.", "Try again.", 0.1)
            if head.operation is Operation.DESCRIBE:
                call.reply(encode(ReplyHead(self._variant, _NO_STAGES)), [self._description])
                return
            budget = self._budget(head, waited)
            context = head.text or _NO_CONTEXT
            sender = _Sender(call, context.streamed, self._since)

            def take(piece: bytes) -> bool:
                self._since[number] = time.monotonic()
                gone = sender.take(piece)
                if self._ending or (self._handing_over and context.streamed):
                    sender.dropped = True
                    return True
                return gone

            mark, restored = self._run_call(head.operation, bytes(call.body), take, context, budget)
        except msgspec.MsgspecError as error:
            self._refuse(call, InputError(f"The request cannot be read: {error}."))
        except NearfarError as error:
            self._refuse(call, error)
        except Exception as error:  # an engine broke: say so, and go on with the next call
            self._refuse(call, InferenceError(f"{type(error).__name__}: {error}", "Report it with the model's name."))
        else:
            if call.cancelled and not sender.last:
                return
            if sender.dropped:
                sender.flush()
                moved = Moved("The service is stopping.", "Ask another to go on.")
                if mark and sender.last and self._handover is not None:
                    moved.state = self._handover.offer(mark)
                refuse(call, moved, self._variant, 0)
                return
            end = time.monotonic()
            stages = self._text.answered(sender.last, waited, start, sender.first, end)
            self._meter.answer(stages)
            state = self._handover.finished(mark) if mark and self._handover is not None else None
            sender.end(encode(ReplyHead(self._variant, stages, (), None, self._meter.queued, restored, state)))

    def _run_call(
        self, operation: Operation, body: bytes, take: OnPiece, context: TextContext, budget: float
    ) -> tuple[int, int]:
        """Answer it, from its state where that is known: (its mark, tokens that were restored)."""
        handover = self._handover
        if handover is None:
            self._loaded.run(operation, body, take, context, budget)
            return 0, 0
        resumed = handover.resumed(operation, body, context) if context.state is not None else None
        if resumed is not None:
            if resumed.first:
                take(resumed.first)
            operation, body, take = resumed.operation, resumed.body, _translated(resumed, take)
        marked = handover.marked(body, context)
        if marked is not None:
            body = marked.body
        self._loaded.run(operation, body, take, context, budget)
        return marked.mark if marked else 0, resumed.tokens if resumed else 0

    def _budget(self, head: CallHead, waited: float) -> float:
        """What is left of the deadline in milliseconds; 0 for none. Raises `DeadlineExceeded`, `InputError`."""
        if head.operation not in TEXT:
            raise InputError("This model takes text, not tensors or pictures.", "Use /v1/chat/completions.")
        if head.budget_ms and waited > head.budget_ms:
            raise DeadlineExceeded(f"The request waited {waited:.0f} ms, longer than its deadline allowed.")
        return head.budget_ms and head.budget_ms - waited

    def _refuse(self, call: Call, error: NearfarError) -> None:
        self._meter.fail(error)
        refuse(call, error, self._variant, self._meter.queued)

    def longest(self, now: float) -> float:
        """Seconds since the engine last said something of a call it works on; 0 when it works on none, or when that is
        not for us to judge: a far end may be slow, and its engine gives it up by itself."""
        if not self._loaded.free:
            return 0.0
        return max((now - since for since in tuple(self._since.values())), default=0.0)

    def close(self, patience: float = 5.0) -> None:
        """Stop, in `patience` seconds at most. What comes meanwhile is refused. Streamed answers that do not end by
        themselves at once are handed over; who waits for a whole one gets it when it comes in time."""
        self._closing = self.broken or Overloaded("The service is stopping.", "Try again.", 0.1)
        for _ in self._threads:
            self._waiting.put(None)
        now = time.monotonic()
        grace = GRACE if self._loaded.free else patience - GOODBYE
        self._join(now + max(0.0, min(grace, patience)))
        self._handing_over = True
        self._join(now + max(0.0, patience - GOODBYE))
        self._ending = True
        self._join(now + patience)
        if self._handover is not None:
            self._handover.finish(min(time.monotonic() + OFFERED, now + patience + GOODBYE))
            self._handover.close()

    def _join(self, end: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))


def _translated(resumed: Resumed, take: OnPiece) -> OnPiece:
    """The engine answers another call than the one that was asked; its caller shall not see that."""

    def translated(piece: bytes) -> bool:
        if not piece:
            return take(piece)
        gone = False
        for chunk in resumed.chunks(piece):
            gone = take(chunk)
        return gone

    return translated
