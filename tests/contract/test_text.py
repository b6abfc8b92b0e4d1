"""What holds for every engine of language. A new one adds one `Case` and nothing else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nearfar.errors import InferenceError, InputError, ModelFileError, NearfarError
from nearfar.runtimes import registry
from nearfar.runtimes.base import LoadOptions
from nearfar.runtimes.faketext import fake_text
from nearfar.runtimes.text import LoadedText, TextOptions, TextRuntime
from nearfar.types.wire import Operation, TextContext
from tests.runtimes import tinygguf, tinyir

CHAT, COMPLETE, EMBED = Operation.CHAT, Operation.COMPLETE, Operation.EMBED
SLOTS, CONTEXT = 3, 512


class Case(NamedTuple):
    """An engine, and how to make it a model of a context of 512 tokens."""

    runtime: str
    model: Callable[[Path], Path]


def fake(folder: Path) -> Path:
    path = folder / "m.json"
    path.write_bytes(fake_text(context=CONTEXT))
    return path


CASES = [
    Case("llamacpp", lambda folder: tinygguf.llama(folder / "m.gguf", context=CONTEXT)),
    Case("openvino-genai", lambda folder: tinyir.packed(folder, context=CONTEXT)),
    Case("openvino-genai", lambda folder: tinyir.gguf_file(folder / "m.gguf", context=CONTEXT)),
    Case("faketext", fake),
]


@pytest.fixture(params=CASES, ids=lambda case: case.runtime, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    if reason := registry.runtime(chosen.runtime).available():
        pytest.skip(reason)
    return chosen


@pytest.fixture(scope="module")
def runtime(case: Case) -> TextRuntime:
    made = registry.runtime(case.runtime)
    assert isinstance(made, TextRuntime)
    return made


@pytest.fixture(scope="module")
def path(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.model(tmp_path_factory.mktemp(case.runtime))


@pytest.fixture(scope="module")
def loaded(runtime: TextRuntime, path: Path) -> Iterator[LoadedText]:
    made = runtime.load_text(path, TextOptions("tiny", slots=SLOTS))
    yield made
    made.close()


class Heard:
    """Takes pieces; `stop_after` so many says that nobody waits any more."""

    def __init__(self, stop_after: int = 1 << 30) -> None:
        self.pieces: list[bytes] = []
        self._stop_after = stop_after

    def __call__(self, piece: bytes) -> bool:
        if piece:
            self.pieces.append(piece)
        return len(self.pieces) >= self._stop_after

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(piece) for piece in self.pieces]


def ask(loaded: LoadedText, operation: Operation, **body: Any) -> dict[str, Any]:
    """The one answer."""
    heard = Heard()
    loaded.run(operation, json.dumps(body).encode(), heard, TextContext())
    (answer,) = heard.objects
    return answer


def chunks(loaded: LoadedText, operation: Operation, **body: Any) -> list[dict[str, Any]]:
    heard = Heard()
    loaded.run(operation, json.dumps({**body, "stream": True}).encode(), heard, TextContext(streamed=True))
    return heard.objects


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(pieces: list[dict[str, Any]]) -> str:
    parts = []
    for piece in pieces:
        for choice in piece["choices"]:
            parts.append(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
    return "".join(parts)


def test_the_file_says_what_it_is_without_the_engine(runtime: TextRuntime, path: Path) -> None:
    facts = runtime.facts(path)
    assert facts.context == CONTEXT
    assert not facts.embedding


def test_it_takes_no_tensors(runtime: TextRuntime, path: Path) -> None:
    with pytest.raises(ModelFileError, match="text, not tensors"):
        runtime.load(path, LoadOptions())


def test_it_has_the_slots_and_the_context_that_were_asked_for(loaded: LoadedText) -> None:
    assert (loaded.slots, loaded.context) == (SLOTS, CONTEXT)
    assert loaded.free


def test_the_context_is_never_more_than_was_asked_for(runtime: TextRuntime, path: Path) -> None:
    made = runtime.load_text(path, TextOptions("tiny", context=256, slots=1))
    assert made.context == 256
    with pytest.raises(InputError, match="256"):
        ask(made, COMPLETE, prompt="x " * 300, max_tokens=1)
    made.close()


@pytest.mark.parametrize("tokens", [5, 60])
def test_a_conversation_is_answered_whole(loaded: LoadedText, tokens: int) -> None:
    answer = ask(loaded, CHAT, messages=user("Hello"), max_tokens=tokens, temperature=0)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == tokens
    assert answer["usage"]["total_tokens"] == tokens + answer["usage"]["prompt_tokens"]
    assert answer["timings"]["predicted_n"] == tokens


@pytest.mark.parametrize("operation", [CHAT, COMPLETE])
def test_a_streamed_answer_is_the_whole_one_in_pieces(loaded: LoadedText, operation: Operation) -> None:
    body: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
    body |= {"messages": user("Hello")} if operation is CHAT else {"prompt": "Hello"}
    whole = ask(loaded, operation, **body)
    pieces = chunks(loaded, operation, **body, stream_options={"include_usage": True})
    choice = whole["choices"][0]
    assert said(pieces) == (choice["message"]["content"] if operation is CHAT else choice["text"])
    assert len(pieces) > 10
    assert len({piece["id"] for piece in pieces}) == 1
    assert pieces[-1]["usage"]["completion_tokens"] == 40
    reasons = [c["finish_reason"] for piece in pieces for c in piece["choices"] if c["finish_reason"]]
    assert reasons == ["length"]


def test_every_piece_is_one_line(loaded: LoadedText) -> None:
    heard = Heard()
    body = json.dumps({"messages": user("a\nb"), "max_tokens": 20, "stream": True}).encode()
    loaded.run(CHAT, body, heard, TextContext(streamed=True))
    assert all(b"\n" not in piece for piece in heard.pieces)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_nobody_waits_for_is_stopped(loaded: LoadedText, stream: bool) -> None:
    count = 0

    def gone(piece: bytes) -> bool:
        nonlocal count
        count += 1
        return count >= 3

    body = {"messages": user("Go on and on"), "max_tokens": 400, "temperature": 0, "stream": stream}
    loaded.run(CHAT, json.dumps(body).encode(), gone, TextContext(streamed=stream))
    assert count == 3
    assert ask(loaded, CHAT, messages=user("Hi"), max_tokens=1)["choices"], "the slot is free again"


def test_as_many_conversations_as_there_are_slots_go_on_at_once(loaded: LoadedText) -> None:
    inside = threading.Barrier(SLOTS)
    texts: dict[int, str] = {}
    errors: list[BaseException] = []

    def talk(number: int) -> None:
        met = False
        parts: list[bytes] = []

        def take(piece: bytes) -> bool:
            nonlocal met
            if not met:
                met = True
                inside.wait(20)  # all have begun before any has ended
            parts.append(piece)
            return False

        try:
            body = {"prompt": f"Number {number}", "max_tokens": 30, "temperature": 0, "stream": True}
            loaded.run(COMPLETE, json.dumps(body).encode(), take, TextContext(streamed=True))
            texts[number] = said([json.loads(part) for part in parts if part])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(SLOTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert len(texts) == SLOTS
    assert len(set(texts.values())) == SLOTS, "each got its own"


def test_greedy_is_the_same_twice_and_a_seed_makes_chance_repeatable(loaded: LoadedText) -> None:
    def text(**more: Any) -> str:
        return str(ask(loaded, COMPLETE, prompt="Once", max_tokens=24, **more)["choices"][0]["text"])

    assert text(temperature=0) == text(temperature=0)
    assert text(temperature=1, seed=7) == text(temperature=1, seed=7)
    assert text(temperature=1, seed=7) != text(temperature=1, seed=8)


def test_an_answer_ends_before_a_stop_text(loaded: LoadedText) -> None:
    whole = ask(loaded, COMPLETE, prompt="Once", max_tokens=40, temperature=0)["choices"][0]["text"]
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    answer = ask(loaded, COMPLETE, prompt="Once", max_tokens=40, temperature=0, stop=[middle])["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["text"] == whole[: whole.index(middle)]


@pytest.mark.parametrize("tokens", [4, 40])
def test_several_answers_come_at_once(loaded: LoadedText, tokens: int) -> None:
    answer = ask(loaded, CHAT, messages=user("Hi"), max_tokens=tokens, temperature=1, seed=1, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(choice["message"]["content"] is not None for choice in answer["choices"])
    with pytest.raises(InputError):
        ask(loaded, CHAT, messages=user("Hi"), n=SLOTS + 1)


@pytest.mark.parametrize("tokens", [4, 40])
def test_logprobs_come_for_each_token(loaded: LoadedText, tokens: int) -> None:
    asked: dict[str, Any] = {"messages": user("Hi"), "max_tokens": tokens, "temperature": 0, "logprobs": True}
    answer = ask(loaded, CHAT, **asked, top_logprobs=min(2, loaded.alternatives))
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == tokens
    assert all(told["logprob"] <= 0 and told["top_logprobs"] for told in content)
    if loaded.alternatives < 20:
        with pytest.raises(InputError, match="top_logprobs"):
            ask(loaded, CHAT, **asked, top_logprobs=loaded.alternatives + 1)


def test_a_conversation_that_ends_with_the_assistant_is_continued(case: Case, loaded: LoadedText) -> None:
    pieces = [said([chunk]) for chunk in chunks(loaded, CHAT, messages=user("Hi"), max_tokens=12, temperature=0)]
    written = [piece for piece in pieces if piece]
    begun = "".join(written[:6])
    going_on = [*user("Hi"), {"role": "assistant", "content": begun}]
    rest = said(chunks(loaded, CHAT, messages=going_on, max_tokens=6, temperature=0))
    assert rest and not rest.startswith(begun), "it goes on, and does not begin again"
    if case.runtime == "faketext":  # random weights are not greedy over another cutting of their own text
        assert begun + rest == "".join(written)


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        (CHAT, b""),
        (CHAT, b"{"),
        (CHAT, b"null"),
        (CHAT, b"[]"),
        (CHAT, b"\xff\xfe"),
        (CHAT, b"{}"),
        (CHAT, b'{"messages": []}'),
        (CHAT, b'{"messages": "x"}'),
        (CHAT, b'{"messages": [1]}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "n": 0}'),
        (CHAT, b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "tools": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
        (COMPLETE, b"{}"),
        (COMPLETE, b'{"prompt": ""}'),
        (COMPLETE, b'{"prompt": null}'),
        (COMPLETE, b'{"prompt": "' + b"word " * 2_000_000 + b'"}'),
        (EMBED, b'{"input": "x"}'),
        (Operation.SEE, b"{}"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_what_it_does_not_take_is_the_callers_error_and_hurts_nobody(
    loaded: LoadedText, operation: Operation, body: bytes
) -> None:
    heard = Heard()
    with pytest.raises(InputError) as caught:
        loaded.run(operation, body, heard, TextContext())
    assert caught.value.hint, "it says what to do"
    assert "word word" not in str(caught.value), "no prompt in a message"
    assert not heard.pieces
    assert ask(loaded, CHAT, messages=user("Hi"), max_tokens=1)["choices"]


def test_a_prompt_that_is_too_long_names_both_numbers_and_is_never_cut(loaded: LoadedText) -> None:
    with pytest.raises(InputError) as caught:
        ask(loaded, COMPLETE, prompt="x " * 1000, max_tokens=1)
    numbers = [int(found) for found in re.findall(r"\d+", str(caught.value))]
    assert max(numbers) >= 1000
    assert CONTEXT in numbers


def test_an_answer_ends_with_the_context_and_says_so(loaded: LoadedText) -> None:
    answer = ask(loaded, COMPLETE, prompt="Once upon a time", temperature=0, max_tokens=5000)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] <= CONTEXT + 1


def test_after_closing_it_says_so(runtime: TextRuntime, path: Path) -> None:
    made = runtime.load_text(path, TextOptions("tiny", slots=1))
    made.close()
    made.close()
    with pytest.raises(InferenceError, match="closed"):
        ask(made, CHAT, messages=user("Hi"))


def test_an_error_of_whoever_listens_comes_out(loaded: LoadedText) -> None:
    def broken(piece: bytes) -> bool:
        raise ValueError("the way is gone")

    with pytest.raises((NearfarError, ValueError), match="the way is gone"):
        loaded.run(CHAT, json.dumps({"messages": user("Hi"), "max_tokens": 2}).encode(), broken, TextContext())


@pytest.mark.parametrize("cut", [0, 3, 30])
def test_a_file_that_is_damaged_is_refused(
    case: Case, runtime: TextRuntime, path: Path, tmp_path: Path, cut: int
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelFileError):
        runtime.load_text(bad, TextOptions("tiny"))
