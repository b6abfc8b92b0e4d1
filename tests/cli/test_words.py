"""What every verb says when it is asked wrongly: a sentence, what to type, the documented exit code, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar import __version__
from tests.cli.commands import nearfar

VERBS = ["up", "nodes", "services", "models", "run", "watch", "streams", "explain", "devices"]
SUBVERBS = ["add", "pull", "show", "remove"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.parametrize("words", [[], *([v] for v in VERBS), *(["models", s] for s in SUBVERBS)], ids=" ".join)
def test_help_is_there_and_fits_the_terminal(home: Path, words: list[str]) -> None:
    said = nearfar(*words, "--help", home=home)
    assert said.code == 0 and "Usage:" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert not home.exists(), "help writes nothing"


def test_the_version_is_told(home: Path) -> None:
    said = nearfar("--version", home=home)
    assert (said.code, said.out) == (0, f"nearfar {__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["nodes", "--fly"],
        ["run"],
        ["run", "yard"],
        ["watch"],
        ["explain"],
        ["up", "--port", "many"],
        ["models", "fly"],
    ],
    ids=" ".join,
)
def test_words_that_are_none_are_an_error_of_use(home: Path, words: list[str]) -> None:
    said = nearfar(*words, home=home)
    assert said.code == 2 and "Usage:" in said.err
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["run", "yard", "nothing.jpg"], 2, "nothing.jpg cannot be read"),
        (["run", "yard", "."], 2, "cannot be read"),
        (["run", "yard", "x.jpg", "--deadline", "soon"], 2, "'soon' is not a duration"),
        (["run", "yard", "x.jpg", "--privacy", "secret"], 2, "--privacy"),
        (["watch", "nothing.mp4"], 5, "nothing.mp4"),
        (["watch", "x.jpg", "--display", "hologram"], 2, "--display"),
        (["watch", "x.jpg", "--deadline", "-3"], 2, "is not a duration"),
        (["explain", "nothing-like-it"], 2, "No stream 'nothing-like-it' runs"),
        (["explain", "../x"], 2, "No stream '../x' runs"),
        (["watch", "x.jpg", "--degrade", "rate"], 2, "Add --deadline"),
        (["watch", "x.jpg", "--percentile", "99"], 2, "Add --deadline"),
        (["watch", "x.jpg", "--deadline", "1s", "--percentile", "20"], 2, "from 50 to 99.9"),
        (["watch", "x.jpg", "--deadline", "1s", "--degrade", "rate,speed"], 2, "'speed' cannot be given up"),
        (["watch", "x.jpg", "--deadline", "1s", "--degrade", "rate,rate"], 2, "twice"),
        (["watch", "x.jpg", "--max-cost", "-1"], 2, "--max-cost"),
        (["models", "show", "yrad"], 3, "did you mean 'yard'"),
        (["models", "remove", "yard"], 3, "embedded"),
        (["models", "remove", "nothing-like-it"], 3, "There is no model"),
        (["models", "add", "nothing.onnx"], 3, "nothing.onnx"),
        (["models", "add", "x.jpg"], 3, "x.jpg"),
        (["models", "pull", "nonsense"], 3, "hf:"),
        (["up", "--model", "yrad", "--port", "0"], 3, "did you mean 'yard'"),
        (["up", "--name", "Not A Name", "--port", "0"], 2, "node.id"),
        (["up", "--port", "99999"], 2, "gateway.port"),
        (["up", "--listen", "tcp/0.0.0.0:0", "--port", "0"], 2, "insecure"),
        (["up", "--host", "0.0.0.0", "--port", "0"], 2, "key"),
        (["up", "--listen", "nonsense", "--insecure", "--port", "0"], 6, "--listen"),
        (["up", "--listen", "tcp/no.such.host.invalid:0", "--insecure", "--port", "0"], 6, "--listen"),
        (["up", "--listen", "tcp/127.0.0.1:many", "--port", "0"], 6, "--listen"),
        (["up", "--host", "no.such.host.invalid", "--port", "0"], 2, "key"),
        (["nodes", "--join", "nonsense"], 6, "--join"),
        (["nodes", "--config", "nothing.toml"], 2, "nothing.toml"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_with_what_to_type(home: Path, words: list[str], code: int, told: str) -> None:
    (home.parent / "x.jpg").write_bytes(b"not an image")
    said = nearfar(*words, home=home)
    assert said.code == code, said.err
    assert said.err.startswith("nearfar: ") and told in said.sentence
    assert said.err.rstrip().endswith((".", "?")), "it ends with what to do"
    assert not said.out


def test_errors_are_json_when_json_is_asked_for(home: Path) -> None:
    said = nearfar("run", "yard", "nothing.jpg", "--json", home=home)
    assert said.code == 2
    assert said.json["error"]["code"] == "invalid-input" and "nothing.jpg" in said.json["error"]["message"]
    assert said.json["error"]["hint"] and said.json["error"]["refusals"] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gateway]\nprot = 1\n", ["gateway.prot", "gateway.port"]),
        ("[gateway]\nport = 'many'\n", ["gateway.port", "many", "65535"]),
        ("[gatweay]\nport = 1\n", ["[gatweay]", "[gateway]"]),
        ("gateway = \n", ["cannot be read"]),
        ("[node]\nmodels = 3\n", ["node.models", "a list of strings"]),
    ],
)
@pytest.mark.parametrize("verb", ["nodes", "up"])
def test_a_wrong_settings_file_is_named_with_its_key(home: Path, text: str, told: list[str], verb: str) -> None:
    (home.parent / "nearfar.toml").write_text(text)
    said = nearfar(verb, home=home)
    assert said.code == 2
    assert "nearfar.toml" in said.sentence and all(word in said.sentence for word in told), said.err


def test_a_wrong_variable_is_named(home: Path) -> None:
    said = nearfar("nodes", home=home, env={"NEARFAR_GATEWAY_PROT": "1"})
    assert said.code == 2 and "NEARFAR_GATEWAY_PROT" in said.sentence and "NEARFAR_GATEWAY_PORT" in said.sentence


def test_without_any_node_the_lists_are_empty_and_say_so(home: Path) -> None:
    said = nearfar("nodes", home=home)
    assert said.code == 0 and "No node was found" in said.out and "nearfar up" in said.out
    assert nearfar("services", "--json", home=home).json == []
    models = nearfar("models", "--json", home=home)
    assert models.code == 0 and [row["model"] for row in models.json] == ["yard"]


@pytest.mark.parametrize("verb", ["run", "watch"])
def test_without_any_node_asking_is_refused_with_what_to_start(home: Path, verb: str) -> None:
    import cv2
    import numpy as np

    image = home.parent / "image.png"
    cv2.imwrite(str(image), np.zeros((20, 20, 3), np.uint8))
    said = nearfar(*(["run", "yard", image] if verb == "run" else ["watch", image]), home=home)
    assert said.code == 7, said.err
    assert "No node of the fleet can be seen" in said.sentence and "nearfar up" in said.sentence


def test_the_reader_of_the_output_may_leave(home: Path) -> None:
    import subprocess

    from tests.cli.commands import start

    process = start("models", "show", "yard", home=home)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    try:
        _, err = process.communicate(timeout=60)
    except (subprocess.TimeoutExpired, ValueError):
        err = process.stderr.read()
        process.wait(60)
    assert "Traceback" not in err and "Exception ignored" not in err
