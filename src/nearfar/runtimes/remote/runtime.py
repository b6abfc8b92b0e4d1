"""A far end as a runtime: what is loaded is its address, its price and its key; what runs is a call to it.

Nothing leaves for a call whose privacy is not `any`: that is looked at before anything else, whoever asks. Every
attempt has its row in the ledger before it is sent, and no attempt is made that cannot be written down.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nearfar import ledger as book
from nearfar.errors import (
    DeadlineExceeded,
    InferenceError,
    LedgerError,
    PrivateRefused,
    RuntimeUnavailable,
)
from nearfar.ledger import Attempt, Counted, End, Ledger, Outcome
from nearfar.runtimes import engine
from nearfar.runtimes.engine import load_engine
from nearfar.runtimes.remote.bill import Bill
from nearfar.runtimes.remote.description import FarEnd, Key, read, read_key
from nearfar.runtimes.remote.failures import Failed, of_status, wait_before
from nearfar.runtimes.remote.incoming import Usage, error_of
from nearfar.runtimes.remote.outgoing import Outgoing, outgoing
from nearfar.runtimes.text import LoadedText, OnPiece, TextFacts, TextOptions, TextRuntime
from nearfar.types.request import Privacy
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.wire import Operation, TextContext

if TYPE_CHECKING:
    from nearfar.runtimes.remote.answering import Answering
    from nearfar.runtimes.remote.transport import Response, Transport

log = logging.getLogger(__name__)

LEDGER = "ledger"
"""Name of the setting in `TextOptions.settings` that says where the ledger is."""
INSTALL = "pip install 'httpcore>=1,<2'"
TYPICAL_MS = 1500.0
"""Milliseconds of a call to a far end of which nothing is known: an assumption, until its first answer."""
ERROR_BYTES, ERROR_S = 65536, 5.0
"""Of an error's body so much is read, for so many seconds: its status says the most."""


class RemoteRuntime(TextRuntime):
    """Any API that speaks the OpenAI convention."""

    name = "remote"
    formats = ("far",)

    def available(self) -> str | None:
        return None if engine.installed("httpcore") else f"httpcore is not installed. Type: {INSTALL}"

    def units(self) -> tuple[ComputeUnit, ...]:
        if self.available():
            return ()
        return (ComputeUnit(UnitKind.FAR, "far", "the work is done by the far end; here is only the call"),)

    def facts(self, path: Path) -> TextFacts:
        """What the description says. Raises `ModelFileError`."""
        far = read(path)
        return TextFacts("far end", 0, far.context, "", chat=True)

    def load_text(self, path: Path, options: TextOptions) -> RemoteText:
        """Read the description and the key; nothing is sent. `options.settings["ledger"]` is the ledger's path.

        Raises `ModelFileError`, and `RuntimeUnavailable` when the key is not where the description says.
        """
        load_engine("httpcore", INSTALL)
        far = read(path)
        place = options.settings.get(LEDGER, "")
        if not place:
            raise RuntimeUnavailable(
                f"{options.name} has no ledger to write to.", f"Set {LEDGER!r} in the settings it is loaded with."
            )
        return RemoteText(far, read_key(far), options.name, Ledger(Path(place)))


