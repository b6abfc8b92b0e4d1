"""`echo` with log-probabilities: what evaluation harnesses score texts by."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from nearfar.errors import InputError
from nearfar.runtimes.llamacpp import LlamaCppRuntime
from nearfar.runtimes.scoring import LEAST
from nearfar.runtimes.text import LoadedText, TextOptions
from nearfar.types.wire import Operation, TextContext
from tests.tinygguf import write


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedText]:
    engine = LlamaCppRuntime()
    if why := engine.available():
        pytest.skip(why)
    made = engine.load_text(write(tmp_path_factory.mktemp("m") / "tiny.gguf"), TextOptions("tiny", slots=1))
    yield made
    made.close()


def asked(loaded: LoadedText, **body: Any) -> dict[str, Any]:
    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        return False

    loaded.run(Operation.COMPLETE, json.dumps({"temperature": 0, **body}).encode(), take, TextContext())
    told: dict[str, Any] = json.loads(pieces[-1])
    return told


def test_scores_of_its_own_text_are_those_it_had_when_it_wrote_it(loaded: LoadedText) -> None:
    """The independent way: what it told while it chose freely."""
    free = asked(loaded, prompt="abc", max_tokens=12, logprobs=1)["choices"][0]
    written = [token["logprob"] for token in free["logprobs"]["content"]]
    scored = asked(loaded, prompt="abc" + free["text"], max_tokens=0, logprobs=1, echo=True)["choices"][0]["logprobs"]
    assert scored["token_logprobs"][-12:] == pytest.approx(written, abs=2e-2)
    assert "".join(scored["tokens"]) == "abc" + free["text"]
    assert scored["token_logprobs"][0] is None and len(scored["token_logprobs"]) == 1 + 3 + 12  # the first is <s>
    for mine, top in zip(scored["token_logprobs"][-12:], scored["top_logprobs"][-12:], strict=True):
        assert mine == max(top.values()), "it chose the most probable one"


def test_what_it_would_never_write_has_the_least_score_and_no_infinity(loaded: LoadedText) -> None:
    scored = asked(loaded, prompt="abc!", max_tokens=0, logprobs=1, echo=True)["choices"][0]["logprobs"]
    assert scored["token_logprobs"][-1] == LEAST and all(map(math.isfinite, scored["token_logprobs"][1:]))


def test_several_prompts_as_tokens_and_a_token_more(loaded: LoadedText) -> None:
    """As lm-eval's local-completions asks: token ids, one token more, which it cuts off."""
    told = asked(loaded, prompt="ab", max_tokens=0, echo=True)["choices"][0]
    ids = told["prompt_token_ids"]
    assert told["text"] == "ab" and told["logprobs"] is None and len(ids) == 3
    answer = asked(loaded, prompt=[ids, ids[:2]], max_tokens=1, logprobs=1, echo=True)
    one, two = (choice["logprobs"] for choice in answer["choices"])
    assert (len(one["token_logprobs"]), len(two["token_logprobs"])) == (4, 3)
    assert one["token_logprobs"][1] == pytest.approx(two["token_logprobs"][1], abs=2e-2)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert one["text_offset"] == [0, 0, 1, 2]


@pytest.mark.parametrize("wrong", [{"stream": True}, {"n": 2}, {"prompt": {}}, {"prompt": []}])
def test_what_cannot_be_echoed_is_refused(loaded: LoadedText, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        asked(loaded, **{"prompt": "ab", "echo": True, "logprobs": 1, **wrong})
