"""A cascade: answer near first, judge the answer, and ask far only when the judgement is poor.

The near answer is always paid for, and nothing is given before it was judged: a caller who asked for a stream gets no
token until the near model has finished. Then the near answer comes as a whole (`chunks` gives it the form of a stream),
or the far one as it is written. Who needs the first token soon wants a router, not a cascade.

No clock, no network: what asks a model is passed in, and answers for privacy and deadlines itself. Privacy is checked
here once more, before the threshold is even looked at.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from nearfar.errors import Cancelled, InferenceError, InputError, NearfarError
from nearfar.language.answer import Answer, Ask
from nearfar.language.call import with_fields
from nearfar.language.judge.model import Judge, Judgement
from nearfar.language.prompt import asked
from nearfar.types.request import Privacy

MOST_SAMPLES = 16
TOP = 5
"""Likeliest tokens asked for at each place; the most that every service gives."""


class CascadeOptions(msgspec.Struct, frozen=True):
    """How a cascade goes about it."""

    threshold: float
    """An answer judged under this is escalated: 0 never, above 1 always. Comes from the budget."""
    samples: int = 1
    """Near answers in all; more than one shows whether the model agrees with itself, and costs so much more."""
    undecided: float = 0.15
    """More samples are only taken when the first judgement is within this of the threshold; 1 for always."""
    temperature: float = 0.7
    """Of the further samples; the first one is taken as the caller asked for it."""
    logprobs: bool = True
    """Whether to ask the near model for log-probabilities. They do not reach a caller who did not ask for them."""


class NearHalf(msgspec.Struct, frozen=True):
    """What came of asking near, before anything goes far."""

    answer: Answer | None
    """None when the near model failed; then `escalate` holds."""
    escalate: bool
    """Whether the far model is to be asked."""
    judgement: Judgement | None
    """None when there is no answer to judge."""
    reasons: tuple[str, ...]
    samples: tuple[str, ...] = ()
    """Texts of the near answers, the judged one first."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


class Outcome(msgspec.Struct, frozen=True):
    """What a cascade did, and why."""

    answer: Answer
    where: str
    """`near` or `far`: whose answer it is."""
    escalated: bool
    """The far model was asked, whether it answered or not."""
    judgement: Judgement | None
    """Of the near answer; None when there is none to judge."""
    reasons: tuple[str, ...]
    samples: tuple[str, ...] = ()
    """Texts of the near answers, the judged one first."""
    near_in: int = 0
    near_out: int = 0
    far_in: int = 0
    far_out: int = 0
    """Tokens as the services stated them, of all samples; 0 where they stated none."""
    cost: float = 0.0
    """Of all calls together."""


async def near_half(
    body: bytes, near: Ask, judge: Judge, options: CascadeOptions, privacy: Privacy, *, far: bool
) -> NearHalf:
    """Ask near and judge. `far` says whether there is a far end that may be asked; what is not `ANY` is never to
    escalate, whatever it says. Raises `InputError` for a body that a cascade cannot take, and what near raised when
    nobody else may be asked."""
    request = _readable(body)
    question = asked(request)
    may = far and privacy is Privacy.ANY
    try:
        first = await near(_near_body(body, request, options))
    except Cancelled:
        raise  # nobody waits any more
    except NearfarError as error:
        if not may:
            raise
        return NearHalf(None, True, None, (f"the near model failed ({error.code}): {error.message}",))
    answers = [first]
    verdict = judge.judge(question, first)
    reasons: list[str] = []
    if options.samples > 1 and abs(verdict.probability - options.threshold) <= options.undecided:
        more, failed = await _sampled(body, request, near, options)
        answers += more
        verdict = judge.judge(question, first, [answer.text for answer in more])
        reasons += [f"{failed} of {options.samples - 1} further samples failed"] if failed else []
    poor = verdict.probability < options.threshold
    sign = "under" if poor else "not under"
    reasons.append(f"judged {verdict.probability:.2f}, {sign} the threshold {options.threshold:.2f}")
    reasons += verdict.reasons
    if poor and not may:
        why = f"the request is private ({privacy.value})" if privacy is not Privacy.ANY else "no far end may be asked"
        reasons.append(f"would have gone far, but {why}")
    if not request.get("logprobs"):
        first = msgspec.structs.replace(first, raw=_without_logprobs(first.raw))
    return NearHalf(
        first,
        poor and may,
        verdict,
        tuple(reasons),
        tuple(answer.text for answer in answers),
        sum(answer.tokens_in for answer in answers),
        sum(answer.tokens_out for answer in answers),
        sum(answer.cost for answer in answers),
    )


def far_failed(error: NearfarError) -> str:
    """Why the near answer stands after all."""
    return f"the far model failed ({error.code}), so the near answer stands: {error.message}"


