"""Which conversation a turn belongs to."""

from __future__ import annotations

import json

from nearfar.language.call import TextCall, read_call
from nearfar.language.conversations import Conversations
from nearfar.language.privacy.policy import KeyPolicy
from nearfar.types.ids import ServiceId
from nearfar.types.request import Privacy, Qos
from nearfar.types.wire import Operation

HERE = ServiceId("pi/tiny")


def turn(*words: str, key: str = "", privacy: Privacy = Privacy.ANY, name: str = "") -> TextCall:
    """User and assistant in turn."""
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(words)]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    call = read_call(Operation.CHAT, body, Qos(privacy=privacy), KeyPolicy(key))
    return TextCall(call.operation, call.body, call.view, call.qos, call.route, call.policy, name)


def test_the_next_turn_is_known_also_when_the_answer_was_trimmed_and_others_are_not() -> None:
    kept = Conversations()
    kept.answered(turn("Hi"), HERE)
    assert kept.incumbent(turn("Hi", "Ho ", "So?")) == HERE
    assert kept.incumbent(turn("Hi", "Ho", "So?")) == HERE
    assert kept.incumbent(turn("Hi")) is None
    assert kept.incumbent(turn("Hello", "Ho", "So?")) is None


def test_neither_another_key_nor_another_privacy_shares_it() -> None:
    kept = Conversations()
    kept.answered(turn("Hi", key="ann", privacy=Privacy.LOCAL), HERE)
    assert kept.incumbent(turn("Hi", "Ho", "So?", key="ann", privacy=Privacy.LOCAL)) == HERE
    assert kept.incumbent(turn("Hi", "Ho", "So?", key="bob", privacy=Privacy.LOCAL)) is None
    assert kept.incumbent(turn("Hi", "Ho", "So?", key="ann")) is None
    kept.answered(turn("Hi", key="ann", name="talk-1"), HERE)
    assert kept.incumbent(turn("Anything", key="ann", name="talk-1")) == HERE
    assert kept.incumbent(turn("Anything", key="bob", name="talk-1")) is None


def test_a_prompt_without_messages_belongs_to_none_and_the_oldest_is_forgotten() -> None:
    kept = Conversations(most=2)
    kept.answered(read_call(Operation.COMPLETE, b'{"prompt": "Once"}', Qos()), HERE)
    assert len(kept) == 0
    for words in ("a", "b"):
        kept.answered(turn(words), HERE)
    assert kept.incumbent(turn("a", "", "x")) == HERE  # used: so "b" is the oldest
    kept.answered(turn("c"), HERE)
    assert len(kept) == 2
    assert kept.incumbent(turn("b", "", "x")) is None
    assert kept.incumbent(turn("a", "", "x")) == HERE
