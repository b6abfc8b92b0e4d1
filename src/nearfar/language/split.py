"""A prompt split between both models: the near one does the preliminary work, or all of the reading.

- `condense`: a long context; the near model notes what bears on the question, the far model gets notes and question.
- `draft`: the near model drafts, the far model says OK or answers. Saves what the far model would have written.
- `privately`: the reverse, for a long private document; the far model plans from the question alone, the near model
  reads the document part by part by that plan, and answers. No byte of the document goes into a far body: the prompts
  for the far model are made by functions that are not given it (`splitprompts.py`).

`decide` says beforehand whether splitting pays, from token counts; afterwards each outcome shows what the far model
read and wrote against what it would have. Counts come from the services' usage where they state it, else from the rule
in `tokens.py`; `measured` says which.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from nearfar.errors import Cancelled, InputError, NearfarError
from nearfar.language import splitprompts as prompts
from nearfar.language.answer import Answer, Ask
from nearfar.language.chunking import LEAST_TOKENS, chunks
from nearfar.language.tokens import PER_MESSAGE, estimate
from nearfar.types.request import Privacy


class Kind(StrEnum):
    NONE = "none"
    CONDENSE = "condense"
    DRAFT = "draft"
    PRIVATELY = "privately"


class SplitOptions(msgspec.Struct, frozen=True):
    """What splitting assumes. Tokens throughout."""

    near_context: int = 4096
    """Of prompt and answer together, of the near model."""
    notes: int = 200
    """Most that the near model may note of one part."""
    answer: int = 500
    """Most that a final answer may have, and what one is expected to have where nothing is known of it."""
    plan: int = 300
    least_saved: float = 0.3
    """Splitting has to save so much of what the far model would cost, else it is not worth a second model's errors."""
    out_price: float = 4.0
    """Of a token that the far model writes, in tokens that it reads."""
    most_parts: int = 64
    """A longer document is refused rather than read for hours."""


DEFAULT = SplitOptions()


class SplitDecision(msgspec.Struct, frozen=True):
    """Whether to split, and what is expected of it. Costs are in tokens that the far model reads."""

    kind: Kind
    reason: str
    whole_cost: float = 0.0
    """What the far model alone would cost."""
    split_cost: float = 0.0

    @property
    def saved(self) -> float:
        """Share of the far cost that is expected to be saved; 0 when nothing is split."""
        return 1 - self.split_cost / self.whole_cost if self.whole_cost and self.kind is not Kind.NONE else 0.0


class SplitOutcome(msgspec.Struct, frozen=True):
    """What came of it. `answer.text` is the answer; who wrote it is `where`."""

    answer: Answer
    kind: Kind
    where: str
    """`near` or `far`"""
    reasons: tuple[str, ...]
    near_in: int
    near_out: int
    far_in: int
    far_out: int
    whole_in: int
    """Tokens that the far model would have read for the whole prompt, estimated."""
    whole_out: int
    """Tokens that the far model would have written: those of the answer that was given."""
    measured: bool
    """Whether every service stated its usage; else some of the counts are estimated."""
    cost: float = 0.0

    @property
    def saved_in(self) -> int:
        """Tokens that the far model did not have to read; negative when it read more, as a draft makes it do."""
        return self.whole_in - self.far_in

    @property
    def saved_out(self) -> int:
        """Tokens that the far model did not have to write."""
        return self.whole_out - self.far_out


