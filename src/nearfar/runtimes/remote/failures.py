"""What went wrong with an attempt, what it means for the bill, and whether to try again: pure functions.

A request is tried again only while nothing of its answer was delivered. Each attempt has its own row in the ledger, so
that one which may have been billed is on record before the next is made.
"""

from __future__ import annotations

import email.utils
import random
from collections.abc import Mapping
from datetime import UTC, datetime

from nearfar.errors import InferenceError, InputError, NearfarError, Overloaded
from nearfar.ledger import Outcome

FIRST_BACK_OFF = 0.5
LONGEST_BACK_OFF = 8.0
"""Seconds; the nth wait is drawn from 0 to FIRST_BACK_OFF * 2^n ("full jitter": M. Brooker, "Exponential Backoff And
Jitter", AWS Architecture Blog, 2015), and at least what the far end asked for."""
PATIENCE = 30.0
"""Longest wait in seconds that a far end may ask of a call without a deadline; other services may do better."""
DEFAULT_RETRY_AFTER = 5.0
"""Seconds after which an overloaded far end that says nothing is worth asking again."""


class Failed(Exception):
    """An attempt without an answer, or with a part of one.

    `error` is for the caller, `words` are for the ledger: ours alone, nothing of a prompt, an answer or a far end.
    """

    def __init__(
        self,
        error: NearfarError,
        outcome: Outcome,
        words: str,
        *,
        status: int = 0,
        again: bool = False,
        after: float | None = None,
    ) -> None:
        super().__init__(words)
        self.error = error
        self.outcome = outcome
        self.words = words
        self.status = status
        self.again = again
        """Whether another attempt may do better."""
        self.after = after
        """Seconds that the far end asked to wait."""


def of_status(
    status: int, headers: Mapping[str, str], code: str, message: str, host: str, model: str, key_place: str
) -> Failed:
    """What an answer means whose status is not 2xx. `code` is one of the known ones or empty, `message` the far end's
    own, which only the caller sees."""
    words = f"HTTP {status}" + (f" {code}" if code else "")
    said = f" ({message})" if message else ""
    if 300 <= status < 400:
        to = headers.get("location", "")[:100]
        error: NearfarError = InferenceError(
            f"{host} sends the call elsewhere ({to or 'it does not say where'}), where the key must not follow.",
            "Add the far end again with the --base-url that is meant.",
        )
        return Failed(error, Outcome.NOT_BILLED, words, status=status)
    if status in (401, 403):
        what = "refused the key" if status == 401 else f"does not allow {model} with this key"
        error = InferenceError(f"{host} {what} (HTTP {status}).", f"Check what is in {key_place}.")
        return Failed(error, Outcome.NOT_BILLED, words, status=status)
    if status == 404:
        error = InferenceError(
            f"{host} does not know the model {model}, or not at this address (HTTP 404).",
            "Check --model and --base-url: `nearfar far list` shows them.",
        )
        return Failed(error, Outcome.NOT_BILLED, words, status=status)
    if status == 429:
        return _too_many(headers, code, words, host)
    if status in (408, 409, 425):
        error = InferenceError(f"{host} did not take the call (HTTP {status}).", "Try again later.")
        outcome = Outcome.MAYBE_BILLED if status == 408 else Outcome.NOT_BILLED
        return Failed(error, outcome, words, status=status, again=True)
    if 400 <= status < 500:
        error = InputError(f"{host} does not take this request (HTTP {status}){said}.", "Change the request.")
        return Failed(error, Outcome.NOT_BILLED, words, status=status)
    after = retry_after(headers)
    if status in (503, 529):
        error = Overloaded(f"{host} is overloaded (HTTP {status}).", "Try again later.", after or DEFAULT_RETRY_AFTER)
    else:
        error = InferenceError(f"{host} failed (HTTP {status}).", "Try again later.")
    # No provider is known to bill for these, but behind a proxy the model may have run: not for us to say.
    return Failed(error, Outcome.MAYBE_BILLED, words, status=status, again=status not in (501, 505), after=after)


def _too_many(headers: Mapping[str, str], code: str, words: str, host: str) -> Failed:
    if code == "insufficient_quota":
        error: NearfarError = InferenceError(f"What was paid for at {host} is used up (HTTP 429).", "Pay there.")
        return Failed(error, Outcome.NOT_BILLED, words, status=429)
    after = retry_after(headers)
    error = Overloaded(f"{host} wants fewer calls (HTTP 429).", "Try again later.", after or DEFAULT_RETRY_AFTER)
    return Failed(error, Outcome.NOT_BILLED, words, status=429, again=True, after=after)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait, from `retry-after` (seconds, or a date; RFC 9110, 10.2.3); None when it does not say so.

    >>> retry_after({"retry-after": "7"}), retry_after({"retry-after": "soon"}), retry_after({})
    (7.0, None, None)
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():  # some send fractions
        return min(float(text), 1e6)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - (now or datetime.now(UTC))).total_seconds()), 1e6)


def wait_before(
    retry: int, failed: Failed, left: float | None, most: int, chance: random.Random
) -> tuple[float | None, str]:
    """(seconds to wait before the nth retry, ""), or (None, why there is none). `left` seconds until the deadline."""
    if not failed.again:
        return None, "another attempt would not do better"
    if retry > most:
        return None, f"{most} retries were made" if most else "no retry is allowed"
    wait = chance.uniform(0, min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2**retry))
    wait = max(wait, failed.after or 0.0)
    if left is not None and wait >= left:
        return None, f"the next attempt would come in {wait:.1f} s, after the deadline"
    if left is None and wait > PATIENCE:
        return None, f"the far end asks for a wait of {wait:.0f} s"
    return wait, ""
