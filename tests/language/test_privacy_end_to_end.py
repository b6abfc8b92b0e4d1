"""The promise: whatever fails, no byte of a private prompt reaches the far end. Real nodes, a socket that keeps all.

A random but seeded run of calls, private in every way there is and not private at all, whole and streamed, as chats and
as responses, near, far and auto, again and again, while the near service fails or dies and the far end misbehaves. Each
prompt carries a word of its own. At the end no private word stands in what the far end's socket received; words of
public prompts do, so that the test can fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from nearfar.language import far
from nearfar.models.store import Store
from nearfar.runtimes.remote.description import FarEnd
from tests.far.misbehaving import Act, FarServer, script
from tests.fleetlab import Lab, Node, poll, talking
from tests.fleetlab import lab as lab

FREE, KITCHEN, CAREFUL = "free-key-0123456789", "kitchen-key-0123456789", "careful-key-0123456789"
CALLS, DEATH = 40, 34
"""How many, and after which of them the near service dies."""
KINDS = (
    *("public", "public", "public", "redact", "redact"),
    *("field", "private", "local", "header", "mail", "iban", "card", "secret", "tool", "key", "apart"),
)


DOCUMENT = "The gate of the yard opens at nine and closes at five, but for holidays. " * 30


class Asked(NamedTuple):
    word: str
    private: bool
    redacted: str = ""
    """A value that may not travel though its prompt does."""
    response: bool = False
    """Whether it is asked of `/v1/responses`."""


def _keys() -> str:
    """A key for anything, one whose prompts stay in the fleet, and one whose personal data is replaced."""
    rows = (
        ("free", FREE, ""),
        ("kitchen", KITCHEN, 'privacy = "fleet"'),
        ("careful", CAREFUL, 'on_personal_data = "redact"'),
    )
    return "\n".join(
        f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{more}\n'
        for name, key, more in rows
    )


def _call(chance: random.Random, number: int, *, long: bool) -> tuple[dict[str, Any], dict[str, str], Asked]:
    """Body and headers of one call, and what must hold of it."""
    word = f"kanarie{number:03d}x{chance.getrandbits(40):010x}"
    text = f"Tell me of {word} and of nothing else."
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    body: dict[str, Any] = {"model": chance.choice([*["auto"] * 6, "large"]), "messages": messages}
    body |= {"max_tokens": 8, "stream": chance.random() < 0.5, "temperature": chance.choice([0, 0, 0.8])}
    wishes: dict[str, Any] = {"route": chance.choice([*["auto"] * 5, "far"])}
    headers = {"authorization": f"Bearer {FREE}"}
    redacted = ""
    kind = chance.choice(KINDS)
    match kind:
        case "field":
            wishes["privacy"] = "fleet"
        case "private":
            wishes["private"] = True
        case "local":
            wishes["privacy"] = "local"
        case "header":
            headers["nearfar-privacy"] = "fleet"
        case "mail":
            messages.insert(0, {"role": "system", "content": f"Write to ann.{word}@example.org"})
        case "iban":
            messages.append({"role": "user", "content": "It is DE89 3704 0044 0532 0130 00."})
        case "card":
            messages[0]["content"] = [{"type": "text", "text": text}, {"type": "text", "text": "4111 1111 1111 1111"}]
        case "secret":
            messages[0]["content"] = f"{text} password: hunter2{word}"
        case "tool":
            arguments = json.dumps({"note": word, "to": "bob@example.org"})
            call = {"id": "1", "type": "function", "function": {"name": "send", "arguments": arguments}}
            messages.insert(0, {"role": "assistant", "content": None, "tool_calls": [call]})
        case "apart":  # the word in one message, what is personal in another
            messages[:0] = [
                {"role": "user", "content": "My card is 4111 1111 1111 1111."},
                {"role": "assistant", "content": word},
            ]
        case "key":
            headers["authorization"] = f"Bearer {KITCHEN}"
        case "redact":
            headers["authorization"] = f"Bearer {CAREFUL}"
            redacted = f"ann{word[-6:]}@example.org"
            messages.append({"role": "user", "content": f"Answer to {redacted}."})
    if long and kind not in ("mail", "apart"):
        # The question alone may go far when only its document is private, so there the word stands in the document.
        messages.insert(0, {"role": "system", "content": f"{DOCUMENT} {word} {DOCUMENT}"})
    body["nearfar"] = wishes
    response = number % 5 in (1, 3)
    if response:
        body = _as_response(body, word, instructions=number % 2 == 0)
    return body, headers, Asked(word, kind not in ("public", "redact"), redacted, response)


def _as_response(chat: dict[str, Any], word: str, *, instructions: bool) -> dict[str, Any]:
    """The same in the form of `/v1/responses`; what is personal may stand in instructions, items and calls of tools."""
    items: list[dict[str, Any]] = []
    messages = list(chat["messages"])
    told = {name: value for name, value in chat.items() if name not in ("messages", "max_tokens")}
    if instructions and messages[0]["role"] == "system":
        told["instructions"] = messages.pop(0)["content"]
    for message in messages:
        for call in message.get("tool_calls", ()):
            items.append({"type": "function_call", "call_id": call["id"], **call["function"]})
            items.append({"type": "function_call_output", "call_id": call["id"], "output": f"done: {word}"})
        if isinstance(message["content"], list):
            parts = [{"type": "input_text", "text": part["text"]} for part in message["content"]]
            items.append({"role": message["role"], "content": parts})
        elif message["content"]:
            items.append({"role": message["role"], "content": message["content"]})
    return {**told, "input": items, "max_output_tokens": chat["max_tokens"], "metadata": {"note": word}}


def _forms(text: str) -> list[bytes]:
    """The text as it could stand on the wire."""
    raw = text.encode()
    found = [raw, text.encode("utf-16-le"), raw.hex().encode()]
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + raw)
        found.append(coded[4:-4])
    return found


def _ask(http: httpx.Client, body: dict[str, Any], headers: dict[str, str]) -> bool:
    """Whether there was an answer; else there was an error, never nothing."""
    path = "/v1/responses" if "input" in body else "/v1/chat/completions"
    with http.stream("POST", path, json=body, headers=headers) as response:
        text = response.read().decode()
    assert text
    if response.status_code == 200 and "input" in body:
        ends = ("response.completed", "response.incomplete", "response.failed")
        assert any(f"event: {end}" in text for end in ends) if body["stream"] else json.loads(text)["output"]
    elif response.status_code == 200 and not body["stream"]:
        assert json.loads(text)["choices"]
    elif response.status_code == 200:
        assert text.rstrip().endswith("data: [DONE]") or '"error"' in text
    else:
        assert json.loads(text)["error"]["message"]
    return response.status_code == 200


def _node(lab: Lab, folder: Path, server: FarServer, name: str, routing: dict[str, str]) -> tuple[Node, Path]:
    home = lab.folder / f"home-{name}"
    home.mkdir(exist_ok=True)
    (home / "nearfar.toml").write_text(_keys())
    described = FarEnd(base_url=server.url, model="m", price_in=1, price_out=2, timeout_s=0.3, max_retries=1)
    far.add(Store(home / "models"), "large", described)
    fault = folder / f"fault-{name}"
    model = talking(folder, f"tiny-{name}", delay_ms=0.05, fault_file=str(fault), logprob=-4.0)
    env = {f"NEARFAR_ROUTING_{key.upper()}": value for key, value in routing.items()}
    if "split" in routing:
        env["NEARFAR_LANGUAGE_CONTEXT"] = "1024"  # so that long private documents are read in parts
    node = lab.node(name, [model], env=env, api_key=FREE)
    poll(lambda: (node.service_json("large") or {}).get("healthy"), "the far end is served")
    return node, fault


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "routing"),
    [
        (1, {"router": "always-far"}),
        (2, {"router": "always-near", "strategy": "cascade", "threshold": "0.99"}),
        (3, {"router": "length", "split": "true", "threshold": "1.0"}),
        (4, {"router": "ngram", "keep_prompts": "false"}),
    ],
    ids=["far", "cascade", "split", "ngram"],
)
def test_no_byte_of_a_private_prompt_reaches_the_far_socket(
    lab: Lab, tmp_path: Path, seed: int, routing: dict[str, str]
) -> None:
    chance = random.Random(seed)
    asked: list[Asked] = []
    answered = {True: 0, False: 0}
    since = 0
    with FarServer(script(seed, 40, good=0.75), Act()) as server:
        node, fault = _node(lab, tmp_path, server, f"n{seed}", routing)
        with httpx.Client(base_url=node.url, timeout=30, trust_env=False) as http:
            for number in range(CALLS):
                body, headers, what = _call(chance, number, long="split" in routing and number % 2 == 0)
                asked.append(what)
                for _ in range(chance.choice([1, 1, 2])):  # the same again: what is kept must not travel either
                    # Never often in a row: a service that fails three times is left alone for seconds.
                    since += 1
                    words = "crash 2" if number == DEATH else ""
                    if since > 4 and not words:
                        words, since = chance.choice(["", "fail", "busy", "fail 3"]), 0
                    fault.write_text(words) if words else fault.unlink(missing_ok=True)
                    answered[what.private] += _ask(http, body, headers)
            fault.unlink(missing_ok=True)
            calm = {"model": "auto", "messages": [{"role": "user", "content": "ann@example.org"}], "stream": False}
            poll(lambda: _ask(http, {**calm, "max_tokens": 2}, {"authorization": f"Bearer {FREE}"}), "near is back")
            for number in range(CALLS, CALLS + 10):  # so that there are answers in any case
                body, headers, what = _call(chance, number, long=False)
                asked.append(what)
                answered[what.private] += _ask(http, body, headers)
        received = bytes(server.received)
        private = [one for one in asked if one.private]
        public = [one for one in asked if not one.private]
        assert len(private) > 10 and len(public) > 5
        assert answered[True] > 3 and answered[False] > 5, f"few were answered, so little was tried: {answered}"
        assert sum(one.word.encode() in received for one in public) > len(public) // 3, "the control: these may travel"
        assert any(one.word.encode() in received for one in public if one.response), "also those of responses"
        assert sum(one.response for one in private) > 3
        for one in private:
            assert not [form for form in _forms(one.word) if form in received], one.word
        for one in public:
            assert not one.redacted or one.redacted.encode() not in received
        assert not [key for key in (FREE, KITCHEN, CAREFUL) if key.encode() in received]
        kept = b"".join(
            path.read_bytes() for path in node.home.rglob("*") if path.is_file() and path.name != "nearfar.toml"
        )
        said = node.stderr.encode()
        for one in asked:
            assert one.word.encode() not in kept and one.word.encode() not in said, "no prompt is written down"
