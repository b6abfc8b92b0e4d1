"""A folder that OpenVINO wrote, from the command line to an answer over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar.cli.models import add_model
from nearfar.errors import InputError, ModelFileError, RuntimeUnavailable
from nearfar.models.manifest import Task
from nearfar.models.store import Store
from nearfar.runtimes import irfolder
from nearfar.runtimes.openvino_genai import OpenVinoGenAiRuntime
from tests.fleetlab import Lab, poll, text_model
from tests.runtimes import tinyir
from tests.runtimes.test_irfolder import folder as folder

ABSENT = OpenVinoGenAiRuntime().available()


def need_engine() -> None:
    if ABSENT:
        pytest.skip(ABSENT)


@pytest.mark.skipif(not ABSENT, reason="the engine is installed here")
def test_without_the_engine_it_says_what_to_install(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        add_model(Store(tmp_path / "store"), folder)
    assert "pip install 'nearfar[openvino-genai]'" in caught.value.hint


def test_a_folder_that_is_not_whole_is_refused_before_anything_is_packed(folder: Path, tmp_path: Path) -> None:
    (folder / irfolder.CONFIG).unlink()
    with pytest.raises(ModelFileError, match=irfolder.CONFIG):
        add_model(Store(tmp_path / "store"), folder)


def test_another_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises((ModelFileError, InputError), match="folder"):
        add_model(Store(tmp_path / "store"), tmp_path)


def test_a_folder_becomes_a_model_of_the_store(tmp_path: Path) -> None:
    need_engine()
    place = tinyir.folder(tmp_path / "Tiny-1M-int4-ov")
    store = Store(tmp_path / "store")
    manifest = add_model(store, place)
    (variant,) = manifest.variants
    assert (manifest.name, manifest.task) == ("tiny-1m", Task.CHAT)
    assert (variant.id, variant.format, variant.precision) == ("openvino-text-f16", "openvino-text", "fp16")
    assert manifest.provenance["context"] == 512
    assert store.verify("tiny-1m") == {}
    assert add_model(store, place) == manifest, "the same folder again changes nothing"


def test_a_node_serves_it_over_http_and_a_reader_who_leaves_frees_the_slot(tmp_path: Path) -> None:
    need_engine()
    # Slow enough that an answer is under way when its reader leaves.
    file = tinyir.packed(tmp_path, width=256, layers=8, heads=4, context=8192)
    env = {"NEARFAR_LANGUAGE_CONTEXT": "8192", "NEARFAR_LANGUAGE_SLOTS": "1"}
    with Lab(tmp_path) as lab:
        node = lab.node("a", [text_model(file, "tiny", "openvino-text")], env=env)
        ask = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
        with node.http() as http:
            told = http.post("/v1/chat/completions", json={**ask, "max_tokens": 5}).json()
            assert told["usage"]["completion_tokens"] == 5
            assert told["id"].startswith("genai-")
            refused = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "echo": True})
            assert refused.status_code == 400
            assert "openvino-genai" in refused.json()["error"]["message"]
            long = {**ask, "max_tokens": 8000, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=long) as answer:
                lines = answer.iter_lines()  # kept: when it is gone, so is the reader
                assert next(lines)
                poll(lambda: (node.service_json("tiny") or {})["in_flight"] == 1, "it is under way")
            poll(lambda: (node.service_json("tiny") or {})["in_flight"] == 0, "the slot is free")
            again = http.post("/v1/chat/completions", json={**ask, "max_tokens": 5}).json()
            assert again["choices"] == told["choices"]
