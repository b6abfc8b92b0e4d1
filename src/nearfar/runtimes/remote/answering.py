"""An answer's body becomes pieces for the caller, and a bill.

The last piece is held back until the bill is in the ledger, and carries it in a field `nearfar`. A chunk with the usage
that only we asked for is taken out of the stream again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from nearfar.errors import InferenceError, Unreachable
from nearfar.ledger import Counted, Outcome
from nearfar.runtimes.remote.bill import Bill
from nearfar.runtimes.remote.description import FarEnd
from nearfar.runtimes.remote.failures import Failed
from nearfar.runtimes.remote.incoming import Malformed, Piece, Told, Usage, complete, read_piece, rewritten, usage_of
from nearfar.runtimes.remote.outgoing import Outgoing
from nearfar.runtimes.remote.sse import Events, TooLong
from nearfar.types.wire import Operation

if TYPE_CHECKING:
    from nearfar.runtimes.remote.transport import Allowance, Response

LONGEST_S = 1800.0
"""Seconds that a stream may go on after its first piece."""
DRAIN_S, DRAIN_BYTES = 0.5, 65536
"""What is waited for and read behind the end of a stream, so that the connection can be used again."""
OnPiece = Callable[[bytes], bool]


class Gone(Exception):
    """The caller left."""


class Teller(Protocol):
    """What must be known of who is asked."""

    name: str
    description: FarEnd

    def without_key(self, text: str) -> str: ...


class Answering:
    """The body of one attempt. `pay` writes the bill down; it is called once, before the last piece is given."""

    def __init__(
        self,
        operation: Operation,
        asked: Outgoing,
        teller: Teller,
        on_piece: OnPiece,
        pay: Callable[[Usage, str], Bill],
    ) -> None:
        self._operation = operation
        self._asked = asked
        self._teller = teller
        self._name = teller.name
        self._host = teller.description.host
        self._on_piece = on_piece
        self._pay = pay
        self._held: bytes | None = None
        self._last = b""
        self._usage: Any = None
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._theirs = ""
        self.paid = False
        self.given = 0
        """Pieces that the caller has."""
        self.written = 0
        """Bytes of text that came."""
        self.pieces = 0

    def usage(self) -> Usage:
        """What is owed for what came so far."""
        return usage_of(self._usage, self._asked, self._operation, self.written, self.pieces)

    def read(self, response: Response, most: int, allowance: Allowance) -> None:
        """Give the answer on. Raises `Failed`, `Gone`, and what `on_piece` raises."""
        try:
            if self._asked.streamed:
                self._read_stream(response, most, allowance)
            else:
                self._read_whole(response, most)
        except (Malformed, TooLong) as error:
            words = f"sent {str(error) or 'an event without an end'}"
            raise self._failed(InferenceError(f"{self._host} {words}.", "Try again later."), words) from None
        except Told as error:
            said = f": {self._teller.without_key(error.message).rstrip('.')}" if error.message else ""
            words = f"told an error in its answer {error.code}".strip()
            failure = InferenceError(f"{self._host} failed while it answered{said}.", "Try again later.")
            raise self._failed(failure, words) from None
        except Failed as failed:  # of the transport
            if not self.given:
                raise
            cut = Unreachable(f"{self._host} broke off after {self.given} pieces.", "Ask again.")
            raise Failed(cut, Outcome.CUT, f"cut: {failed.words}", status=response.status) from failed

    def _failed(self, error: InferenceError, words: str) -> Failed:
        """Once something was given on, no other attempt may follow: two answers must not be spliced."""
        outcome = Outcome.CUT if self.given else Outcome.MAYBE_BILLED
        return Failed(error, outcome, words, status=200, again=not self.given)

    # -- one answer -------------------------------------------------------------------------------------------------

    def _read_whole(self, response: Response, most: int) -> None:
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise Malformed(f"an answer of {length} bytes, more than {most}")
        data = bytearray()
        for chunk in response.chunks:
            data += chunk
            if len(data) > most:
                raise Malformed(f"an answer of more than {most} bytes")
        if "html" in response.headers.get("content-type", ""):
            raise Malformed("a page instead of an answer")
        piece = read_piece(bytes(data))
        complete(self._operation, piece)
        self._look(bytes(data), piece)
        usage = self.usage()
        bill = self._bill(usage)
        fields: dict[str, Any] = {"model": self._name, "nearfar": bill}
        if usage.counted is Counted.ESTIMATED:
            fields["usage"] = _estimated(usage)
        self._give(rewritten(bytes(data), fields))

    # -- a stream ---------------------------------------------------------------------------------------------------

    def _read_stream(self, response: Response, most: int, allowance: Allowance) -> None:
        if "event-stream" not in response.headers.get("content-type", ""):
            raise Malformed("no stream of events, though one was asked for")
        chunks = _bounded(response.chunks, most)
        done = False
        events = Events()
        for chunk in chunks:
            for data in events.feed(chunk):
                if done := data.strip() == b"[DONE]":
                    break
                self._take(data)
                if self.given:
                    allowance.end = max(allowance.end, time.monotonic() + LONGEST_S)  # it was for the first token
            if done:
                break
        if not self._seen:
            raise Malformed("a stream without an answer")
        if not done and self._finished < self._seen:
            raise self._failed_cut()
        self._finish()
        allowance.end = time.monotonic() + DRAIN_S
        with contextlib.suppress(Failed, Malformed, Exception):
            for chunk in _bounded(chunks, DRAIN_BYTES):
                del chunk

    def _failed_cut(self) -> Failed:
        told = f"ended its stream without a reason after {self.given} pieces"
        error = Unreachable(f"{self._host} {told}.", "Ask again.")
        outcome = Outcome.CUT if self.given else Outcome.MAYBE_BILLED
        return Failed(error, outcome, told, status=200, again=not self.given)

    def _take(self, data: bytes) -> None:
        piece = read_piece(data)
        if piece.choices is None:
            raise Malformed("a chunk without choices")
        self._look(data, piece)
        only_usage = piece.usage is not None and not piece.choices
        if only_usage and not self._asked.usage_asked:
            return
        if self._held is not None:
            held, self._held = self._held, None
            self._give(held)
        fields: dict[str, Any] = {"model": self._name}
        if not self._asked.usage_asked:
            fields["usage"] = None
        made = rewritten(data, fields)
        if piece.finishes() or only_usage:
            self._held = made
        else:
            self._give(made)

    def _finish(self) -> None:
        usage = self.usage()
        if self._asked.usage_asked and (self._held is None or usage.counted is Counted.ESTIMATED):
            # The caller waits for a usage: ours when the far end's is absent or not to be believed.
            held, self._held = self._held, None
            if held is not None and read_piece(held).choices:
                self._give(held)
            told = _estimated(usage) if usage.counted is Counted.ESTIMATED else self._usage
            self._held = rewritten(self._last, {"model": self._name, "choices": [], "usage": told})
        bill = self._bill(usage)
        if self._held is not None:
            self._give(rewritten(self._held, {"nearfar": bill}))

    # -- both -------------------------------------------------------------------------------------------------------

    def _look(self, data: bytes, piece: Piece) -> None:
        """Count a piece."""
        self._last = data
        if not self._theirs:
            self._theirs = piece.model[:200]
        if piece.usage is not None:
            self._usage = piece.usage
        for choice in piece.choices or ():
            self._seen.add(choice.index)
            if choice.finish_reason:
                self._finished.add(choice.index)
        size = piece.size()
        self.written += size
        self.pieces += size > 0

    def _bill(self, usage: Usage) -> Bill:
        self.paid = True
        return self._pay(usage, self._theirs)

    def _give(self, piece: bytes) -> None:
        self.given += 1
        if self._on_piece(piece) and not self.paid:
            raise Gone


def _bounded(chunks: Iterator[bytes], most: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise Malformed(f"a stream of more than {most} bytes")
        yield chunk


def _estimated(usage: Usage) -> dict[str, Any]:
    total = usage.tokens_in + usage.tokens_out
    counts = {"prompt_tokens": usage.tokens_in, "completion_tokens": usage.tokens_out, "total_tokens": total}
    return {**counts, "estimated": True}
