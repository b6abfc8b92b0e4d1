"""How long `import nearfar` and `nearfar --help` take, each in a fresh process.

What is measured: wall-clock time from starting an interpreter until it has ended, for
- `pass`: `python -c pass`, the limit: nothing that runs on Python can be faster;
- `import`: `python -c "import nearfar"`;
- `help`: `nearfar --help`, the console script beside this interpreter, its output thrown away.
Output to a pipe, no bytecode to write after the warm-up. Warm-up: 3 runs of each, which also compile what is new.
Repetitions: `--runs` (31) of each, the three in turn within each round, so that a noisy neighbour hurts all alike;
medians are stated, and the median of the differences to `pass` of the same round.
Paired limit in the same run: `pass`. Aims: `import` under 0.15 s, `help` under 0.4 s.
Run: python -m benchmarks.startup [--runs N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

WARM_UP = 3
AIMS = {"import": 0.15, "help": 0.4}


def commands() -> dict[str, list[str]]:
    """What is started, by name."""
    script = Path(sys.executable).with_name("nearfar")
    if not script.exists():
        raise SystemExit(f"{script} is absent. Install the package first: make test, or pip install -e .")
    return {
        "pass": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import nearfar"],
        "help": [str(script), "--help"],
    }


def seconds(command: list[str]) -> float:
    """One run. Raises `CalledProcessError` when it fails: a failure is not a fast start."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up times of nearfar.")
    parser.add_argument("--runs", type=int, default=31)
    runs = max(1, parser.parse_args().runs)
    known = commands()
    times: dict[str, list[float]] = {name: [] for name in known}
    for number in range(WARM_UP + runs):
        for name, command in known.items():
            taken = seconds(command)
            if number >= WARM_UP:
                times[name].append(taken)

    result: dict[str, object] = {"benchmark": "startup", "runs": runs}
    print(f"{'':8}{'median s':>10}{'least s':>10}{'above pass s':>14}{'aim s':>8}")
    for name, taken_all in times.items():
        above = statistics.median(t - base for t, base in zip(taken_all, times["pass"], strict=True))
        median, least = statistics.median(taken_all), min(taken_all)
        aim = AIMS.get(name)
        print(f"{name:8}{median:>10.3f}{least:>10.3f}{above:>14.3f}{aim if aim is not None else '':>8}")
        result[name] = {"median_s": round(median, 4), "min_s": round(least, 4), "above_pass_s": round(above, 4)}
        if aim is not None:
            result[f"{name}_aim_s"], result[f"{name}_reached"] = aim, median < aim
    result["machine"] = {"python": platform.python_version(), "arch": platform.machine(), "cpus": os.cpu_count()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
