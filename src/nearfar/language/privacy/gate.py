"""The filter before everything: how far a request may travel, decided in one place and by a pure function.

Whoever sends a prompt anywhere calls `rule` first, sends `Ruling.near()` to services of the fleet within
`Ruling.privacy`, and `Ruling.far()` to a far end: bytes that were looked at, and no others. A request that may not go
far has no bytes to send there. The strictest of all that was demanded wins; nothing loosens anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec

from nearfar.errors import InputError, PersonalDataRefused
from nearfar.language.privacy import body as bodies
from nearfar.language.privacy.body import Leaf
from nearfar.language.privacy.detector import find as find_all
from nearfar.language.privacy.fields import holds
from nearfar.language.privacy.findings import Finding, Kind, counted, in_words
from nearfar.language.privacy.policy import KeyPolicy, OnPersonalData, stricter, strictest
from nearfar.language.privacy.redact import CannotRedact, Find, Redaction, redact
from nearfar.types.request import Privacy

DEFAULT = KeyPolicy()
_FIELDS = ("privacy", "private", "personal_data")
_LONGEST_OF_ONE = 65_536
"""Characters of the parts of one message that are read as one text; longer ones at their joints only."""
_JOINT = 256


class Sealed:
    """Bytes of a request. They are had by asking for them, and never by printing, logging or encoding a value."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __repr__(self) -> str:
        return f"Sealed({len(self._data)} bytes)"

    def open(self) -> bytes:
        return self._data


class Ruling(msgspec.Struct, frozen=True, eq=False):
    """What was decided about one request. Nothing that can be printed of it holds a byte of the request."""

    privacy: Privacy
    """The strictest of all demands: goes into the `Qos` and the call context of every attempt, retry and fallback."""
    reasons: tuple[str, ...]
    """Why, in words that anybody may read."""
    counts: Mapping[Kind, int]
    """What was found. Empty also when nobody looked: a request that is private anyway is not searched."""
    refusal: str
    """Why nobody may answer; empty when somebody may."""
    redaction: Redaction | None
    """What to put back into the far end's answer; None when nothing was replaced."""
    near_body: Sealed
    far_body: Sealed | None

    def check(self) -> None:
        """Raise `PersonalDataRefused` when the request is refused."""
        if self.refusal:
            raise PersonalDataRefused(self.refusal, "Take it out, or ask for another `on_personal_data` for this key.")

    def near(self) -> bytes:
        """The request for a service of the fleet, as it came. Raises as `check`."""
        self.check()
        return self.near_body.open()

    def far(self) -> bytes:
        """The request for a far end: encoded anew from what was looked at, without our own fields, redacted if so
        ruled. Raises as `check`, and `PersonalDataRefused` when the request may not go far."""
        self.check()
        if self.far_body is None or self.privacy is not Privacy.ANY:
            raise PersonalDataRefused(
                f"This request may not go to a far end: {'; '.join(self.reasons)}.", "Answer it in the fleet."
            )
        return self.far_body.open()

    def told(self) -> dict[str, Any]:
        """For logs, traces and answers."""
        found = {kind.value: count for kind, count in self.counts.items()}
        return {
            "privacy": self.privacy.value, "reasons": list(self.reasons), "found": found,
            "redacted": len(self.redaction) if self.redaction else 0, "refused": bool(self.refusal),
        }  # fmt: skip


def rule(
    body: bytes,
    header: Privacy = Privacy.ANY,
    policy: KeyPolicy = DEFAULT,
    find: Find = find_all,
) -> Ruling:
    """Decide about the body (JSON) of a chat, completion or embedding request.

    `header`: what `Nearfar-Privacy` states (`Qos.privacy`). `policy`: of the key that it came with. `find`: the
    detector; a fake in tests. Raises `InputError` for a body that cannot be read and for a demand that makes no sense:
    a demand that was misspelt is never taken for none.
    """
    request = bodies.parse(body)
    asked, on_personal_data, reasons = _asked(request)
    privacy = strictest(asked, header, policy.privacy)
    if header is not Privacy.ANY and header is not asked:  # the gateway makes one of both
        reasons.append(f"the header Nearfar-Privacy says {header.value}")
    if policy.privacy is not Privacy.ANY:
        reasons.append(f"requests of {policy.name} may travel to {policy.privacy.value} at most")
    action = stricter(policy.on_personal_data, on_personal_data or policy.on_personal_data)
    if policy.unreadable_near and (what := bodies.unreadable(request)):
        privacy = strictest(privacy, Privacy.FLEET)
        reasons.append(f"{what}, which no detector can read")

    if privacy is not Privacy.ANY and action is not OnPersonalData.REFUSE:
        bodies.check_depth(body, request)  # a body that is nested too deeply is refused everywhere alike
        return Ruling(privacy, tuple(reasons), {}, "", None, Sealed(body), None)
    return _searched(body, request, privacy, action, reasons, policy, find)


def _searched(
    body: bytes, request: dict[str, Any], privacy: Privacy, action: OnPersonalData, reasons: list[str],
    policy: KeyPolicy, find: Find,
) -> Ruling:  # fmt: skip
    sight = _look(request, find)
    refusal = ""
    redaction: Redaction | None = None
    texts: dict[bodies.Path, str] = {}
    if sight.counts:
        found = f"found: {in_words(sight.counts)}"
        match action:
            case OnPersonalData.REFUSE:
                refusal = f"Personal data may not be sent with the key {policy.name}; {found}."
                privacy = strictest(privacy, Privacy.FLEET)
            case OnPersonalData.NEAR:
                privacy = strictest(privacy, Privacy.FLEET)
            case OnPersonalData.REDACT:
                try:
                    texts, redaction = _replaced(request, sight, find)
                    found += f", replaced by {len(redaction)} placeholders for a far end"
                except CannotRedact as error:
                    privacy = strictest(privacy, Privacy.FLEET)
                    found += f", not replaced as {error}"
            case OnPersonalData.IGNORE:
                found += f", ignored by the policy of {policy.name}"
        reasons.append(found)
    far = None
    if privacy is Privacy.ANY and not refusal:
        far = Sealed(msgspec.json.encode(bodies.rewritten(request, texts)))
    return Ruling(privacy, tuple(reasons), sight.counts, refusal, redaction, Sealed(body), far)


