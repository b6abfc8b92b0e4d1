"""The state of an answer moves between two real engines: its text is as if uncut, and nothing is read twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nearfar
from nearfar.errors import InferenceError, InputError
from nearfar.runtimes import kvstate
from nearfar.runtimes.llamastate import LlamaStates
from nearfar.runtimes.states import Marked, Resumed
from nearfar.runtimes.text import LoadedText, TextOptions
from nearfar.types.wire import Operation, TextContext
from tests.realdata import need_data
from tests.runtimes import tinygguf

MODEL = "0" * 64
LIMIT = 48
CONTEXT = TextContext(streamed=True)
MOST = 1 << 26


def engine(path: Path, *, context: int = 512, slots: int = 2, model: str = MODEL, **settings: str) -> LoadedText:
    pytest.importorskip("xllamacpp")
    from nearfar.runtimes.llamacpp import LlamaCppRuntime

    made = LlamaCppRuntime().load_text(path, TextOptions("m", context=context, slots=slots, settings=settings))
    run(made, Operation.COMPLETE, {"prompt": "Hello", "max_tokens": 1})
    if made.states is not None:
        made.states.learn(model)
    return made


def states(loaded: LoadedText) -> LlamaStates:
    assert isinstance(loaded.states, LlamaStates)
    return loaded.states


def run(loaded: LoadedText, operation: Operation, body: Any, stop: int = 0) -> list[bytes]:
    """The chunks; after `stop` of them the caller leaves."""
    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        if piece:
            pieces.append(piece)
        return bool(stop) and len(pieces) >= stop

    loaded.run(operation, body if isinstance(body, bytes) else json.dumps(body).encode(), take, CONTEXT)
    return pieces


def text(pieces: list[bytes]) -> str:
    choices = [choice for piece in pieces for choice in json.loads(piece)["choices"]]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


def question(operation: Operation, words: str, **more: Any) -> dict[str, Any]:
    chat = operation is Operation.CHAT
    what: dict[str, Any] = {"messages": [{"role": "user", "content": words}]} if chat else {"prompt": words}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return {**what, **usage, "temperature": 0, "max_tokens": LIMIT, **more}


def cut(loaded: LoadedText, operation: Operation, asked: dict[str, Any], after: int) -> tuple[str, bytes]:
    """(what was delivered until then, the state)"""
    marked = states(loaded).marked(json.dumps(asked).encode())
    assert isinstance(marked, Marked)
    said = text(run(loaded, operation, marked.body, after))
    return said, states(loaded).save(marked.mark, MOST)


def finish(loaded: LoadedText, resumed: Resumed) -> tuple[str, list[dict[str, Any]]]:
    chunks = [chunk for piece in run(loaded, resumed.operation, resumed.body) for chunk in resumed.chunks(piece)]
    first = [resumed.first] if resumed.first else []
    return text([*first, *chunks]), [json.loads(chunk) for chunk in chunks]


@pytest.fixture(scope="module", params=["random", "stories"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LoadedText]]:
    folder = tmp_path_factory.mktemp("model")
    stories = request.param == "stories"
    path = need_data("slm", "stories260K.gguf") if stories else tinygguf.llama(folder / "r.gguf", layers=2, heads=4)
    made = [engine(path), engine(path)]
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETE])
def test_an_answer_that_is_cut_anywhere_goes_on_as_if_uncut(pair: list[LoadedText], operation: Operation) -> None:
    first, second = pair
    for number, after in enumerate(range(4, LIMIT - 4, 5)):
        asked = question(operation, f"Tell me a story, {number}, about a cat and 1 2 3")
        uncut = run(first, operation, asked)
        usage = json.loads(uncut[-1])["usage"]
        said, state = cut(first, operation, asked, after)
        resumed = states(second).resume(operation, json.dumps(asked).encode(), state, len(said))
        begun = text([resumed.first])
        assert said.startswith(begun) and len(said) - len(begun) < 16
        told, chunks = finish(second, resumed)
        assert told == text(uncut)
        last = chunks[-1]
        assert last["timings"]["prompt_n"] == 1, "neither prompt nor answer is read again"
        assert last["timings"]["cache_n"] == resumed.tokens - 1
        for name in ("prompt_tokens", "completion_tokens"):
            assert last["usage"][name] == usage[name]
        assert {chunk["object"] for chunk in chunks} == {json.loads(uncut[0])["object"]}
        reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
        assert reasons == ["length"]


def test_the_model_that_ships_goes_on_as_if_uncut() -> None:
    path = Path(nearfar.__file__).parent / "models" / "embedded" / "facts" / "facts-q8_0.gguf"
    first, second = engine(path), engine(path)
    table = "eggs: 6\nmilk: 2\nbutter: 1"
    asked = question(Operation.CHAT, "How many eggs do I have?")
    asked["messages"].insert(0, {"role": "system", "content": table})
    uncut = run(first, Operation.CHAT, asked)
    after = len(uncut) // 2
    assert after > 2
    said, state = cut(first, Operation.CHAT, asked, after)
    resumed = states(second).resume(Operation.CHAT, json.dumps(asked).encode(), state, len(said))
    told, chunks = finish(second, resumed)
    assert told == text(uncut)
    reasons = [[c["finish_reason"] for p in part for c in p["choices"]] for part in (map(json.loads, uncut), chunks)]
    assert reasons[0][-1] == reasons[1][-1]
    assert chunks[-1]["timings"]["prompt_n"] == 1
    first.close()
    second.close()


def test_a_state_gives_nothing_beyond_what_the_caller_has(pair: list[LoadedText]) -> None:
    first, second = pair
    asked = question(Operation.CHAT, "What is in it?")
    said, state = cut(first, Operation.CHAT, asked, 12)
    resumed = states(second).resume(Operation.CHAT, json.dumps(asked).encode(), state, len(said) // 2)
    assert said.startswith(text([resumed.first]))
    assert len(text([resumed.first])) <= len(said) // 2
    assert finish(second, resumed)[0] == text(run(first, Operation.CHAT, asked))


def test_before_anything_was_said_the_prompt_alone_is_known(pair: list[LoadedText]) -> None:
    first, second = pair
    for words, more, written in (("Nothing yet", {}, 0), ("One word is enough", {"max_tokens": 1}, 1000)):
        asked = question(Operation.CHAT, words, **more)
        body = json.dumps(asked).encode()
        _, state = cut(first, Operation.CHAT, {**asked, "max_tokens": LIMIT}, 8)
        resumed = states(second).resume(Operation.CHAT, body, state, written)
        assert not resumed.first
        told, chunks = finish(second, resumed)
        assert told == text(run(first, Operation.CHAT, asked))
        assert chunks[-1]["timings"]["prompt_n"] <= 1


def test_another_turn_knows_the_beginning_of_its_prompt(pair: list[LoadedText]) -> None:
    first, second = pair
    asked = question(Operation.CHAT, "A long beginning that is told once, and remembered for what comes after it")
    said, state = cut(first, Operation.CHAT, asked, 12)
    told = [*asked["messages"], {"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    turn = {**asked, "messages": told, "max_tokens": 4}
    resumed = states(second).resume(Operation.CHAT, json.dumps(turn).encode(), state, -1)
    assert not resumed.first
    _, chunks = finish(second, resumed)
    assert chunks[-1]["timings"]["cache_n"] > len(asked["messages"][0]["content"]) // 3
    assert chunks[-1]["timings"]["cache_n"] >= resumed.tokens - 1
    with pytest.raises(InputError, match="another conversation"):
        states(second).resume(Operation.CHAT, json.dumps(question(Operation.CHAT, "x")).encode(), state, -1)


def test_what_is_not_of_this_call_is_refused_and_nothing_changes(pair: list[LoadedText]) -> None:
    first, second = pair
    asked = question(Operation.CHAT, "Whose answer is this?")
    body = json.dumps(asked).encode()
    said, state = cut(first, Operation.CHAT, asked, 12)
    other = json.dumps(question(Operation.CHAT, "Whose answer is it?")).encode()
    before = text(run(second, Operation.CHAT, asked))
    with pytest.raises(InputError, match="not of this call"):
        states(second).resume(Operation.CHAT, other, state, len(said))
    with pytest.raises(InputError, match="truncated"):
        states(second).resume(Operation.CHAT, body, state[:-2], len(said))
    assert text(run(second, Operation.CHAT, asked)) == before


def test_a_state_that_is_too_large_or_gone_is_not_saved(pair: list[LoadedText]) -> None:
    first, _ = pair
    marked = states(first).marked(json.dumps(question(Operation.CHAT, "Too long")).encode())
    assert marked is not None
    run(first, Operation.CHAT, marked.body, 5)
    with pytest.raises(InferenceError, match="state_limit"):
        states(first).save(marked.mark, 1000)
    with pytest.raises(InferenceError, match="not kept"):
        states(first).save(marked.mark - 1, MOST)


def test_a_state_is_not_saved_for_another_call_that_has_its_slot(pair: list[LoadedText]) -> None:
    first, _ = pair
    marks = []
    for number in range(3):  # one more than there are slots
        marked = states(first).marked(json.dumps(question(Operation.CHAT, f"{number}" * 20)).encode())
        assert marked is not None
        run(first, Operation.CHAT, marked.body, 5)
        marks.append(marked.mark)
    with pytest.raises(InferenceError, match="not kept"):
        states(first).save(marks[0], MOST)
    assert states(first).save(marks[2], MOST)


def test_no_file_is_left(pair: list[LoadedText]) -> None:
    first, second = pair
    asked = question(Operation.CHAT, "Nothing stays")
    said, state = cut(first, Operation.CHAT, asked, 8)
    states(second).resume(Operation.CHAT, json.dumps(asked).encode(), state, len(said))
    with pytest.raises(InputError):
        states(second).resume(Operation.CHAT, json.dumps(asked).encode(), state[:-2], len(said))
    for one in (first, second):
        assert not states(one)._folder.exists()


def test_states_move_between_equal_builds_alone(tmp_path: Path) -> None:
    path = tinygguf.llama(tmp_path / "a.gguf")
    made = [
        engine(path),
        engine(path),
        engine(path, context=256),
        engine(path, slots=3),
        engine(path, model="1" * 64),
        engine(tinygguf.llama(tmp_path / "b.gguf", layers=2)),
    ]
    builds = [states(one).build for one in made]
    assert builds[0] == builds[1] != ""
    assert len(set(builds)) == len(builds) - 1
    asked = question(Operation.CHAT, "Hi")
    said, state = cut(made[0], Operation.CHAT, asked, 8)
    for other in (made[3], made[5]):  # also when somebody pretends that the build is the same
        with pytest.raises(InputError, match="another shape"):
            states(other).resume(Operation.CHAT, json.dumps(asked).encode(), state, len(said))
    for one in made:
        one.close()


def test_what_has_a_state_beside_the_slot_does_not_move(tmp_path: Path) -> None:
    path = tinygguf.llama(tmp_path / "a.gguf")
    plain = engine(path)
    assert states(plain).marked(b'{"messages": [], "lora": [{"id": 0}]}') is None
    assert states(plain).marked(b'{"messages": [], "n": 2}') is None
    assert states(plain).marked(b"no JSON") is None
    drafted = engine(path, draft=str(tinygguf.llama(tmp_path / "d.gguf", seed=3)))
    assert drafted.states is None
    sliding = engine(tinygguf.llama(tmp_path / "a.gguf"))
    fresh = LlamaStates("http://127.0.0.1:9", "", tmp_path / "no", states(sliding)._geometry)
    fresh.learn(MODEL)
    assert fresh.build == ""
    assert fresh.marked(b'{"messages": []}') is None


def test_the_checker_knows_its_own_engine(pair: list[LoadedText]) -> None:
    first, _ = pair
    _, state = cut(first, Operation.CHAT, question(Operation.CHAT, "Hi"), 8)
    read = kvstate.read(state)
    assert read.layout == states(first)._own
    assert len(state) == len(read.tokens) * read.layout.token_bytes + _HEAD + 24 * len(read.layout.keys)


_HEAD = 4 + 8 + 16 + 4 + 2 * 4 + 16
"""Bytes before and between tokens, cells and rows, with two slots."""
