"""The default router: hashed word and character n-grams and counts, weighed by a ridge regression, then calibrated.

Plain numpy; no embedding model, no key, nothing downloaded. How it was trained: docs/explanation-routing.md.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import ModelFileError
from nearfar.language.calibration import Calibration
from nearfar.language.routers.base import Prompt, Router, Score
from nearfar.language.routers.features import KINDS, NAMES, Features, features
from nearfar.language.routers.weights import Weights, load

Counts = NDArray[np.float32]
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
        self._grams = np.stack((*self.weights.grams, self.weights.rarity), 1).astype(np.float32)
        shared = self.weights.columns[:, :width]
        ends = width * (1 + len(KINDS))
        self._counts = [shared + self.weights.columns[:, width * (1 + k) : width * (2 + k)] for k in range(len(KINDS))]
        self._kinds = [self.weights.columns[:, ends + k] + self.weights.bias for k in range(len(KINDS))]

    def score(self, prompt: Prompt) -> Score:
        found = features(looked_at(prompt))
        kind, total = found.kind, self._total(found)
        gain, quality = total.tolist()
        usual = found.counts - self.weights.usual[kind]
        told = _told(kind, usual, self._counts[kind][0] * usual)
        near, far = min(max(quality, 0.0), 1.0), min(max(quality + gain, 0.0), 1.0)
        return Score(self.calibration.probability(-gain), told, near, far)

    def raw(self, prompt: Prompt) -> float:
        """What `calibration` makes a probability of: how much better near is expected to be, about -1 to 1."""
        return -float(self._total(features(looked_at(prompt)))[0])

    def _total(self, found: Features) -> NDArray[np.float64]:
        """How much better the far answer is expected to be, and how good the near one."""
        picked = self._grams.take(found.buckets, axis=0)
        rare = found.values * picked[:, 2]
        wording = rare @ picked[:, :2] / math.sqrt(max(float(rare @ rare), 1e-12))
        return np.asarray(self._counts[found.kind] @ found.counts + wording + self._kinds[found.kind], np.float64)


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


def _told(kind: int, usual: Counts, weighed: Counts) -> tuple[str, ...]:
    """Counts beside those of usual prompts of the kind, and what each adds to how much better far is expected to be."""
    told = [f"it is {KINDS[kind]}"]
    for place in (-abs(weighed)).argsort()[:MOST_REASONS].tolist():
        added = float(weighed[place])
        if abs(added) < _WEIGHTY:
            break
        much = "more" if usual[place] > 0 else "less"
        told.append(f"{NAMES[place]}: {much} than usual, speaks for {'far' if added > 0 else 'near'} ({added:+.2f})")
    return tuple(told)