class RemoteText(LoadedText):
    """A far end that may be called. Safe for several threads."""

    free = False

    def __init__(
        self, far: FarEnd, key: Key | None, name: str, ledger: Ledger, chance: random.Random | None = None
    ) -> None:
        from nearfar.runtimes.remote.transport import Transport

        self.description = far
        self.name = name
        self.slots = far.slots
        self.context = far.context
        self.prices = (far.price_in, far.price_out, far.currency)
        self._ledger = ledger
        self._secret = key.value if key is not None else ""
        self._transport: Transport = Transport(far, key)
        self._chance = chance or random.Random()  # noqa: S311 - spreads retries, keeps no secret
        self._closing = threading.Event()
        self._expected: tuple[float, float] | None = None

    def expected_cost(self) -> float:
        """The mean of the last answers at today's prices; before the first the price of 500 tokens in and 250 out."""
        return self._means()[0]

    def expected_ms(self) -> float:
        """The mean of the last answers; before the first `TYPICAL_MS`."""
        return self._means()[1]

    def _means(self) -> tuple[float, float]:
        if self._expected is None:  # what was paid since the last look changes them
            far = self.description
            start = (far.expected_price(), TYPICAL_MS)
            try:
                self._expected = self._ledger.means(self.name, far.model, (far.price_in, far.price_out)) or start
            except LedgerError as error:
                log.warning("what %s costs is taken from its price list: %s", self.name, error)
                self._expected = start
        return self._expected

    def run(
        self, operation: Operation, body: bytes, on_piece: OnPiece, context: TextContext, budget_ms: float = 0.0
    ) -> None:
        """As `LoadedText.run`; also raises `PrivateRefused`, `LedgerError`, and `Unreachable` for a far end that is not
        there or broke off. Retries while the deadline allows and nothing was given on."""
        if context.privacy is not Privacy.ANY:
            raise PrivateRefused(
                f"The call's privacy is {context.privacy.value}, and {self.name} is a far end.",
                "Ask a model of the fleet, or allow it with privacy any.",
            )
        asked = outgoing(operation, body, self.description)
        call = Call(self, operation, asked, on_piece, context, budget_ms)
        while (wait := call.attempt()) is not None:
            if self._closing.wait(wait):
                raise RuntimeUnavailable(f"{self.name} is closing.", "Ask again.")

    def close(self) -> None:
        self._closing.set()
        self._transport.close()
        self._ledger.close()

    # -- for `Call` -------------------------------------------------------------------------------------------------

    @property
    def transport(self) -> Transport:
        if self._closing.is_set():
            raise InferenceError(f"{self.name} was closed.", "Load it again.")
        return self._transport

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def chance(self) -> random.Random:
        return self._chance

    def paid(self) -> None:
        """Another row was completed."""
        self._expected = None

    def without_key(self, text: str) -> str:
        """A far end's words without the key, which some repeat."""
        text = " ".join(text.split())
        return (text.replace(self._secret, "***") if self._secret else text)[:300]


