"""The default router: hashed word and character n-grams and counts, weighed by a ridge regression, then calibrated.

Plain numpy; no embedding model, no key, nothing downloaded. How it was trained: docs/explanation-routing.md.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from nearfar.errors import ModelFileError
from nearfar.language.calibration import Calibration
from nearfar.language.routers.base import Prompt, Router, Score
from nearfar.language.routers.features import KINDS, NAMES, features
from nearfar.language.routers.weights import Weights, load

SHIPPED = Path(__file__).with_name("default.npz")
FEW_WORDS = 6
"""A last message of fewer words ("and why?") is looked at together with what stands before it."""
BEFORE = 1000
"""Characters of what stands before that are looked at then."""
MOST_REASONS = 4
_WEIGHTY = 0.01
"""A contribution below this, in quality from 0 to 1, is not told."""


class Ngram(Router):
    """`path`: a file of weights; empty for the shipped ones. Raises `ModelFileError` for a file that holds none."""

    name = "ngram"

    def __init__(self, path: str | Path = "", weights: Weights | None = None, calibration: Calibration | None = None):
        self.weights = weights or (load(Path(path)) if path else shipped())
        self.calibration = calibration or self.weights.calibration
        """What turns the figure into a probability; exchange it to follow outcomes."""
        width = len(NAMES)
        self._grams = self.weights.grams.astype(np.float32)
        shared = self.weights.columns[:, :width]
        ends = width * (1 + len(KINDS))
        self._counts = [shared + self.weights.columns[:, width * (1 + k) : width * (2 + k)] for k in range(len(KINDS))]
        self._kinds = [self.weights.columns[:, ends + k] + self.weights.bias for k in range(len(KINDS))]

    def score(self, prompt: Prompt) -> Score:
        found = features(looked_at(prompt))
        weighed = self._counts[found.kind] * found.counts
        wording = self._grams[:, found.buckets] @ found.values
        total = weighed.sum(1) + wording + self._kinds[found.kind]
        near = min(max(float(total[1]), 0.0), 1.0)
        far = min(max(float(total[1] + total[0]), 0.0), 1.0)
        probability = self.calibration.probability(-float(total[0]))
        return Score(probability, _told(found.kind, weighed[0].tolist(), float(wording[0])), near, far)

    def raw(self, prompt: Prompt) -> float:
        """What `calibration` makes a probability of: how much better near is expected to be, about -1 to 1."""
        return self.calibration.raw(self.score(prompt).probability)


def looked_at(prompt: Prompt) -> str:
    """The text whose features are taken.

    >>> looked_at(Prompt("And why?", before="What is the capital of Peru?"))
    'What is the capital of Peru?\\nAnd why?'
    """
    if prompt.before and len(prompt.text) < 200 and len(prompt.text.split()) < FEW_WORDS:
        return f"{prompt.before[-BEFORE:]}\n{prompt.text}"
    return prompt.text


@cache
def shipped() -> Weights:
    """The weights that nearfar brings along. Raises `ModelFileError` when the installation lacks them."""
    if not SHIPPED.is_file():
        raise ModelFileError("The router's shipped weights are not there.", "Install nearfar again, or name a file.")
    return load(SHIPPED)


def _told(kind: int, counts: list[float], wording: float) -> tuple[str, ...]:
    """Positive: the far answer is expected to be better by so much."""
    parts = [*zip(NAMES, counts, strict=True), ("its wording", wording)]
    heavy = sorted((p for p in parts if abs(p[1]) >= _WEIGHTY), key=lambda p: -abs(p[1]))[:MOST_REASONS]
    side = ("for near", "for far")
    return (f"it is {KINDS[kind]}", *(f"{name} speaks {side[value > 0]} ({value:+.2f})" for name, value in heavy))
