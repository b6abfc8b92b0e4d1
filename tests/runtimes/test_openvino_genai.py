"""What OpenVINO GenAI does beyond the contract of every engine of language: its files, its memory, and its traps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import DeadlineExceeded, InferenceError, InputError, ModelFileError, RuntimeUnavailable
from nearfar.limits import Memory
from nearfar.node.talktest import TextQuestion
from nearfar.runtimes import engine, genaicall, irfolder, llamacpp
from nearfar.runtimes.openvino_genai import OpenVinoGenAiRuntime
from nearfar.runtimes.text import LoadedText, TextOptions
from nearfar.types.units import Bytes
from nearfar.types.wire import TextContext
from tests.contract.test_text import CHAT, COMPLETE, Heard, ask, chunks, said, user
from tests.runtimes import tinygguf, tinyir
from tests.waiting import until_now

engine.prepare_environment()  # or the import reports to its maker
genai = pytest.importorskip("openvino_genai", reason="type: pip install 'nearfar[openvino-genai]'")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinyir.gguf_file(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinyir.folder(tmp_path_factory.mktemp("genai") / "ir")


def load(path: Path, slots: int = 2, **more: Any) -> LoadedText:
    return OpenVinoGenAiRuntime().load_text(path, TextOptions("tiny", slots=slots, **more))


@pytest.fixture(scope="module")
def loaded(path: Path) -> Iterator[LoadedText]:
    made = load(path)
    yield made
    made.close()


def text(loaded: LoadedText, **body: Any) -> str:
    fields = {"prompt": "Once upon", "max_tokens": 24, "temperature": 0, **body}
    return str(ask(loaded, COMPLETE, **fields)["choices"][0]["text"])


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"tokenizer.ggml.add_bos_token": True}, {"tokenizer.ggml.pre": "llama-bpe"}])
@pytest.mark.parametrize("shape", [{}, {"width": 128, "layers": 2, "seed": 4}])
def test_it_says_what_llama_cpp_says_of_the_same_file(
    tmp_path: Path, shape: dict[str, Any], more: dict[str, Any]
) -> None:
    pytest.importorskip("xllamacpp")
    file = tinyir.gguf_file(tmp_path / "m.gguf", **shape, more=more)
    told = []
    for runtime in (OpenVinoGenAiRuntime(), llamacpp.LlamaCppRuntime()):
        made = runtime.load_text(file, TextOptions("tiny", slots=1))
        answer = ask(made, COMPLETE, prompt="the hello 5 é", max_tokens=20, temperature=0)
        told.append((answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]))
        made.close()
    assert told[0] == told[1]


def test_a_folder_and_its_packed_file_say_the_same(folder: Path, tmp_path: Path, loaded: LoadedText) -> None:
    irfolder.pack(folder, tmp_path / "packed")
    for place in (folder, tmp_path / "packed"):
        made = load(place)
        assert text(made) == text(loaded)
        made.close()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"type": "boolean"}, lambda v: isinstance(v, bool)),
        ({"const": 'a"b\n\\'}, lambda v: v == 'a"b\n\\'),
        ({"enum": [1, "ü", None]}, lambda v: v in (1, "ü", None)),
        ({"type": "integer"}, lambda v: isinstance(v, int)),
        ({"type": "string", "minLength": 2, "maxLength": 4}, lambda v: 2 <= len(v) <= 4),
        ({"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 3}, lambda v: 2 <= len(v) <= 3),
        ({"type": "object", "additionalProperties": False}, lambda v: v == {}),
        ({"properties": {"a": {"const": 1}, "b": {"const": 2}}}, lambda v: set(v) <= {"a", "b"}),
        ({"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]}, lambda v: "b" in v),
        ({"type": ["string", "null"], "maxLength": 3}, lambda v: v is None or len(v) <= 3),
        ({"anyOf": [{"const": 1}, {"const": 2}]}, lambda v: v in (1, 2)),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"v": {"type": "null"}}}}}, lambda v: set(v) <= {"v"}),
    ],
)
def test_what_it_writes_by_a_schema_fits_it(loaded: LoadedText, schema: Any, fits: Any, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = ask(loaded, CHAT, messages=user("x"), response_format=form, max_tokens=400, temperature=1, seed=seed)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert fits(json.loads(choice["message"]["content"]))


def test_a_stream_ends_before_a_stop_text_too(loaded: LoadedText) -> None:
    whole = text(loaded, max_tokens=40)
    stop = whole[20:23]
    pieces = chunks(loaded, COMPLETE, prompt="Once upon", max_tokens=40, temperature=0, stop=stop)
    assert said(pieces) == whole[: whole.index(stop)]
    assert [c["finish_reason"] for p in pieces for c in p["choices"] if c["finish_reason"]] == ["stop"]


def test_tokens_are_taken_and_those_of_another_vocabulary_refused(loaded: LoadedText) -> None:
    told = ask(loaded, COMPLETE, prompt="abc", max_tokens=1, temperature=0, logprobs=1)
    (token,) = told["choices"][0]["logprobs"]["content"]
    assert text(loaded, prompt=[3 + byte for byte in b"abc"], max_tokens=1) == token["token"]
    for prompt in ([5000], [-1], [1.5], ["a", "b"], [True]):
        with pytest.raises(InputError):
            text(loaded, prompt=prompt)


def test_a_model_without_a_template_is_asked_for_completions(tmp_path: Path) -> None:
    made = load(tinyir.gguf_file(tmp_path / "m.gguf", template=""))
    with pytest.raises(InputError, match="no template") as caught:
        ask(made, CHAT, messages=user("Hi"))
    assert "/v1/completions" in caught.value.hint
    assert text(made)
    made.close()


def test_a_template_that_fails_quotes_nobody(tmp_path: Path) -> None:
    made = load(tinyir.gguf_file(tmp_path / "m.gguf", template="{{ raise_exception(messages[0]['content']) }}"))
    with pytest.raises(InputError) as caught:
        ask(made, CHAT, messages=user("my secret"))
    assert "secret" not in str(caught.value)
    made.close()


def test_the_self_test_holds_and_notices_another_model(loaded: LoadedText, tmp_path: Path) -> None:
    question = TextQuestion(loaded, False, "tiny")
    assert question.ask() == ""
    other = load(tinyir.gguf_file(tmp_path / "m.gguf", seed=9))
    question._loaded = other
    assert "is" in question.ask()
    other.close()


# -- many at once -----------------------------------------------------------------------------------------------------


def test_a_call_that_came_when_the_engine_had_just_ended_is_answered(loaded: LoadedText) -> None:
    """Otherwise it would wait for ever: nobody works on it."""
    right, pump = text(loaded), loaded._pump  # type: ignore[attr-defined]
    found: list[str] = []
    while pump._working:  # until the engine has come to rest
        time.sleep(0.001)
    with pump._changed:
        pump._working = True  # as it is between the engine's last look and its return
    late = threading.Thread(target=lambda: found.append(text(loaded)))
    late.start()
    while not pump._pipe.has_non_finished_requests():
        time.sleep(0.001)
    assert not found
    with pump._changed:  # and now it returns
        pump._working = False
        pump._recover()
        pump._changed.notify()
    late.join(30)
    assert found == [right]


def test_an_engine_that_fails_ends_what_was_under_way_and_goes_on(loaded: LoadedText) -> None:
    right, pump = text(loaded), loaded._pump  # type: ignore[attr-defined]
    bad = loaded._configured(  # type: ignore[attr-defined]
        genaicall.read(COMPLETE, b'{"prompt": "x"}', 1, 1), "root ::= (((", 2, 1
    )
    begun, errors = threading.Event(), []

    def take(piece: bytes) -> bool:
        begun.set()
        return False

    def talk() -> None:
        try:
            body = {"prompt": "Go on", "max_tokens": 480, "temperature": 0, "stream": True}
            loaded.run(COMPLETE, json.dumps(body).encode(), take, TextContext(streamed=True))
        except InferenceError as error:
            errors.append(error)

    other = threading.Thread(target=talk)
    other.start()
    assert begun.wait(20)
    job = pump.add(loaded._tensor([70, 80]), bad)  # type: ignore[attr-defined]
    other.join(30)
    pump.leave(job)
    assert not other.is_alive()
    assert len(errors) <= 1, "it failed, or was done before"
    with pytest.raises(InferenceError, match="OpenVINO GenAI failed"):
        while not job.read():
            pass
    assert text(loaded) == right


def test_many_short_calls_get_their_own_answers(loaded: LoadedText) -> None:
    """The engine comes to rest between them, and begins again: the moments at which calls are lost or end it."""
    right = {number: text(loaded, prompt=f"Number {number}", max_tokens=2) for number in range(4)}
    wrong: list[Any] = []

    def talk(own: int) -> None:
        for turn in range(60):
            number = (own + turn) % 4
            try:
                if (got := text(loaded, prompt=f"Number {number}", max_tokens=2)) != right[number]:
                    wrong.append((number, got))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=talk, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 million parameters: slow enough to be stopped, large enough to be weighed."""
    file = tmp_path_factory.mktemp("wide") / "wide.gguf"
    return tinyir.gguf_file(file, width=512, layers=10, heads=8, context=4096)