class _Sight:
    """What was found where: for this module only, as it holds the texts."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.whole: dict[int, Kind] = {}
        """Index of a text that is a finding because of its key."""
        self.counts: dict[Kind, int] = {}
        self.irreplaceable = ""
        """Why a placeholder cannot stand for everything; empty when it can."""


def _look(request: Mapping[str, Any], find: Find) -> _Sight:
    sight = _Sight()
    totals: Counter[Kind] = Counter()
    for leaf in bodies.leaves(request):
        findings = list(find(leaf.text))
        kind = holds(leaf.key, leaf.text) if leaf.key else None
        if kind is not None:
            if not findings:
                findings = [Finding(0, len(leaf.text), kind, 0.85)]
            if not leaf.fixed:
                sight.whole[len(sight.leaves)] = kind
        if findings and leaf.fixed:
            sight.irreplaceable = "it stands in a name or a number, where no placeholder can"
        totals.update(counted(findings))
        sight.leaves.append(leaf)
    for parts in bodies.joined(request):
        totals.update(counted(_crossing(parts, find)))
    sight.counts = {kind: totals[kind] for kind in Kind if totals[kind]}
    return sight


def _crossing(parts: list[str], find: Find) -> list[Finding]:
    """What is found when the parts are read as one text, with a line break between them and without, and not when each
    is read alone."""
    found: list[Finding] = []
    for glue in ("", "\n"):
        if sum(map(len, parts)) <= _LONGEST_OF_ONE:
            found += _over_joints(parts, glue, find)
        else:
            for left, right in pairwise(parts):
                found += _over_joints([left[-_JOINT:], right[:_JOINT]], glue, find)
    return found


def _over_joints(parts: list[str], glue: str, find: Find) -> list[Finding]:
    alone: list[Finding] = []
    at = 0
    for part in parts:
        alone += [Finding(one.start + at, one.end + at, one.kind, one.confidence) for one in find(part)]
        at += len(part) + len(glue)
    return [
        one
        for one in find(glue.join(parts))
        if not any(known.start < one.end and one.start < known.end for known in alone)
    ]


def _replaced(request: Mapping[str, Any], sight: _Sight, find: Find) -> tuple[dict[bodies.Path, str], Redaction]:
    if sight.irreplaceable:
        raise CannotRedact(sight.irreplaceable)
    indexes = [index for index, leaf in enumerate(sight.leaves) if not leaf.fixed]
    places = {index: place for place, index in enumerate(indexes)}
    whole = {places[index]: kind for index, kind in sight.whole.items()}
    texts, redaction = redact([sight.leaves[index].text for index in indexes], find, whole)
    if any(redaction.occurs_in(leaf.text) for leaf in sight.leaves if leaf.fixed):
        raise CannotRedact("a value also stands in a name or a number, where no placeholder can")
    replaced = {sight.leaves[index].path: text for index, text in zip(indexes, texts, strict=True)}
    for parts in bodies.joined(bodies.rewritten(request, replaced)):
        if any(find(part) for part in parts) or _crossing(parts, find):
            raise CannotRedact("it reaches over several parts of a message")
    return replaced, redaction


def _asked(request: Mapping[str, Any]) -> tuple[Privacy, OnPersonalData | None, list[str]]:
    """What the body itself demands: `nearfar: {privacy, private, personal_data}`, `"nearfar.privacy"` and the like, and
    `private`."""
    own = request.get("nearfar")
    if own is None:
        own = {}
    if not isinstance(own, dict):
        raise InputError("The field nearfar is no object.", 'Write "nearfar": {"privacy": "fleet"}.')
    stated = [(f"nearfar.{name}", value) for name, value in own.items()]
    stated += [(name, value) for name, value in request.items() if name.startswith("nearfar.") or name == "private"]
    privacy, action, reasons = Privacy.ANY, None, []
    for name, value in stated:
        field = name.removeprefix("nearfar.")
        if field == "privacy":
            level = _one_of(Privacy, name, value)
        elif field == "private":
            if not isinstance(value, bool):
                raise InputError(f"{name} is neither true nor false.", "Use true for a request that stays near.")
            level = Privacy.FLEET if value else Privacy.ANY
        elif field == "personal_data":
            own_action = _one_of(OnPersonalData, name, value)
            action = own_action if action is None else stricter(action, own_action)
            continue
        elif field.lower().startswith(("priv", "personal")):
            raise InputError(f"There is no field {name[:40]!r}.", f"Write one of: {', '.join(_FIELDS)}.")
        else:
            continue
        privacy = strictest(privacy, level)
        if level is not Privacy.ANY:
            reasons.append(f"the request says {name}")
    return privacy, action, reasons


def _one_of(words: type[Privacy] | type[OnPersonalData], name: str, value: Any) -> Any:
    try:
        return words(value)
    except ValueError:
        raise InputError(f"{name} is none of the words it may be.", f"Use one of {', '.join(words)}.") from None
