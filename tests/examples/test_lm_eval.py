"""The script for lm-evaluation-harness, as far as it goes without it: the harness is not a dependency."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nearfar.runtimes.llamacpp import LlamaCppRuntime
from tests.fleetlab import Lab
from tests.tinygguf import tiny

SCRIPT = Path(__file__).parents[2] / "examples" / "lm_eval_small.py"
MISSING = importlib.util.find_spec("lm_eval") is None


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.skipif(not MISSING, reason="lm_eval is installed here")
def test_without_the_harness_it_says_what_to_type() -> None:
    done = run("--model", "any")
    assert done.returncode == 3 and "pip install 'lm-eval[api]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(MISSING, reason="lm_eval is not installed: pip install 'lm-eval[api]'")
def test_with_it_every_question_is_scored(tmp_path: Path) -> None:
    if why := LlamaCppRuntime().available():
        pytest.skip(why)
    with Lab(tmp_path) as lab:
        node = lab.node("scored", [tiny(tmp_path)])
        done = run("--model", "tiny", "--base-url", f"{node.url}/v1")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["questions"] == 8 and 0 <= told["acc"] <= 1
