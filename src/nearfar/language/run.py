"""One call from the gate to the answer: asked near or far as planned, elsewhere when that fails, judged or split."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import NamedTuple

import msgspec

from nearfar.client.talking import TextReply, TextRequest
from nearfar.errors import (
    DeadlineExceeded,
    InferenceError,
    InputError,
    MeshError,
    NearfarError,
    NoCandidate,
    Overloaded,
    StreamCut,
    UnknownModel,
)
from nearfar.language import carry, split
from nearfar.language.answer import Answer, Ask, read_answer
from nearfar.language.call import About, TextAnswer, TextCall, TextEvent, Times, with_fields
from nearfar.language.cascade import CascadeOptions, NearHalf, cascade, chunks, far_failed, near_half
from nearfar.language.director import Details, Director
from nearfar.language.judge.model import Judgement
from nearfar.language.plan import Plan, Where
from nearfar.language.privacy.gate import Ruling
from nearfar.language.privacy.policy import strictest
from nearfar.language.prompt import asked
from nearfar.language.replies import NOTHING, Counts, StreamRestorer, counts, restored, without_bill
from nearfar.language.semantic import Hit, Question
from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.request import Privacy, Stages
from nearfar.types.units import Milliseconds
from nearfar.types.wire import TextContext

FAILURES = (NoCandidate, UnknownModel, Overloaded, MeshError, InferenceError, DeadlineExceeded)
"""After which the other side may do better. What the caller did wrong is wrong there too."""


class _Target(NamedTuple):
    model: str
    far: bool


class Run:
    """One call. `answer` or `stream` is called once."""

    def __init__(self, director: Director, call: TextCall, ruling: Ruling, plan: Plan) -> None:
        self._director = director
        self._call = call
        self._ruling = ruling
        self._plan = plan
        self._start = time.monotonic()
        self._why = list(plan.why)
        self._attempts: list[str] = []
        self._details = Details()
        self._looked = False
        self._question: Question | None = None
        self._hit: Hit | None = None
        self._purse = director.begin(call, plan)
        self._reads = plan.where is Where.NEAR and director.too_long(call, ruling, plan.model)
        """Whether near has to read a private document part by part."""
        if ruling.reasons:
            self._why += ruling.reasons
        first_far = plan.where in (Where.FAR, Where.SPLIT)
        self._targets = [_Target(plan.model, first_far)]
        if plan.second:
            self._targets.append(_Target(plan.second, not first_far))

    # -- the whole answer ---------------------------------------------------------------------------------------------

    async def answer(self) -> TextAnswer:
        """Raises what the last model that may be asked raised."""
        about: About | None = None
        try:
            match self._plan.where:
                case Where.CASCADE:
                    made = await self._cascade()
                case Where.SPLIT:
                    made = await self._split()
                case Where.NEAR if self._reads:
                    made = await self._read_near()
                case _:
                    made = await self._simple()
            about = made.about
            return made
        finally:
            self._end(about)

    def _end(self, about: About | None) -> None:
        self._director.end(self._call, self._plan, self._ruling, about, self._details, self._purse)

    async def _simple(self) -> TextAnswer:
        for place, target in enumerate(self._targets):
            if (kept := self._kept(target) or (await self._alike() if not place else None)) is not None:
                return kept
            try:
                answer, reply, said = await self._whole(target, self._whole_body(target))
            except FAILURES as error:
                if place + 1 == len(self._targets):
                    raise self._both(error) from error.__cause__
                self._failed(target, error)
                continue
            if not place:
                self._director.keep_alike(self._question, answer)
            body = self._for_caller(target, answer)
            return TextAnswer(body, self._about("far" if target.far else "near", reply, said))
        raise AssertionError("there is always one target")

    async def _whole(self, target: _Target, body: bytes) -> tuple[bytes, TextReply, Counts]:
        """The answer as the service gave it but for the bill, and kept if it may be."""
        with self._paid(target):
            reply = await self._director.client.text.ask(self._request(target, body, streamed=False))
        raw = bytes(reply.body)
        said = counts(raw)
        raw = without_bill(raw) if target.far else raw
        self._director.keep(self._call, self._ruling, target.model, target.far, raw)
        return raw, reply, said

    def _kept(self, target: _Target) -> TextAnswer | None:
        raw = self._director.kept(self._call, self._ruling, target.model, target.far)
        if raw is None:
            return None
        return self._from_cache(target, raw, "the same question was answered before")

    async def _answered_alike(self) -> bool:
        """Whether the semantic cache has an answer; `answer` then gives it."""
        why = len(self._why)
        found = await self._alike()
        del self._why[why:]
        return found is not None

    def _from_cache(self, target: _Target, raw: bytes, why: str) -> TextAnswer:
        self._why.append(why)
        reply = TextReply(b"", ServiceId(f"cache/{target.model}"), "", Stages())
        said = msgspec.structs.replace(counts(raw), cost=0.0)
        return TextAnswer(self._for_caller(target, raw), self._about("cache", reply, said))

    async def _alike(self) -> TextAnswer | None:
        """An answer that was given to a question that means nearly the same."""
        director, target = self._director, self._targets[0]
        if director.semantic is None:
            return None
        if not self._looked:
            self._looked = True
            self._question, self._hit = await director.alike(self._call, self._ruling, target.model, target.far)
        if self._hit is None:
            return None
        told = f"a question was answered before that means nearly the same: similarity {self._hit.similarity:.3f}"
        return self._from_cache(target, self._hit.answer, f"{told}, at least {director.semantic.bound:g}")

    def _for_caller(self, target: _Target, raw: bytes) -> bytes:
        redaction = self._ruling.redaction
        return restored(raw, redaction) if target.far and redaction is not None else raw

    # -- the answer in chunks -----------------------------------------------------------------------------------------

    async def stream(self) -> AsyncGenerator[TextEvent, None]:
        """Chunks; the last event carries `about`. Raises as `answer`, and `StreamCut` once something was given."""
        if (
            self._reads
            or self._plan.where is Where.SPLIT
            or (any(self._director.has(self._call, self._ruling, t.model, t.far) for t in self._targets[:1]))
            or await self._answered_alike()
        ):
            yield self._in_chunks(await self.answer())
            return
        about: About | None = None
        try:
            events = self._judged() if self._plan.where is Where.CASCADE else self._tried()
            async with aclosing(events):
                async for event in events:
                    about = event.about or about
                    yield event
        finally:
            self._end(about)

    def _in_chunks(self, made: TextAnswer) -> TextEvent:
        lines = chunks(made.body)
        options = self._call.view.stream_options
        if options is None or not options.include_usage:
            lines = [line for line in lines if b'"choices":[]' not in line]
        return TextEvent(b"\n".join(lines), made.about)

    async def _tried(self) -> AsyncGenerator[TextEvent, None]:
        for place, target in enumerate(self._targets):
            began = False
            events = self._streamed(target)
            try:
                async with aclosing(events):
                    async for event in events:
                        began = True
                        yield event
                return
            except FAILURES as error:
                if began or isinstance(error, StreamCut):
                    raise
                if place + 1 == len(self._targets):
                    raise self._both(error) from error.__cause__
                self._failed(target, error)

    async def _streamed(self, target: _Target) -> AsyncGenerator[TextEvent, None]:
        first: float | None = None
        said, tail = NOTHING, b""
        request = self._request(target, self._body(target), streamed=True)
        redaction = self._ruling.redaction if target.far else None
        restorer = StreamRestorer(redaction) if redaction is not None else None
        pieces = carry.stream(self._director.client.text, request, self._call.view)
        with self._paid(target):
            async with aclosing(pieces):
                async for piece, moved in pieces:
                    first = first or time.monotonic()
                    lines = piece.lines
                    tail = lines or tail
                    if target.far and lines:
                        each = lines.split(b"\n")
                        for line in each:
                            said = counts(line, said)
                        each = [without_bill(line) for line in each]
                        lines = b"\n".join(map(restorer.feed, each) if restorer is not None else each)
                    if piece.last is None:
                        yield TextEvent(lines)
                        continue
                    if target.far:
                        self._purse.billed()
                    else:
                        for line in tail.split(b"\n")[-2:]:  # the last word itself may bring nothing
                            said = counts(line, said)
                    reply = TextReply(b"", piece.served_by, piece.last.variant, piece.last.stages)
                    about = self._about("far" if target.far else "near", reply, said)
                    if not target.far:
                        self._director.conversations.answered(self._call, piece.served_by, piece.last.state)
                    about = msgspec.structs.replace(
                        about,
                        moved=moved,
                        state_moved=piece.last.restored,
                        first_token_ms=(first - self._start) * 1000,
                    )
                    yield TextEvent(lines, about)

    # -- both ---------------------------------------------------------------------------------------------------------

    def _both_sides(self) -> tuple[_Target, _Target | None]:
        return self._targets[0], self._targets[1] if len(self._targets) > 1 else None

    def _cascade_options(self) -> CascadeOptions:
        return CascadeOptions(self._plan.threshold, self._director.settings.samples + 1)

    def _note(self, judgement: Judgement | None, escalated: bool, near_in: int, near_out: int) -> None:
        details = self._details
        details.escalated, details.near_in, details.near_out = escalated, near_in, near_out
        if judgement is not None:
            if judgement.familiar:
                details.taught = judgement.probability
            details.judged, details.features = judgement.probability, judgement.features

    async def _cascade(self) -> TextAnswer:
        near, far = self._both_sides()
        last: dict[str, TextReply] = {}
        result = await cascade(
            self._ruling.near(),
            self._asker(near, last),
            self._asker(far, last, self._ruling.far) if far is not None else None,
            self._director.judge,
            self._cascade_options(),
            self._ruling.privacy,
        )
        self._why += result.reasons
        said = Counts(result.near_in + result.far_in, result.near_out + result.far_out, result.cost, self._currency)
        target = far if result.where == "far" and far is not None else near
        body = self._for_caller(target, result.answer.raw)
        about = self._about(result.where, last[result.where], said)
        self._note(result.judgement, result.escalated, result.near_in, result.near_out)
        self._details.far_in, self._details.far_out = result.far_in, result.far_out
        return TextAnswer(body, about)

    async def _judged(self) -> AsyncGenerator[TextEvent, None]:
        """A cascade in chunks: near's answer once it is judged, or far's as it is written."""
        near, far = self._both_sides()
        last: dict[str, TextReply] = {}
        half = await near_half(
            self._ruling.near(),
            self._asker(near, last),
            self._director.judge,
            self._cascade_options(),
            self._ruling.privacy,
            far=far is not None,
        )
        self._why += half.reasons
        if half.escalate and far is not None:
            began = False
            events = self._streamed(far)
            try:
                async with aclosing(events):
                    async for lines, about in events:
                        began = True
                        yield TextEvent(lines, self._with_near(about, half) if about is not None else None)
                return
            except FAILURES as error:
                if began or half.answer is None or isinstance(error, StreamCut):
                    raise
                self._why.append(far_failed(error))
        assert half.answer is not None  # whose absence was raised above
        said = Counts(half.tokens_in, half.tokens_out, half.cost, self._currency)
        about = self._about("near", last["near"], said)
        self._note(half.judgement, half.escalate, half.tokens_in, half.tokens_out)
        yield self._in_chunks(TextAnswer(half.answer.raw, about))

    def _with_near(self, about: About, half: NearHalf) -> About:
        """What is said of a streamed far answer, with what near read and wrote before it."""
        self._note(half.judgement, True, half.tokens_in, half.tokens_out)
        return msgspec.structs.replace(
            about,
            cost=about.cost + half.cost,
            tokens_in=about.tokens_in + half.tokens_in,
            tokens_out=about.tokens_out + half.tokens_out,
        )

    async def _split(self) -> TextAnswer:
        far, near = self._targets[0], self._targets[1]
        body = self._ruling.far()  # what near condenses goes far: it works on the text that may go there
        question = asked(msgspec.json.decode(body))
        near_context = self._director.context_of(near.model) or split.DEFAULT.near_context
        wanted = self._call.view.max_completion_tokens or self._call.view.max_tokens or split.DEFAULT.answer
        options = msgspec.structs.replace(split.DEFAULT, near_context=near_context, answer=wanted)
        decision = split.decide(
            question.prompt, question.before, self._ruling.privacy, self._plan.score or 0.0, options
        )
        self._why.append(decision.reason)
        if decision.kind not in (split.Kind.CONDENSE, split.Kind.DRAFT):
            return await self._simple()
        last: dict[str, TextReply] = {}
        ask_near, ask_far = self._asker(near, last, key="near"), self._asker(far, last, key="far")
        try:
            if decision.kind is split.Kind.CONDENSE:
                made = await split.condense(
                    question.prompt, question.before, ask_near, ask_far, self._ruling.privacy, options
                )
            else:
                whole = "\n".join(filter(None, (question.before, question.prompt)))
                made = await split.draft(whole, ask_near, ask_far, self._ruling.privacy, options)
        except (InputError, *FAILURES) as error:
            self._why.append(f"the split failed ({error.code}), so the whole prompt is asked: {error.message}")
            return await self._simple()
        self._why += made.reasons
        self._why.append(f"the far end read {made.far_in} tokens instead of {made.whole_in}")
        said = Counts(made.near_in + made.far_in, made.near_out + made.far_out, made.cost, self._currency)
        about = self._about("split", last[made.where], said)
        about = msgspec.structs.replace(about, saved=made.saved_in + made.saved_out)
        details = self._details
        details.near_in, details.near_out, details.far_in, details.far_out = (
            made.near_in, made.near_out, made.far_in, made.far_out,
        )  # fmt: skip
        details.saved_in, details.saved_out, details.answered = made.saved_in, made.saved_out, made.where
        raw = made.answer.raw
        redaction = self._ruling.redaction
        return TextAnswer(restored(raw, redaction) if redaction is not None else raw, about)

    async def _read_near(self) -> TextAnswer:
        """A private document that is longer than near's context: read part by part, by a plan that a far end may make
        from the question alone, when the question alone may go there."""
        near = self._targets[0]
        question = asked(msgspec.json.decode(self._ruling.near()))
        alone, far = self._director.question_alone(self._call, question.prompt)
        last: dict[str, TextReply] = {}
        options = msgspec.structs.replace(
            split.DEFAULT, near_context=self._director.context_of(near.model) or split.DEFAULT.near_context
        )
        ask_far = None
        if far:
            ask_far = self._asker(_Target(far, True), last, key="far", level=alone)
        made = await split.privately(
            question.prompt,
            question.before,
            self._asker(near, last, key="near"),
            ask_far,
            alone,
            options,
        )
        self._why += made.reasons
        said = Counts(made.near_in + made.far_in, made.near_out + made.far_out, made.cost, self._currency)
        about = self._about("split", last["near"], said)
        details = self._details
        details.answered, details.near_in, details.near_out = "near", made.near_in, made.near_out
        details.far_in, details.far_out = made.far_in, made.far_out
        return TextAnswer(made.answer.raw, about)

    def _asker(
        self,
        target: _Target,
        last: dict[str, TextReply],
        body_of: object = None,
        key: str = "",
        level: Privacy | None = None,
    ) -> Ask:
        """Asks one side; the far one gets nothing that the gate did not look at. `level`: of another ruling."""
        name = key or ("far" if target.far else "near")

        async def ask(body: bytes) -> Answer:
            if target.far and callable(body_of):
                body = with_fields(body_of(), {"stream": False, "stream_options": None})
            with self._paid(target):
                reply = await self._director.client.text.ask(self._request(target, body, streamed=False, level=level))
            last[name] = reply
            raw = bytes(reply.body)
            said = counts(raw)
            self._currency = said.currency or self._currency
            answer = read_answer(without_bill(raw) if target.far else raw)
            return msgspec.structs.replace(answer, served_by=reply.served_by, cost=said.cost)

        return ask

    def _paid(self, target: _Target) -> AbstractContextManager[None]:
        return self._purse.far() if target.far else nullcontext()

    # -- steps --------------------------------------------------------------------------------------------------------

    _currency = ""

    def _body(self, target: _Target) -> bytes:
        return self._ruling.far() if target.far else self._ruling.near()

    def _whole_body(self, target: _Target) -> bytes:
        """For a whole answer, also of a caller who asked for chunks and gets them from it."""
        body = self._body(target)
        return with_fields(body, {"stream": False, "stream_options": None}) if self._call.view.stream else body

    def _request(self, target: _Target, body: bytes, *, streamed: bool, level: Privacy | None = None) -> TextRequest:
        call = self._call
        level = level or self._ruling.privacy
        if not target.far:  # what was not made for a far end reaches none, whatever serves a model of this name
            level = strictest(level, Privacy.FLEET)
        qos = msgspec.structs.replace(call.qos, privacy=level, max_cost=call.policy.cost(call.qos.max_cost))
        if qos.deadline is not None:
            spent = (time.monotonic() - self._start) * 1000
            qos = msgspec.structs.replace(qos, deadline=Milliseconds(max(0.01, qos.deadline - spent)))
        reason, name = "; ".join(self._plan.why)[:200], call.policy.name
        known = self._director.conversations
        incumbent = None if target.far else known.incumbent(call)
        state = known.state(call) if streamed and not target.far else None
        context = TextContext(level, streamed, reason, call.conversation, name, call.id, state)
        return TextRequest(call.operation, ModelName(target.model), body, qos, context, incumbent=incumbent)

    def _failed(self, target: _Target, error: NearfarError) -> None:
        side = "far" if target.far else "near"
        self._attempts.append(f"{target.model}: {error.message}")
        self._why.append(f"{side} failed ({error.code}), so the other side was asked")

    def _both(self, error: NearfarError) -> NearfarError:
        """The error of the last side, with what befell the one before it, or why nobody else was asked."""
        if self._attempts:
            before = "; ".join(line.rstrip(". ") for line in self._attempts)
            error.message = f"{before}; then: {error.message}"
        elif self._plan.refused:
            error.message = f"{error.message.rstrip('. ')}. Not asked: {'; '.join(self._plan.refused)}."
        error.args = (error.message,)
        return error

    def _about(self, where: str, reply: TextReply, said: Counts) -> About:
        details = self._details
        if where in ("near", "far"):
            details.answered = where
            if where == "near":
                details.near_in, details.near_out = said.tokens_in, said.tokens_out
            else:
                details.far_in, details.far_out = said.tokens_in, said.tokens_out
        if where == "near":
            self._director.conversations.answered(self._call, reply.served_by)
        why = [*self._why, f"the tokens are estimated: {said.estimated}"] if said.estimated else self._why
        return About(
            request=self._call.id,
            where=where,
            model=reply.served_by.partition("/")[2],
            served_by=reply.served_by,
            variant=reply.variant,
            why=tuple(why),
            cost=said.cost,
            currency=said.currency,
            tokens_in=said.tokens_in,
            tokens_out=said.tokens_out,
            ms=(time.monotonic() - self._start) * 1000,
            score=self._plan.score,
            privacy=self._ruling.privacy.value,
            attempts=(*self._attempts, *reply.attempts),
            stages=Times.of(reply.stages),
        )
