"""Train the judge that comes with the package on GSM8K responses, and write it with where it came from.

Run: python -m recipes.judge.train [--out FILE]     (needs the real data: NEARFAR_TEST_DATA)
The same data, seed and numpy give the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

from benchmarks.routing_cascade import FILE, PROVENANCE, read
from nearfar.language.judge.train import train

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "src" / "nearfar" / "language" / "judge" / "default.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the default judge.")
    parser.add_argument("--out", type=Path, default=TARGET)
    given = parser.parse_args()
    stated = os.environ.get("NEARFAR_TEST_DATA")
    folder = (Path(stated) if stated else ROOT.parent / "shared" / "data") / "routing"
    if not (folder / FILE).is_file():
        sys.exit("recipes/judge/train.py needs the real data: set NEARFAR_TEST_DATA to its folder")
    rows = read(folder).rows  # without those that the published protocol leaves out of scoring
    digest = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    judge = train(rows, f"{PROVENANCE}; {len(rows)} rows of the file with sha256 {digest}")
    given.out.write_bytes(judge.export())
    print(f"{given.out}: {len(judge.export())} bytes, {judge.rows} rows")
    for name, weight, absent in sorted(zip(judge.names, judge.weight, judge.absent, strict=True), key=lambda r: r[1]):
        print(f"  {name:20} {weight:+.3f}  absent {absent:+.3f}")


if __name__ == "__main__":
    main()