def test_while_it_reads_a_long_prompt_python_goes_on_and_it_can_be_stopped(wide: Path) -> None:
    made = load(wide, slots=1)
    heard = threading.Event()
    pieces: list[bytes] = []

    def gone(piece: bytes) -> bool:
        pieces.append(piece)
        heard.set()
        return True

    body = json.dumps({"prompt": "x" * 4000, "max_tokens": 5, "stream": True}).encode()
    made.run(COMPLETE, body, gone, TextContext(streamed=True))
    assert pieces == [b""], "asked before the first token, and never again"
    made.run(COMPLETE, json.dumps({"prompt": "x", "max_tokens": 4000}).encode(), Heard(0), TextContext())
    pump = made._pump  # type: ignore[attr-defined]
    until_now(lambda: not pump._working, "the engine rests, and does not write on for nobody")
    assert ask(made, COMPLETE, prompt="x", max_tokens=1)["choices"], "the slot is free"
    made.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinities on this system")
def test_its_threads_may_run_on_every_core(wide: Path) -> None:
    """Bound to the first one, the services of a node would wait for each other."""
    if len(mine := os.sched_getaffinity(0)) < 2:
        pytest.skip("there is only one core")
    code = f"""
import json, os
from pathlib import Path
from nearfar.runtimes.openvino_genai import OpenVinoGenAiRuntime
from nearfar.runtimes.text import TextOptions
from nearfar.types.wire import Operation, TextContext
loaded = OpenVinoGenAiRuntime().load_text(Path({str(wide)!r}), TextOptions("m", slots=1))
seen = []
def look(piece):
    for thread in os.listdir("/proc/self/task"):
        try:
            seen.append(len(os.sched_getaffinity(int(thread))))
        except OSError:
            pass  # it ended meanwhile
    return False
body = json.dumps({{"prompt": "x" * 600, "max_tokens": 5, "stream": True}}).encode()
loaded.run(Operation.COMPLETE, body, look, TextContext(streamed=True))
print(len(seen), min(seen), flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, fewest = map(int, done.stdout.split())
    assert count > 1
    assert fewest == len(mine)


def test_the_deadline_of_a_whole_answer_stops_it(wide: Path) -> None:
    made = load(wide, slots=1)
    with pytest.raises(DeadlineExceeded):
        body = json.dumps({"prompt": "x" * 1000, "max_tokens": 2000}).encode()
        made.run(COMPLETE, body, Heard(), TextContext(), budget_ms=50)
    made.close()


# -- what it loads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: tinygguf.llama(file), "merged bytes"),
        (lambda file: tinyir.gguf_file(file, kind="f32"), "f32"),
    ],
)
def test_a_gguf_that_the_engine_cannot_read_says_why(tmp_path: Path, make: Any, says: str) -> None:
    file = make(tmp_path / "m.gguf")
    for act in (OpenVinoGenAiRuntime().facts, load):
        with pytest.raises(ModelFileError, match=says) as caught:
            act(file)
        assert caught.value.hint


def test_what_it_has_not_is_refused_when_it_loads(path: Path) -> None:
    for setting in ("draft", "loras"):
        with pytest.raises(ModelFileError, match=r"\[language\]"):
            load(path, settings={setting: "x=/nowhere.gguf"})
    with pytest.raises(ModelFileError, match="vectors"):
        load(path, embedding=True)
    with pytest.raises(RuntimeUnavailable, match="npu"):
        load(path, unit="npu")


def test_weights_that_are_not_what_the_head_says_are_refused_in_plain_words(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "bad"
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    (place / irfolder.WEIGHTS).write_bytes(b"\0" * 100)
    with pytest.raises(ModelFileError) as caught:
        load(place)
    assert "weights" in caught.value.message
    assert not re.search(r"jenkins|\.cpp|Check '", caught.value.message)
    assert "llama" not in caught.value.hint, "which reads no such folder"


def test_a_prompt_is_not_cut_where_the_tokenizer_would(tmp_path: Path) -> None:
    """Its tokenizers of GGUF files keep the last 8,192 tokens of a text, without a word."""
    made = load(tinyir.gguf_file(tmp_path / "m.gguf", context=16384), slots=1, context=16384)
    assert made.context == 8192
    with pytest.raises(InputError, match="8192"):
        text(made, prompt="y" * 9000, max_tokens=1)
    made.close()


def test_nothing_is_left_in_the_temporary_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    irfolder.pack(folder, tmp_path / "packed")
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    made = load(tmp_path / "packed")
    assert list(place.iterdir()) == []
    assert text(made), "it needs the files no more"
    made.close()


# -- memory -----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_sum(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "free_memory", lambda: Memory(1 << 20, "a test"))
    with pytest.raises(ModelFileError) as caught:
        load(path)
    told = str(caught.value)
    assert "of weights +" in told
    assert "of keys and values +" in told
    assert "1.0 MiB (a test)" in told
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="memory_limit"):
        load(path, memory=Bytes(1 << 20))


@pytest.mark.parametrize("slots", [1, 4])
def test_the_sum_is_what_is_measured(wide: Path, slots: int) -> None:
    """Never less than what it takes, and not twice as much."""
    code = f"""
