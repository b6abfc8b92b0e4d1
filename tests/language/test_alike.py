"""The semantic cache in a gateway: off unless switched on, with its bound told, and apart by key and privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from nearfar.client.client import Client
from nearfar.errors import SettingsError
from nearfar.language.director import Director
from nearfar.settings_language import RoutingSettings
from nearfar.settings_privacy import CacheSettings
from tests.fleetlab import Lab, talking
from tests.fleetlab import lab as lab

WORDS = "what is the capital of the old country in the north beyond the river and the hills"


def asked(http: httpx.Client, text: str, **more: Any) -> dict[str, Any]:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 64,
        **more,
    }
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.rstrip().endswith("[DONE]")
        return {"text": answer.text}
    told: dict[str, Any] = answer.json()["nearfar"]
    return told


def node(lab: Lab, folder: Path, **env: str) -> Any:
    near = talking(folder, "tiny", says=[{"when": "", "text": "It is Oslo."}])
    models = [near, talking(folder, "vectors", embedding=True)]
    return lab.node("a", models, env=env)


def test_nearly_the_same_question_gets_the_answer_with_its_similarity(lab: Lab, tmp_path: Path) -> None:
    on = {"NEARFAR_CACHE_SEMANTIC": "true", "NEARFAR_CACHE_SIMILARITY": "0.9", "NEARFAR_ROUTING_EMBEDDING": "vectors"}
    with node(lab, tmp_path, **on).http() as http:
        assert asked(http, WORDS)["where"] == "near"
        again = asked(http, f"please {WORDS}")
        assert again["where"] == "cache" and any(
            "similarity 0.9" in why and "at least 0.9" in why for why in again["why"]
        )
        assert "similarity 0.9" in asked(http, f"please {WORDS}", stream=True)["text"]
        assert asked(http, "how many eggs are in the fridge")["where"] == "near"
        assert asked(http, f"please {WORDS}", nearfar={"privacy": "local"})["where"] == "near", "another level"
        assert asked(http, f"please {WORDS}", temperature=0.7)["where"] == "near", "it is to be sampled anew"
        assert asked(http, f"please {WORDS}", nearfar={"cache": False})["where"] == "near"


def test_it_is_off_by_default_and_needs_an_embedding_model(lab: Lab, tmp_path: Path) -> None:
    with node(lab, tmp_path, NEARFAR_ROUTING_EMBEDDING="vectors").http() as http:
        assert [asked(http, text)["where"] for text in (WORDS, f"please {WORDS}")] == ["near", "near"]
    client: Any = object.__new__(Client)
    with pytest.raises(SettingsError, match=r"\[routing\] embedding"):
        Director(client, RoutingSettings(), CacheSettings(semantic=True))
