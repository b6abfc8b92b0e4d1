"""The gate: the strictest demand wins whatever else is said, a body is read in full, and none of it is shown."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError, PersonalDataRefused
from nearfar.language.privacy.body import DEEPEST
from nearfar.language.privacy.detector import find
from nearfar.language.privacy.findings import Kind
from nearfar.language.privacy.gate import Ruling, rule
from nearfar.language.privacy.policy import KeyPolicy, OnPersonalData, strictest
from nearfar.language.privacy.redact import MOST_VALUES
from nearfar.types.request import Privacy

MAIL = "ada@example.org"
DISTANCE = {Privacy.LOCAL: 0, Privacy.FLEET: 1, Privacy.ANY: 2}
REDACT = KeyPolicy("office", on_personal_data=OnPersonalData.REDACT)


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": content}], **more}


def ruled(body: dict[str, Any], header: Privacy = Privacy.ANY, policy: KeyPolicy = KeyPolicy()) -> Ruling:  # noqa: B008
    return rule(msgspec.json.encode(body), header, policy)


def sent(ruling: Ruling) -> Any:
    return msgspec.json.decode(ruling.far())


# -- the strictest wins ------------------------------------------------------------------------------------------------

demands: st.SearchStrategy[tuple[dict[str, Any], Privacy]] = st.sampled_from([
    ({}, Privacy.ANY),
    ({"nearfar": {"privacy": "any"}}, Privacy.ANY),
    ({"nearfar": {"privacy": "fleet"}}, Privacy.FLEET),
    ({"nearfar": {"privacy": "local"}}, Privacy.LOCAL),
    ({"nearfar": {"private": True}}, Privacy.FLEET),
    ({"nearfar": {"private": False}}, Privacy.ANY),
    ({"nearfar": {"privacy": "local", "private": False}}, Privacy.LOCAL),
    ({"nearfar.privacy": "fleet"}, Privacy.FLEET),
    ({"nearfar.privacy": "any", "nearfar": {"privacy": "local"}}, Privacy.LOCAL),
    ({"private": True, "nearfar": {"privacy": "any"}}, Privacy.FLEET),
    ({"private": False}, Privacy.ANY),
])  # fmt: skip
contents = st.sampled_from([
    "What is the capital of France?", f"Write to {MAIL}", "", [{"type": "text", "text": "hi"}],
    [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
])  # fmt: skip
policies = st.builds(
    KeyPolicy,
    st.just("k"),
    st.sampled_from(Privacy),
    st.sampled_from(OnPersonalData),
    st.booleans(),
    st.none(),
    st.just(()),
)


@given(demands, st.sampled_from(Privacy), policies, st.sampled_from([None, *OnPersonalData]), contents)
def test_no_combination_is_looser_than_any_demand(
    demand: tuple[dict[str, Any], Privacy], header: Privacy, policy: KeyPolicy, own: OnPersonalData | None, content: Any
) -> None:
    fields, level = demand
    body = chat(content, **fields)
    if own is not None:
        body["nearfar"] = {**body.get("nearfar", {}), "personal_data": own.value}
    ruling = ruled(body, header, policy)
    personal, picture = MAIL in str(content), "image_url" in str(content)
    demanded = [level, header, policy.privacy]
    actions = {policy.on_personal_data, own or policy.on_personal_data}
    if personal and actions & {OnPersonalData.NEAR, OnPersonalData.REFUSE}:
        demanded.append(Privacy.FLEET)
    if picture and policy.unreadable_near:
        demanded.append(Privacy.FLEET)
    assert DISTANCE[ruling.privacy] <= min(DISTANCE[one] for one in demanded)
    assert ruling.privacy is strictest(*demanded)  # nor is it stricter for no reason
    assert bool(ruling.refusal) == (personal and OnPersonalData.REFUSE in actions)
    if ruling.privacy is not Privacy.ANY or ruling.refusal:
        assert ruling.far_body is None
        with pytest.raises(PersonalDataRefused) as caught:
            ruling.far()
        assert caught.value.hint and MAIL not in str(caught.value)
    elif OnPersonalData.REDACT in actions:
        assert MAIL.encode() not in ruling.far()
    assert all("ada" not in reason for reason in ruling.reasons)


@pytest.mark.parametrize("levels", list(itertools.product(Privacy, repeat=3)))
def test_strictest(levels: tuple[Privacy, ...]) -> None:
    assert DISTANCE[strictest(*levels)] == min(DISTANCE[level] for level in levels)


# -- everything is read ------------------------------------------------------------------------------------------------

PLACES: dict[str, dict[str, Any]] = {
    "system": {"messages": [{"role": "system", "content": MAIL}, {"role": "user", "content": "hi"}]},
    "an earlier message": {"messages": [{"role": "assistant", "content": MAIL}, {"role": "user", "content": "hi"}]},
    "a part": chat([{"type": "text", "text": MAIL}]),
    "a tool's answer": chat("hi", x=[{"role": "tool", "tool_call_id": "1", "content": MAIL}]),
    "arguments": {"messages": [{"tool_calls": [{"function": {"name": "f", "arguments": f'{{"a": "{MAIL}"}}'}}]}]},
    "a description": chat("hi", tools=[{"type": "function", "function": {"name": "f", "description": MAIL}}]),
    "a default": chat("hi", tools=[{"function": {"parameters": {"properties": {"a": {"default": MAIL}}}}}]),
    "metadata": chat("hi", metadata={"who": MAIL}),
    "the user": chat("hi", user=MAIL),
    "an unknown field": chat("hi", later={"deep": [[{"x": MAIL}]]}),
    "stop": chat("hi", stop=[MAIL]),
    "a prompt": {"model": "m", "prompt": MAIL},
    "prompts": {"model": "m", "prompt": ["hi", MAIL]},
    "an input": {"model": "m", "input": ["hi", MAIL]},
    "instructions": {"model": "m", "input": "hi", "instructions": MAIL},
    "a prediction": chat("hi", prediction={"type": "content", "content": MAIL}),
    "a suffix": {"model": "m", "prompt": "hi", "suffix": MAIL},
}  # fmt: skip
FIXED: dict[str, dict[str, Any]] = {
    "a name": {"messages": [{"role": "user", "name": MAIL, "content": "hi"}]},
    "the model": {"model": MAIL, "messages": []},
    "a key": chat("hi", metadata={MAIL: "x"}),
    "a number": chat("hi", metadata={"x": 4111111111111111}),
    "a number by its key": chat("hi", metadata={"ssn": 78051120}),
    "an id": {"messages": [{"role": "tool", "tool_call_id": MAIL, "content": "hi"}]},
}


@pytest.mark.parametrize("body", [*PLACES.values(), *FIXED.values()], ids=[*PLACES, *FIXED])
def test_wherever_it_stands_it_is_found(body: dict[str, Any]) -> None:
    ruling = ruled(body)
    assert ruling.privacy is Privacy.FLEET
    assert sum(ruling.counts.values()) == 1
    assert ruled(body, policy=KeyPolicy(on_personal_data=OnPersonalData.REFUSE)).refusal


@pytest.mark.parametrize("body", PLACES.values(), ids=PLACES.keys())
def test_wherever_it_stands_it_is_replaced_and_nothing_else_is(body: dict[str, Any]) -> None:
    ruling = ruled(body, policy=REDACT)
    assert ruling.privacy is Privacy.ANY
    assert ruling.redaction is not None
    assert MAIL.encode() not in ruling.far()
    assert ruling.redaction.restore(ruling.far().decode(), in_json=True).encode() == msgspec.json.encode(body)
    assert ruling.near() == msgspec.json.encode(body)


@pytest.mark.parametrize("body", FIXED.values(), ids=FIXED.keys())
def test_where_no_placeholder_can_stand_it_stays_near(body: dict[str, Any]) -> None:
    ruling = ruled(body, policy=REDACT)
    assert ruling.privacy is Privacy.FLEET
    assert "no placeholder" in ruling.reasons[-1]


def test_a_key_says_what_its_value_is() -> None:
    body = chat("hi", metadata={"patient": "Jane Roe", "size": "large"})
    assert ruled(body).counts == {Kind.NAME: 1}
    far = sent(ruled(body, policy=REDACT))
    assert far["metadata"] == {"patient": "<NAME_1>", "size": "large"}
    assert (
        ruled(chat("hi", tools=[{"parameters": {"properties": {"password": {"type": "string"}}}}])).privacy
        is Privacy.ANY
    )


def test_what_reaches_over_two_parts_is_found() -> None:
    split = chat([{"type": "text", "text": "card 4111 1111 "}, {"type": "text", "text": "1111 1111"}])
    assert ruled(split).counts == {Kind.CARD: 1}
    assert ruled(split, policy=REDACT).privacy is Privacy.FLEET
    asked = chat([{"type": "text", "text": "Password:"}, {"type": "text", "text": "hunter2"}])
    assert ruled(asked).counts[Kind.SECRET] >= 1
    whole = chat([{"type": "text", "text": MAIL}, {"type": "text", "text": "hello"}])
    assert ruled(whole, policy=REDACT).privacy is Privacy.ANY
    long = chat(
        [{"type": "text", "text": "x " * 50_000 + "4111 1111 "}, {"type": "text", "text": "1111 1111" + " x" * 50_000}]
    )
    assert ruled(long).counts == {Kind.CARD: 1}


@pytest.mark.parametrize(
    "body",
    [
        chat([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]),
        chat([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]),
        chat([{"type": "file", "file": {"file_id": "f"}}]),
        chat([{"type": "hologram"}]),
        chat([{"text": "no type"}]),
        chat("hi", extra={"x": "data:application/pdf;base64,AAAA"}),
        {"model": "m", "prompt": [1, 2, 3]},
        {"model": "m", "prompt": [[1, 2], [3]]},
        {"model": "m", "input": [1, 2, 3]},
        {"model": "m", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
    ],
)
def test_what_no_detector_reads_stays_near_unless_the_policy_lets_it(body: dict[str, Any]) -> None:
    ruling = ruled(body)
    assert ruling.privacy is Privacy.FLEET
    assert "no detector can read" in ruling.reasons[-1]
    assert ruled(body, policy=KeyPolicy(unreadable_near=False)).privacy is Privacy.ANY
    assert ruled(body, policy=REDACT).privacy is Privacy.FLEET


def test_a_tool_with_an_argument_called_file_is_no_file() -> None:
    properties = {"file": {"type": "string", "description": "a path"}, "image": {"type": "string"}}
    assert (
        ruled(chat("hi", tools=[{"type": "function", "function": {"parameters": {"properties": properties}}}])).privacy
        is Privacy.ANY
    )


# -- what goes out -----------------------------------------------------------------------------------------------------


def test_our_own_fields_do_not_go_far_and_the_rest_does_as_it_is() -> None:
    body = chat("hi", temperature=0.5, nearfar={"privacy": "any", "route": "x"}, private=False, **{"nearfar.note": 1})
    assert sent(ruled(body)) == chat("hi", temperature=0.5)
    assert msgspec.json.decode(ruled(body).near()) == body


def test_a_field_that_stands_there_twice_goes_far_as_it_was_looked_at() -> None:
    """Another reader may take the first of two equal names, so the given bytes must not travel."""
    body = b'{"model": "m", "prompt": "' + MAIL.encode() + b'", "prompt": "hi"}'
    ruling = rule(body)
    assert ruling.privacy is Privacy.ANY
    assert ruling.far() == b'{"model":"m","prompt":"hi"}'


def test_an_answer_comes_home() -> None:
    ruling = ruled(chat(f"Write to {MAIL}, password: hunter2"), policy=REDACT)
    assert sent(ruling)["messages"][0]["content"] == "Write to <EMAIL_1>, password: <SECRET_1>"
    assert ruling.redaction is not None
    assert ruling.redaction.restore("Dear <EMAIL_1>: <SECRET_1>!") == f"Dear {MAIL}: hunter2!"


def test_too_many_values_stay_near() -> None:
    ruling = ruled(chat(" ".join(f"u{n}@example.org" for n in range(MOST_VALUES + 1))), policy=REDACT)
    assert ruling.privacy is Privacy.FLEET and ruling.redaction is None
    assert str(MOST_VALUES) in ruling.reasons[-1]


def test_ignoring_is_said() -> None:
    ruling = ruled(chat(MAIL), policy=KeyPolicy("lab", on_personal_data=OnPersonalData.IGNORE))
    assert ruling.privacy is Privacy.ANY and MAIL.encode() in ruling.far()
    assert ruling.reasons == ("found: e-mail address, ignored by the policy of lab",)


def test_a_request_that_is_private_anyway_is_not_searched() -> None:
    def never(text: str) -> Any:
        raise AssertionError("nobody needs to look")

    body = msgspec.json.encode(chat(MAIL))
    assert rule(body, Privacy.FLEET, find=never).counts == {}
    refuse = KeyPolicy(on_personal_data=OnPersonalData.REFUSE)
    assert rule(body, Privacy.LOCAL, refuse).refusal, "but a refusal is a refusal near, too"


@given(st.text(st.characters(codec="utf-8"), min_size=8), st.sampled_from(OnPersonalData))
def test_nothing_that_can_be_printed_holds_the_request(noise: str, action: OnPersonalData) -> None:
    marked = f"{noise} xyzzy{MAIL} patient: Jane Xyzzy"
    ruling = ruled(chat(marked, metadata={"ssn": "xyzzy-078051120"}), policy=KeyPolicy(on_personal_data=action))
    shown = f"{ruling!r} {ruling} {ruling.told()} {ruling.near_body!r} {ruling.far_body!r} {ruling.refusal}"
    assert "xyzzy" not in shown.lower() and "078051120" not in shown
    assert "xyzzy" not in msgspec.json.encode(ruling.told()).decode().lower()
    with pytest.raises(TypeError):
        msgspec.json.encode(ruling)


# -- what makes no sense -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"nearfar": "private"},
        {"nearfar": []},
        {"nearfar": {"privacy": "Local"}},
        {"nearfar": {"privacy": None}},
        {"nearfar": {"privacy": ["local"]}},
        {"nearfar": {"private": "yes"}},
        {"nearfar": {"private": 1}},
        {"nearfar": {"privcy": "local"}},
        {"nearfar": {"Privacy": "local"}},
        {"nearfar": {"personal_data": "hide"}},
        {"nearfar.privat": True},
        {"private": "true"},
    ],
)
def test_a_demand_that_is_misspelt_is_not_taken_for_none(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        ruled(chat("hi", **fields))
    assert caught.value.hint


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"a": "\\ud800"}', b"[" * 5000, b'{"a":' * 5000, b'{"a": NaN}'],
)
def test_what_is_no_request_is_refused_without_being_quoted(body: bytes) -> None:
    with pytest.raises(InputError) as caught:
        rule(body)
    assert caught.value.hint


@pytest.mark.parametrize("header", Privacy)
def test_deeper_than_anybody_needs_is_refused(header: Privacy) -> None:
    body: Any = "x"
    for _ in range(DEEPEST + 1):
        body = [body]
    with pytest.raises(InputError, match="nested"):
        ruled({"x": body}, header)


@pytest.mark.parametrize("levels", range(DEEPEST - 3, DEEPEST + 3))
@pytest.mark.parametrize("leaf", ["x", 1, None, [], {}, {"a": "]]}}"}])
def test_how_deep_a_body_may_be_does_not_depend_on_who_looks(levels: int, leaf: Any) -> None:
    body: Any = leaf
    for _ in range(levels):
        body = [body]
    refused = []
    for header in Privacy:
        try:
            ruled({"x": body}, header)
            refused.append(False)
        except InputError:
            refused.append(True)
    assert len(set(refused)) == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.just(MAIL),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abtype", max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text("abmessagprot", min_size=1, max_size=8), json_values, max_size=4))
def test_any_body_goes_far_without_a_finding_and_comes_back_as_it_was(body: dict[str, Any]) -> None:
    ruling = ruled(body, policy=REDACT)
    if ruling.far_body is None:
        return
    assert find(ruling.far().decode()) == () and MAIL.encode() not in ruling.far()
    far = ruling.far().decode()
    back = ruling.redaction.restore(far, in_json=True) if ruling.redaction else far
    assert msgspec.json.decode(back) == {name: value for name, value in body.items() if name != "private"}
