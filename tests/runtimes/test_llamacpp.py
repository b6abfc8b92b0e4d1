"""What llama.cpp does beyond the contract of every engine: adapters, guesses, schemas, memory, and its traps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import DeadlineExceeded, InputError, ModelFileError
from nearfar.limits import Memory
from nearfar.runtimes import gguf, llamacpp
from nearfar.runtimes.llamacpp import LlamaCppRuntime
from nearfar.runtimes.text import LoadedText, TextOptions
from nearfar.types.units import Bytes
from nearfar.types.wire import Operation, TextContext
from tests.contract.test_text import CHAT, COMPLETE, EMBED, Heard, ask, chunks, user
from tests.realdata import need_data
from tests.runtimes import tinygguf

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return tinygguf.llama(folder / "tiny.gguf")


def load(path: Path, slots: int = 2, **more: Any) -> LoadedText:
    return LlamaCppRuntime().load_text(path, TextOptions("tiny", slots=slots, **more))


@pytest.fixture(scope="module")
def loaded(path: Path, folder: Path) -> Iterator[LoadedText]:
    """With two adapters."""
    files = [tinygguf.lora(folder / f"lora{seed}.gguf", seed=seed) for seed in (5, 6)]
    made = load(path, settings={"loras": f"bard={files[0]}\npoet={files[1]}"})
    yield made
    made.close()


def text(loaded: LoadedText, **body: Any) -> str:
    fields = {"prompt": "Once upon", "max_tokens": 24, "temperature": 0, **body}
    return str(ask(loaded, COMPLETE, **fields)["choices"][0]["text"])


# -- adapters and guesses ---------------------------------------------------------------------------------------------


def test_an_adapter_is_applied_to_the_request_that_asks_for_it_and_to_no_other(loaded: LoadedText) -> None:
    plain = text(loaded)
    bard, poet = text(loaded, lora=[{"name": "bard"}]), text(loaded, lora=[{"id": "poet", "scale": 1.0}])
    assert len({plain, bard, poet}) == 3
    assert text(loaded, lora=[{"id": 0}]) == bard
    assert text(loaded, lora=[{"name": "bard", "scale": 0}]) == plain
    assert text(loaded) == plain, "it does not stay"


@pytest.mark.parametrize("lora", [[{"name": "bart"}], [{"id": 7}], [{"id": -1}], [{}]])
def test_an_adapter_that_is_not_there_is_named_with_those_that_are(loaded: LoadedText, lora: list[Any]) -> None:
    with pytest.raises(InputError, match=r"It has bard, poet"):
        text(loaded, lora=lora)


def test_an_adapter_file_must_be_one_and_be_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no adapter"):
        load(path, settings={"loras": f"x={path}"})
    with pytest.raises(ModelFileError, match="not there"):
        load(path, settings={"loras": f"x={tmp_path / 'none'}"})
    other = tinygguf.lora(tmp_path / "wide.gguf", width=64)
    with pytest.raises(ModelFileError, match=r"cannot be loaded.*adapter"):
        load(path, settings={"loras": f"x={other}"})


def test_a_draft_changes_no_word(path: Path, folder: Path, loaded: LoadedText) -> None:
    draft = tinygguf.llama(folder / "draft.gguf", width=16, wide=32, seed=3)
    made = load(path, settings={"draft": str(draft), "draft_tokens": "4"})
    try:
        assert text(made, max_tokens=40) == text(loaded, max_tokens=40)
        timings = ask(made, COMPLETE, prompt="Once upon", max_tokens=40, temperature=0)["timings"]
        assert timings["draft_n"] > 0, "it was asked"
    finally:
        made.close()


def test_guessing_by_repetition_changes_no_word(path: Path, loaded: LoadedText) -> None:
    made = load(path, settings={"ngram": "1"})
    prompt = "again and again and again and again and"
    try:
        assert text(made, prompt=prompt, max_tokens=60) == text(loaded, prompt=prompt, max_tokens=60)
    finally:
        made.close()


# -- schemas and grammars ---------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
    "required": ["a", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("operation", [CHAT, COMPLETE])
def test_a_schema_is_followed_without_white_space_that_never_ends(
    loaded: LoadedText, operation: Operation, temperature: float
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    body: dict[str, Any] = {"messages": user("x")} if operation is CHAT else {"prompt": "x"}
    answer = ask(loaded, operation, **body, response_format=form, max_tokens=200, temperature=temperature, seed=4)
    (choice,) = answer["choices"]
    said = choice["text"] if operation is COMPLETE else choice["message"]["content"]
    value = json.loads(said)
    assert choice["finish_reason"] == "stop"
    assert value["a"] in ("x", "y")
    assert len(value["n"]) <= 2
    assert len(said) <= len(json.dumps(value)), "at most one blank at a place"


def test_a_grammar_is_followed(loaded: LoadedText) -> None:
    assert text(loaded, grammar='root ::= "yes" | "no"') in ("yes", "no")


@pytest.mark.parametrize(
    "body",
    [
        {"grammar": 'root ::= "'},
        {"grammar": 'root ::= root "a" | "b"'},
        {"grammar": "%llguidance {}\nstart: /a+/"},
        {"grammar": 'root ::= "a"', "json_schema": {"type": "object"}},
        {"json_schema": {"type": "string", "pattern": "^a+$"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "poem"}},
    ],
)
def test_what_cannot_be_followed_is_refused_and_never_ignored(loaded: LoadedText, body: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        text(loaded, **body)


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_reading_a_long_prompt_can_be_stopped(folder: Path) -> None:
    made = load(tinygguf.llama(folder / "long.gguf", context=8192), context=8192, slots=1)
    body = {"prompt": "word " * 1500, "max_tokens": 1, "stream": True}
    calls = 0

    def gone(piece: bytes) -> bool:
        nonlocal calls
        calls += 1
        assert piece == b"", "nothing was said yet"
        return calls == 2

    try:
        made.run(COMPLETE, json.dumps(body).encode(), gone, TextContext(streamed=True))
        assert calls == 2
        whole = ask(made, COMPLETE, prompt="word " * 1500, max_tokens=1)
        assert whole["usage"]["prompt_tokens"] > 7000
        assert "prompt_progress" not in str(chunks(made, COMPLETE, **body))
    finally:
        made.close()


def test_the_deadline_of_a_whole_answer_stops_it(loaded: LoadedText) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 400, "temperature": 0}).encode()
    with pytest.raises(DeadlineExceeded):
        loaded.run(COMPLETE, body, Heard(), TextContext(), budget_ms=0.01)


# -- vectors ----------------------------------------------------------------------------------------------------------


def test_an_embedding_model_makes_vectors_and_no_text(path: Path) -> None:
    made = load(path, embedding=True)
    try:
        answer = ask(made, EMBED, input=["one", "two"])
        a, b = (row["embedding"] for row in answer["data"])
        assert len(a) == 32
        assert a != b
        assert abs(sum(x * x for x in a) - 1) < 1e-4
        assert answer["usage"]["prompt_tokens"] > 0
        with pytest.raises(InputError, match="vectors, not text"):
            ask(made, CHAT, messages=user("Hi"))
        assert len(ask(made, EMBED, input="x" * 400)["data"][0]["embedding"]) == 32, "a batch takes all of a context"
        with pytest.raises(InputError, match=r"\d+ tokens.*512"):
            ask(made, EMBED, input="x" * 600)
        with pytest.raises(InputError):
            ask(made, EMBED, input=[])
    finally:
        made.close()


def test_a_chat_model_that_is_asked_for_vectors_says_what_to_serve(loaded: LoadedText) -> None:
    with pytest.raises(InputError, match="embedding model"):
        ask(loaded, EMBED, input="x")


# -- memory -----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_sum(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "free_memory", lambda: Memory(1 << 20, "a test"))
    with pytest.raises(ModelFileError) as caught:
        load(path, context=512)
    told = str(caught.value)
    assert "of weights +" in told
    assert "of keys and values +" in told
    assert "of kept prompts =" in told
    assert "1.0 MiB (a test)" in told
    assert "[language] context" in told


def test_the_limit_of_a_service_counts_the_process_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "_resident", lambda: 100 << 20)
    need = gguf.need(gguf.read(path), 512, 2, path.stat().st_size, kept=llamacpp.PROMPT_CACHE).total
    load(path, memory=Bytes((100 << 20) + need)).close()
    with pytest.raises(ModelFileError, match="memory_limit"):
        load(path, memory=Bytes((100 << 20) + need - 1))


@pytest.mark.parametrize(("kept", "known"), [(llamacpp.PROMPT_CACHE, True), (0, False)])
def test_a_prompt_is_known_again_after_others_had_the_slot(path: Path, kept: int, known: bool) -> None:
    made = load(path, slots=1, settings={"prompt_cache": str(kept)})
    first, other = "Once upon a time there was a girl. " * 3, "The red dog ran over the far hills. " * 3
    for prompt in (first, other):
        ask(made, COMPLETE, prompt=prompt, max_tokens=2, temperature=0)
    reused = ask(made, COMPLETE, prompt=first, max_tokens=2, temperature=0)["timings"]["cache_n"]
    made.close()
    assert (reused > 20) is known


@pytest.mark.parametrize("slots", [1, 4])
def test_the_sum_is_what_is_measured(folder: Path, slots: int) -> None:
    """Within a fifth; of 20 MiB and more, as the allocator's own share of less says nothing."""
    wide = tinygguf.llama(folder / "wide.gguf", width=256, layers=4, heads=4, shared=4, wide=700, context=2048)
    code = f"""
import json, psutil
from pathlib import Path
from nearfar.runtimes.llamacpp import LlamaCppRuntime
from nearfar.runtimes.text import TextOptions
from nearfar.types.wire import Operation, TextContext
import xllamacpp
rss = lambda: psutil.Process().memory_info().rss
before = rss()
loaded = LlamaCppRuntime().load_text(Path({str(wide)!r}), TextOptions("m", context=2048, slots={slots},
                                                                      settings={{"prompt_cache": "0"}}))
body = json.dumps({{"prompt": "x" * 1500, "max_tokens": 2}}).encode()
loaded.run(Operation.COMPLETE, body, lambda piece: False, TextContext())
print(rss() - before)
import os; os.stdout = None
os._exit(0) if print(end="", flush=True) is None else None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    measured = int(done.stdout)
    need = gguf.need(gguf.read(wide), 2048, slots, wide.stat().st_size).total
    assert need > 20 << 20
    assert 0.8 * need < measured < 1.2 * need


def test_the_context_that_a_file_claims_is_not_believed_beyond_the_setting(path: Path, tmp_path: Path) -> None:
    huge = tinygguf.llama(tmp_path / "huge.gguf", context=1 << 24)
    made = load(huge, context=512)
    assert made.context == 512
    made.close()
    none = tinygguf.llama(tmp_path / "none.gguf", context=0)
    made = load(none, context=512)
    assert made.context == 512, "0 would mean all that the model was trained for"
    made.close()


# -- the process ------------------------------------------------------------------------------------------------------


def test_signals_stay_whose_they_were(path: Path) -> None:
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        made = load(path)
        signal.raise_signal(signal.SIGTERM)
        assert heard.is_set()
        assert ask(made, COMPLETE, prompt="x", max_tokens=1)["choices"], "and the engine goes on"
        made.close()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_its_port_is_closed_to_who_has_no_key(loaded: LoadedText) -> None:
    address = loaded._server.listening_address  # type: ignore[attr-defined]
    assert address.startswith("http://127.0.0.1:")
    for place in ("/slots", "/props", "/lora-adapters", "/metrics"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(address + place, timeout=10)
        assert caught.value.code == 401
        caught.value.close()


def test_it_opens_and_closes_again_and_again(path: Path) -> None:
    for _ in range(10):
        load(path, slots=1).close()


def test_threads_are_told_to_sleep_before_the_import(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from nearfar.runtimes.llamacpp import LlamaCppRuntime;"
        "from nearfar.runtimes.text import TextOptions; assert 'xllamacpp' not in sys.modules;"
        f"LlamaCppRuntime().load_text(Path({str(path)!r}), TextOptions('m', slots=1));"
        "print(os.environ['OMP_WAIT_POLICY'], flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "PASSIVE"


# -- a real model -----------------------------------------------------------------------------------------------------


def test_it_says_what_the_reference_says() -> None:
    file = need_data("slm", "stories260K.gguf")
    made = load(file)
    try:
        said = text(made, prompt="Once upon a time", max_tokens=12)
        assert said.startswith(", there was a little girl named Lily.")
    finally:
        made.close()