def decide(
    question: str, context: str, privacy: Privacy, near_chance: float, options: SplitOptions = DEFAULT
) -> SplitDecision:
    """Whether to split a prompt that would otherwise go far.

    `near_chance` is the probability (0 to 1) that the near model's own answer is good enough: a draft pays in that
    share of cases. Pure. Private prompts are read near or not at all; `privately` when they are long.

    >>> decide("What is due when?", "", Privacy.ANY, near_chance=0.2).kind.value
    'none'
    """
    asked, held = estimate(question), estimate(context)
    parts = -(-held // _part(options, asked)) if held else 0
    if privacy is not Privacy.ANY:
        return _decide_privately(parts, privacy, options)
    written = options.answer * options.out_price
    whole = asked + held + PER_MESSAGE * 2 + written
    costs = {}
    if 0 < parts <= options.most_parts:
        notes = min(held, parts * options.notes)
        costs[Kind.CONDENSE] = asked + notes + _overhead(prompts.from_notes("", "")) + written
    if asked + held + options.answer <= options.near_context:
        read = asked + held + options.answer + _overhead(prompts.review("", ""))
        costs[Kind.DRAFT] = read + (1 - near_chance) * written + near_chance * options.out_price
    if not costs:
        return SplitDecision(Kind.NONE, "it is too long for the near model, whole or in parts", whole, whole)
    kind = min(costs, key=lambda one: costs[one])
    saved = 1 - costs[kind] / whole
    if saved < options.least_saved:
        reason = f"{kind.value} would save {max(0.0, saved):.0%} of the far cost, under {options.least_saved:.0%}"
        return SplitDecision(Kind.NONE, reason, whole, costs[kind])
    return SplitDecision(kind, f"{kind.value} is expected to save {saved:.0%} of the far cost", whole, costs[kind])


def _decide_privately(parts: int, privacy: Privacy, options: SplitOptions) -> SplitDecision:
    if parts == 0:
        reason = f"the prompt is private ({privacy.value}) and there is no document to read"
    elif parts == 1:
        reason = "the near model can read the whole document at once"
    elif parts > options.most_parts:
        reason = f"the document has {parts} parts for this near model, more than {options.most_parts}"
    else:
        return SplitDecision(Kind.PRIVATELY, f"a private document of {parts} parts")
    return SplitDecision(Kind.NONE, reason)


async def condense(
    question: str, context: str, near: Ask, far: Ask, privacy: Privacy, options: SplitOptions = DEFAULT
) -> SplitOutcome:
    """The near model notes what bears on the question; the far model answers from the notes.

    Of the context, the far model gets only what the near model wrote, and that only with privacy `ANY`: notes of a
    private text are private. Raises `InputError` otherwise, and when the near model noted nothing (asking far without
    the context would be another question). A part that the near model fails on ends it: notes with a hole in them look
    whole.
    """
    _may_go_far(privacy)
    count = _Count()
    notes = []
    for part in _parts(context, question, options):
        answer = await count.near(near, prompts.extract(question, part), options.notes)
        notes.append(answer.text)
    told = prompts.joined(notes)
    if not told:
        raise InputError(
            "The near model found nothing in the context that bears on the question.",
            "Ask the far model with the whole prompt, or ask another question.",
        )
    answer = await count.far(far, prompts.from_notes(question, told), options.answer)
    whole = estimate(question) + estimate(context) + 2 * PER_MESSAGE
    said = f"{len(notes)} parts condensed to {estimate(told)} tokens (estimated)"
    return count.outcome(answer, Kind.CONDENSE, "far", (said,), whole)


async def draft(question: str, near: Ask, far: Ask, privacy: Privacy, options: SplitOptions = DEFAULT) -> SplitOutcome:
    """The near model drafts, the far model says OK or answers itself. Raises `InputError` unless privacy is `ANY`.

    `question` is the whole prompt. When the far model fails the draft stands, and the reasons say so.
    """
    _may_go_far(privacy)
    count = _Count()
    first = await count.near(near, [{"role": "user", "content": question}], options.answer)
    whole = estimate(question) + PER_MESSAGE
    try:
        answer = await count.far(far, prompts.review(question, first.text), options.answer)
    except Cancelled:
        raise
    except NearfarError as error:
        reason = f"the far model failed ({error.code}), so the draft stands: {error.message}"
        return count.outcome(first, Kind.DRAFT, "near", (reason,), whole)
    if answer.text.strip().strip(".\"'`* ").upper() == "OK":
        return count.outcome(first, Kind.DRAFT, "near", ("the far model approved of the draft",), whole)
    return count.outcome(answer, Kind.DRAFT, "far", ("the far model answered instead of the draft",), whole)


async def privately(
    question: str,
    document: str,
    near: Ask,
    far: Ask | None,
    question_privacy: Privacy,
    options: SplitOptions = DEFAULT,
) -> SplitOutcome:
    """Answer a question about a document that stays near.

    The far model plans from the question alone, and only when `question_privacy` is `ANY`; without it, or when it
    fails, the near model follows `splitprompts.DEFAULT_PLAN`. Whoever puts a piece of the document into the question
    has sent that piece. Raises what the near model raises: a document that was read with holes is not an answer.
    """
    count = _Count()
    plan, reasons = prompts.DEFAULT_PLAN, []
    if far is None or question_privacy is not Privacy.ANY:
        reasons.append("the near model planned by itself: the far one may not be asked")
    else:
        try:
            told = (await count.far(far, prompts.plan(question), options.plan)).text.strip()
            plan = _cut(told, options.plan) or plan
            reasons.append("the far model planned from the question alone")
        except Cancelled:
            raise
        except NearfarError as error:
            reasons.append(f"the far model could not plan ({error.code}), so the default plan was followed")
    parts = _parts(document, question + plan, options)
    notes = []
    for part in parts:
        answer = await count.near(near, prompts.read(question, plan, part), options.notes)
        notes.append(answer.text)
    told = prompts.joined(notes)
    room = _part(options, estimate(question + plan))
    if estimate(told) > room:
        reasons.append("the notes were longer than the near model's context, so they were noted once more")
    while estimate(told) > room:  # notes on the notes, until they fit; each round is shorter, as notes are cut
        shorter = [
            (await count.near(near, prompts.read(question, plan, part), options.notes)).text
            for part in chunks(told, room)
        ]
        again = prompts.joined(shorter)
        if estimate(again) >= estimate(told):
            again = _cut(again, room)
            reasons.append("the notes did not get shorter and were cut")
        told = again
    answer = await count.near(near, prompts.conclude(question, plan, told or prompts.NOTHING), options.answer)
    reasons.append(f"{len(parts)} parts read near, {sum(bool(prompts.joined([n])) for n in notes)} to the point")
    whole = estimate(question) + estimate(document) + 2 * PER_MESSAGE
    return count.outcome(answer, Kind.PRIVATELY, "near", tuple(reasons), whole)


def _may_go_far(privacy: Privacy) -> None:
    if privacy is not Privacy.ANY:
        raise InputError(
            f"The request is private ({privacy.value}), and so is what the near model would make of it.",
            "Read the document near (`privately`), or send the request with privacy any.",
        )


def _part(options: SplitOptions, asked: int) -> int:
    """Tokens of the document that fit beside question, instructions and notes. The rule of `tokens.py` may be three
    tenths too low for code."""
    room = (options.near_context - options.notes) * 0.7 - asked - _overhead(prompts.read("", "", ""))
    return max(LEAST_TOKENS, int(room))


def _parts(text: str, beside: str, options: SplitOptions) -> list[str]:
    parts = chunks(text, _part(options, estimate(beside)))
    if len(parts) > options.most_parts:
        raise InputError(
            f"The document has {len(parts)} parts for this near model; at most {options.most_parts} are read.",
            "Use a near model with a larger context, or ask about a part of the document.",
        )
    return parts


def _overhead(messages: prompts.Messages) -> int:
    return sum(estimate(message["content"]) + PER_MESSAGE for message in messages)


def _cut(text: str, most: int) -> str:
    return chunks(text, max(LEAST_TOKENS, most))[0] if text else ""


class _Count:
    """Asks, and adds up what each side read and wrote."""

    def __init__(self) -> None:
        self._in = {"near": 0, "far": 0}
        self._out = {"near": 0, "far": 0}
        self._measured = True
        self._cost = 0.0

    async def near(self, ask: Ask, messages: prompts.Messages, most: int) -> Answer:
        return await self._ask("near", ask, messages, most)

    async def far(self, ask: Ask, messages: prompts.Messages, most: int) -> Answer:
        return await self._ask("far", ask, messages, most)

    async def _ask(self, side: str, ask: Ask, messages: prompts.Messages, most: int) -> Answer:
        answer = await ask(prompts.body(messages, most))
        self._measured &= bool(answer.tokens_in)
        self._in[side] += answer.tokens_in or _overhead(messages)
        self._out[side] += answer.tokens_out or estimate(answer.text)
        self._cost += answer.cost
        return answer

    def outcome(self, answer: Answer, kind: Kind, where: str, reasons: tuple[str, ...], whole: int) -> SplitOutcome:
        n, f = (self._in["near"], self._out["near"]), (self._in["far"], self._out["far"])
        written = answer.tokens_out or estimate(answer.text)
        return SplitOutcome(answer, kind, where, reasons, *n, *f, whole, written, self._measured, self._cost)
