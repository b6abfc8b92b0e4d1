"""The fake engine of language does what its file says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import InferenceError, InputError, ModelFileError, Overloaded
from nearfar.runtimes import registry
from nearfar.runtimes.faketext import FakeTextRuntime, LoadedFakeText, Saying, fake_text, tokens
from nearfar.runtimes.text import TextOptions
from nearfar.types.wire import Operation, TextContext


def load(folder: Path, slots: int = 2, **fields: Any) -> LoadedFakeText:
    path = folder / "m.json"
    path.write_bytes(fake_text(**fields))
    return FakeTextRuntime().load_text(path, TextOptions("m", slots=slots))


def ask(loaded: LoadedFakeText, operation: Operation = Operation.CHAT, **body: Any) -> list[dict[str, Any]]:
    pieces: list[bytes] = []
    loaded.run(operation, json.dumps(body).encode(), lambda p: pieces.append(p) or False, TextContext())  # type: ignore[func-returns-value]
    return [json.loads(piece) for piece in pieces if piece]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(loaded: LoadedFakeText, operation: Operation = Operation.CHAT, **body: Any) -> str:
    choice = ask(loaded, operation, **body)[0]["choices"][0]
    return str(choice["text"] if operation is Operation.COMPLETE else choice["message"]["content"])


def test_it_is_recognised_by_its_content_as_toml_and_as_json(tmp_path: Path) -> None:
    for name, data in (("a", fake_text(context=99)), ("b", b'format = "nearfar-fake-text"\ncontext = 99\n')):
        (tmp_path / name).write_bytes(data)
        found = registry.inspect_here(tmp_path / name)
        assert found.runtime == "faketext"
        assert found.text is not None
        assert found.text.context == 99


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_cut_answer_goes_on_with_the_same_text(tmp_path: Path, cut: int) -> None:
    loaded = load(tmp_path)
    whole = said(loaded, messages=user("Tell me"), max_tokens=8)
    head = "".join(tokens(whole)[:cut])
    rest = said(loaded, messages=[*user("Tell me"), {"role": "assistant", "content": head}], max_tokens=8 - cut)
    assert head + rest == whole
    prompt = "Once upon"
    whole = said(loaded, Operation.COMPLETE, prompt=prompt, max_tokens=8)
    head = "".join(tokens(whole)[:cut])
    assert head + said(loaded, Operation.COMPLETE, prompt=prompt + head, max_tokens=8 - cut) == whole


def test_a_scripted_answer_is_given_to_its_end_and_continued(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, says=(Saying("France", "Paris is the capital.", -0.5), Saying("weather", "{}", tool="look"))
    )
    (answer,) = ask(loaded, messages=user("The capital of France?"), logprobs=True)
    assert answer["choices"][0]["message"]["content"] == "Paris is the capital."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert [t["logprob"] for t in answer["choices"][0]["logprobs"]["content"]] == [-0.5] * 4
    begun = [*user("The capital of France?"), {"role": "assistant", "content": "Paris is"}]
    assert said(loaded, messages=begun) == " the capital."
    (answer,) = ask(loaded, messages=user("the weather?"))
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}


def test_temperature_mixes_the_seed_in(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    ask1: dict[str, Any] = {"messages": user("Hi"), "max_tokens": 6}
    assert said(loaded, **ask1) == said(loaded, **ask1, seed=3)
    assert said(loaded, **ask1, temperature=1, seed=3) == said(loaded, **ask1, temperature=1, seed=3)
    assert said(loaded, **ask1, temperature=1, seed=3) != said(loaded, **ask1, temperature=1, seed=4)
    (answer,) = ask(loaded, **ask1, temperature=1, seed=3, n=2)
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 2


def test_an_answer_ends_by_itself_when_a_length_is_stated(tmp_path: Path) -> None:
    loaded = load(tmp_path, length=5)
    reasons = {ask(loaded, messages=user(str(n)))[0]["choices"][0]["finish_reason"] for n in range(5)}
    assert reasons == {"stop"}


@pytest.mark.parametrize(
    ("fault", "error"), [("fail", InferenceError), ("fail 3", InferenceError), ("busy", Overloaded)]
)
def test_a_fault_comes_after_so_many_tokens(tmp_path: Path, fault: str, error: type[Exception]) -> None:
    loaded = load(tmp_path, fault=fault)
    pieces: list[bytes] = []
    body = json.dumps({"prompt": "a", "max_tokens": 9, "stream": True}).encode()
    with pytest.raises(error, match="as told"):
        loaded.run(Operation.COMPLETE, body, lambda p: pieces.append(p) or False, TextContext())  # type: ignore[func-returns-value]
    assert len(pieces) == (3 if fault.endswith("3") else 0)
    assert loaded.running == 0


def test_a_fault_file_counts_while_it_exists(tmp_path: Path) -> None:
    flag = tmp_path / "fault"
    loaded = load(tmp_path, fault_file=str(flag))
    assert said(loaded, messages=user("Hi"), max_tokens=1)
    flag.write_text("fail\n")
    with pytest.raises(InferenceError):
        said(loaded, messages=user("Hi"), max_tokens=1)
    flag.unlink()
    assert said(loaded, messages=user("Hi"), max_tokens=1)


def test_a_crash_kills_the_process(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(fake_text(fault="crash 2"))
    code = (
        "from pathlib import Path; from nearfar.runtimes.faketext import *; from nearfar.types.wire import *;"
        f"m = FakeTextRuntime().load_text(Path({str(tmp_path / 'm.json')!r}), TextOptions('m'));"
        'm.run(Operation.COMPLETE, b\'{"prompt": "a"}\', lambda p: False, TextContext())'
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


def test_vectors_are_of_length_one_and_near_for_texts_that_share_words(tmp_path: Path) -> None:
    loaded = load(tmp_path, embedding=True, width=64)
    (answer,) = ask(loaded, Operation.EMBED, input=["how many eggs", "how many eggs there", "red cars"])
    a, b, c = (row["embedding"] for row in answer["data"])
    assert math.isclose(sum(x * x for x in a), 1)
    assert sum(x * y for x, y in zip(a, b, strict=True)) > sum(x * y for x, y in zip(a, c, strict=True))
    with pytest.raises(InputError, match="vectors"):
        ask(loaded, messages=user("Hi"))


@pytest.mark.parametrize(
    "text", ["{", '{"format": "nearfar-fake-text", "delay": 1}', '{"format": "nearfar-fake-text", "fault": "explode"}']
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"m\.json is not a fake language model"):
        FakeTextRuntime().facts(tmp_path / "m.json")