async def cascade(
    body: bytes, near: Ask, far: Ask | None, judge: Judge, options: CascadeOptions, privacy: Privacy = Privacy.FLEET
) -> Outcome:
    """Answer one chat completion or completion.

    `far` is None when there is no far end, or the budget does not allow one. Unless `privacy` is `ANY` it is not
    called, whatever happens: then the near answer stands, however poor, and the reasons say so. When the near model
    fails the far one is asked at once; when the far one fails the near answer stands if there is one.

    Raises `InputError` for a body that a cascade cannot take (n > 1: it would have to judge each), and what the last
    model that may be asked raised.
    """
    half = await near_half(body, near, judge, options, privacy, far=far is not None)
    given, where, reasons = half.answer, "near", half.reasons
    if half.escalate and far is not None:
        try:
            given, where = await far(_far_body(body)), "far"
        except Cancelled:
            raise
        except NearfarError as error:
            if given is None:
                raise
            reasons = (*reasons, far_failed(error))
    assert given is not None  # near failed, then far did
    beyond = given if where == "far" else Answer("")
    return Outcome(
        given, where, half.escalate, half.judgement, reasons, half.samples,
        half.tokens_in, half.tokens_out, beyond.tokens_in, beyond.tokens_out, half.cost + beyond.cost,
    )  # fmt: skip


def _readable(body: bytes) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The body is not JSON: {error}.", 'Send {"model": ..., "messages": [...]}.') from None
    if not isinstance(request, dict):
        raise InputError("The body is not an object.", 'Send {"model": ..., "messages": [...]}.')
    for name in ("n", "best_of"):
        if (request.get(name) or 1) != 1:
            raise InputError(f"A cascade gives one answer, not {name} = {request[name]}.", f"Leave {name} out.")
    return request


async def _sampled(
    body: bytes, request: dict[str, Any], near: Ask, options: CascadeOptions
) -> tuple[list[Answer], int]:
    """Further samples, side by side, and how many failed. A sample that fails is one less, not the end."""
    count = min(options.samples, MOST_SAMPLES) - 1
    seed = request.get("seed")
    bodies = [
        with_fields(
            _near_body(body, request, options),
            {
                "temperature": max(options.temperature, float(request.get("temperature") or 0.0)),
                "seed": (seed if isinstance(seed, int) else 0) + i + 1,
            },
        )
        for i in range(count)
    ]
    results = await asyncio.gather(*(near(one) for one in bodies), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and (
            isinstance(result, Cancelled) or not isinstance(result, NearfarError)
        ):
            raise result
    good = [result for result in results if isinstance(result, Answer)]
    return good, count - len(good)


def _near_body(body: bytes, request: dict[str, Any], options: CascadeOptions) -> bytes:
    changes: dict[str, Any] = {"stream": False, "stream_options": None}
    if options.logprobs and not request.get("logprobs"):
        changes |= {"logprobs": True, "top_logprobs": TOP} if "messages" in request else {"logprobs": TOP}
    return with_fields(body, changes)


def _far_body(body: bytes) -> bytes:
    """What the caller wrote, whole: neither the near answer nor its judgement travels."""
    return with_fields(body, {"stream": False, "stream_options": None})


def _without_logprobs(raw: bytes) -> bytes:
    """The answer without the log-probabilities that only the judge asked for."""
    if not raw:
        return raw
    answer: dict[str, Any] = msgspec.json.decode(raw)
    for choice in answer.get("choices") or ():
        choice.pop("logprobs", None)
    return msgspec.json.encode(answer)


def chunks(raw: bytes) -> list[bytes]:
    """A finished chat completion or completion as the chunks of a stream, for a caller who asked for one: the whole
    text in the first, the finish reason in the second, and usage, where it was stated, in a third without choices.

    Raises `InferenceError` when it is no such JSON: an engine or a far end wrote it.
    """
    try:
        whole = msgspec.json.decode(raw)
        kind = "chat.completion.chunk" if whole.get("object", "").startswith("chat") else "text_completion"
        head = {name: whole[name] for name in ("id", "created", "model") if name in whole} | {"object": kind}
        parts: list[dict[str, Any]] = []
        for choice in whole["choices"]:
            at = {"index": choice.get("index", 0)}
            logprobs = {"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}
            if kind == "text_completion":
                parts.append({**at, "text": choice["text"], "finish_reason": None, **logprobs})
                last: dict[str, Any] = {"text": ""}
            else:
                message = dict(choice["message"])
                if message.get("tool_calls"):
                    message["tool_calls"] = [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]
                parts.append({**at, "delta": message, "finish_reason": None, **logprobs})
                last = {"delta": {}}
            parts.append({**at, **last, "finish_reason": choice.get("finish_reason")})
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise InferenceError(f"The model gave no finished answer ({type(error).__name__}).", "Ask again.") from error
    made = [{**head, "choices": [part]} for part in parts]
    if whole.get("usage"):
        made.append({**head, "choices": [], "usage": whole["usage"]})
    return [msgspec.json.encode(one) for one in made]
