"""What every verb says when it is asked wrongly: a sentence, what to type, the documented exit code, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nearfar import __version__
from tests.cli.commands import finish, nearfar, start
from tests.runtimes import tiny

VERBS = ["up", "nodes", "services", "models", "run", "watch", "streams", "explain", "devices"]
SUBVERBS = ["add", "pull", "show", "remove", "serve", "unserve"]


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


@pytest.mark.parametrize("words", [["run"], ["fly"], ["models", "add"], ["nodes", "--port", "1"]], ids=" ".join)
def test_errors_of_use_are_json_too(home: Path, words: list[str]) -> None:
    said = nearfar(*words, "--json", home=home)
    assert said.code == 2
    assert said.json["error"]["message"] and said.json["error"]["hint"].endswith("--help'.")


def test_every_verb_below_models_takes_json(home: Path, tmp_path: Path) -> None:
    model = tiny.fake_identity(tmp_path / "x_4.fake")
    added = nearfar("models", "add", model, "--task", "tensors", "--json", home=home)
    assert added.json["name"] == "x-4", added.err
    assert nearfar("models", "show", "x-4", "--json", home=home).json == added.json
    assert nearfar("models", "remove", "x-4", "--json", home=home).json == {"removed": "x-4"}


@pytest.mark.parametrize("words", [["add", "x"], ["pull", "x"], ["show", "yard"], ["remove", "x"]], ids=" ".join)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_the_verbs_below_models_read_the_settings_file_that_is_named(home: Path, words: list[str], place: str) -> None:
    (home.parent / "other.toml").write_text("[gateway]\nprot = 1\n")
    config = ["--config", "other.toml"]
    said = nearfar("models", *(config + words if place == "before" else words + config), home=home)
    assert said.code == 2 and "other.toml" in said.sentence, said.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("words", [["models", "--json"], ["devices"], ["--help"], ["fly", "--json"]], ids=" ".join)
def test_a_full_disk_under_the_output_is_said(home: Path, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(*words, home=home, out=full)
        said = finish(process)
    assert said.code == 1 and "No space left on device" in said.err and said.err.rstrip().endswith("disk.")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_without_an_end_is_refused_and_not_waited_for(home: Path, kind: str) -> None:
    path = home.parent / "endless.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
        said = nearfar("run", "yard", path, home=home)
        assert said.code == 2 and "too much for a picture" in said.sentence
    said = nearfar("models", "add", path, home=home, limit=30.0)
    assert said.code == 3 and "pipe or a device" in said.sentence


def test_of_several_endpoints_the_wrong_one_is_named(home: Path) -> None:
    said = nearfar("nodes", "--join", "tcp/127.0.0.1:9", "--join", "nonsense", home=home)
    assert said.code == 6 and "--join nonsense is no mesh endpoint" in said.sentence


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
    assert models.code == 0 and [row["model"] for row in models.json] == ["facts", "yard"]


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

    process = start("models", "show", "yard", home=home)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    try:
        _, err = process.communicate(timeout=60)
    except (subprocess.TimeoutExpired, ValueError):
        err = process.stderr.read()
        process.wait(60)
    assert "Traceback" not in err and "Exception ignored" not in err
