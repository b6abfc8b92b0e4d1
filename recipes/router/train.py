"""Trains the weights that nearfar ships, on permissively licensed rows only.

RouteLLM (Apache-2.0): MMLU, GSM8K, MT-Bench with the answers of Mixtral-8x7B and GPT-4. LLMRouter (MIT): nine models.
Run: python -m recipes.router.train [--out FILE]; needs the real data (NEARFAR_TEST_DATA).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.routing_data import folder, items
from nearfar.language.routers.ngram import SHIPPED
from nearfar.language.routers.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped router.")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    given = parser.parse_args()
    trained = train([item.row for item in items(folder())], folds=5, seed=0)
    data = trained.weights.export()
    given.out.write_bytes(data)
    print(f"{given.out}: {len(data)} bytes, {trained.rows} rows, calibration error across folds {trained.error:.4f}")


if __name__ == "__main__":
    main()