class Call:
    """One request and its attempts."""

    def __init__(
        self,
        text: RemoteText,
        operation: Operation,
        asked: Outgoing,
        on_piece: OnPiece,
        context: TextContext,
        budget_ms: float,
    ) -> None:
        self._text = text
        self._operation = operation
        self._asked = asked
        self._on_piece = on_piece
        self._context = context
        self._end = time.monotonic() + budget_ms / 1000 if budget_ms > 0 else None
        self._request = context.request or uuid.uuid4().hex
        self._attempts = 0
        self._entry: Attempt | None = None
        self._row = 0
        self._began = 0.0

    def attempt(self) -> float | None:
        """Ask once. None when the answer was given or the caller left, else seconds to wait before the next attempt;
        raises what the caller is told when there is no next."""
        from nearfar.runtimes.remote.answering import Answering, Gone

        self._attempts += 1
        self._write_down()
        answering = Answering(self._operation, self._asked, self._text, self._on_piece, self._pay)
        try:
            self._exchange(answering)
            return None
        except Gone:
            self._close(Outcome.CANCELLED, answering.usage(), 200, "the caller left")
            return None
        except Failed as failed:
            self._close_failed(failed, answering)
            return self._next(failed)
        except BaseException as error:
            if not answering.paid:  # what the caller's own code raised, or an interrupt
                self._close(Outcome.CANCELLED, answering.usage(), 0, f"ended by {type(error).__name__}")
            raise

    def _exchange(self, answering: Answering) -> None:
        from nearfar.runtimes.remote.transport import Allowance

        far = self._text.description
        limit = self._began + 10 * far.timeout_s
        allowance = Allowance(far.timeout_s, limit if self._end is None else self._end)
        asked = self._asked
        with self._text.transport.post(asked.path, asked.body, allowance, self._request, asked.streamed) as response:
            if not 200 <= response.status < 300:
                allowance.end = min(allowance.end, time.monotonic() + ERROR_S)
                raise self._refused(response)
            answering.read(response, far.max_answer, allowance)

    def _refused(self, response: Response) -> Failed:
        body = bytearray()
        with contextlib.suppress(Failed):
            for chunk in response.chunks:
                body += chunk
                if len(body) > ERROR_BYTES:
                    break
        try:
            told = msgspec.json.decode(bytes(body))
            code, message = error_of(told.get("error") or told if isinstance(told, dict) else None)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            code, message = "", ""  # a page, or nothing
        far = self._text.description
        place = f"the variable {far.key_env}" if far.key_env else (f"the file {far.key_file}" if far.key_file else "")
        return of_status(
            response.status,
            response.headers,
            code,
            self._text.without_key(message).rstrip("."),
            far.host,
            far.model,
            place or "its description: it names no key (--key-env)",
        )

    def _next(self, failed: Failed) -> float:
        left = self._end - time.monotonic() if self._end is not None else None
        wait, why = wait_before(self._attempts, failed, left, self._text.description.max_retries, self._text.chance)
        if wait is None:
            error = failed.error
            if self._attempts > 1 or failed.again:
                error.message = f"{error.message} {self._attempts} attempt(s) were made, and no more: {why}."
                error.args = (error.message,)
            raise error from failed
        log.info("%s: attempt %d failed (%s); again in %.1f s", self._text.name, self._attempts, failed.words, wait)
        return wait

    # -- the ledger -------------------------------------------------------------------------------------------------

    def _write_down(self) -> None:
        """Raises `DeadlineExceeded`, `LedgerError`: then nothing is sent."""
        if self._end is not None and time.monotonic() >= self._end:
            raise DeadlineExceeded(f"No time was left to ask {self._text.name}.", "Allow more time.")
        far, context = self._text.description, self._context
        self._entry = Attempt(
            far_end=self._text.name,
            model=far.model,
            request=self._request,
            attempt=self._attempts,
            operation=self._operation.value,
            privacy=context.privacy.value,
            conversation=context.conversation,
            caller=context.caller,
            why=context.reason,
            tokens_in=self._asked.tokens_in,
            price_in=far.price_in,
            price_out=far.price_out,
            currency=far.currency,
        )
        self._row = self._text.ledger.begin(self._entry)
        self._began = time.monotonic()

    def _pay(self, usage: Usage, theirs: str) -> Bill:
        cost = self._close(Outcome.OK, usage, 200, usage.reason)
        return Bill(
            far=self._text.name,
            model=theirs or self._text.description.model,
            request=self._request,
            attempts=self._attempts,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            counted=usage.counted,
            reason=usage.reason,
            cost=cost,
            currency=self._text.description.currency,
        )

    def _close_failed(self, failed: Failed, answering: Answering) -> None:
        if failed.outcome is Outcome.NOT_BILLED:
            usage = Usage(0, 0, Counted.ESTIMATED)
        else:
            usage = answering.usage()
        self._close(failed.outcome, usage, failed.status, failed.words)

    def _close(self, outcome: Outcome, usage: Usage, status: int, words: str) -> float:
        """Complete the row; what the attempt cost."""
        assert self._entry is not None
        end = End(
            outcome=outcome,
            status=status,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            counted=usage.counted,
            milliseconds=(time.monotonic() - self._began) * 1000,
            failure=words,
        )
        self._text.paid()
        try:
            return self._text.ledger.end(self._row, self._entry, end)
        except LedgerError as error:
            # The answer is here and may be owed: it is given on, and the row stays open, which counts as uncertain.
            log.warning("a call to %s is not completed in the ledger: %s", self._text.name, error)
            return book.price(usage.tokens_in, usage.tokens_out, self._entry.price_in, self._entry.price_out)