import json, os, psutil
from pathlib import Path
from nearfar.runtimes.openvino_genai import OpenVinoGenAiRuntime, _form, _need
from nearfar.runtimes.text import TextOptions
from nearfar.types.wire import Operation, TextContext
rss = lambda: psutil.Process().memory_info().rss
before = rss()
loaded = OpenVinoGenAiRuntime().load_text(
    Path({str(wide)!r}), TextOptions("m", context=2048, slots={slots}, settings={{"prompt_cache": "0"}})
)
body = json.dumps({{"prompt": "x" * 1500, "max_tokens": 2}}).encode()
loaded.run(Operation.COMPLETE, body, lambda piece: False, TextContext())
print(rss() - before, _need(_form(Path({str(wide)!r})), 2048, {slots}, 0).total, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    measured, need = map(int, done.stdout.split())
    assert need > 100 << 20
    assert 0.5 * need < measured < need


def test_it_reports_to_nobody(path: Path, tmp_path: Path) -> None:
    """As `import openvino`, which it begins with."""
    code = (
        "import sys, pathlib; from nearfar.runtimes.registry import runtime;"
        "from nearfar.runtimes.text import TextOptions;"
        "runtime('openvino-genai').load_text(pathlib.Path(sys.argv[1]), TextOptions('m')).close()"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    env |= {"HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code, str(path)], env=env, check=False)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    assert run.returncode == 0


def test_it_opens_and_closes_again_and_again(path: Path) -> None:
    for _ in range(5):
        made = load(path)
        assert text(made, max_tokens=1)
        made.close()
        made.close()
