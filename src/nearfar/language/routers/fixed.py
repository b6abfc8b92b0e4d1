"""Baselines that need no training: always near, always far, by chance, by length."""

from __future__ import annotations

import math
import random

from nearfar.errors import SettingsError
from nearfar.language.routers.base import Prompt, Router, Score


class AlwaysNear(Router):
    name = "always-near"

    def score(self, prompt: Prompt) -> Score:
        return Score(1.0, ("always near, whatever is asked",))


class AlwaysFar(Router):
    name = "always-far"

    def score(self, prompt: Prompt) -> Score:
        return Score(0.0, ("always far, whatever is asked",))


class Random(Router):
    """Uniform in [0, 1), from a seed: the n-th score depends on nothing but seed and n."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - no secret hangs on it

    def score(self, prompt: Prompt) -> Score:
        return Score(self._chance.random(), ("by chance",))


class Length(Router):
    """Short prompts near: probability 1 / (1 + (characters / half)^2), so 0.5 at `half` characters. Not calibrated."""

    name = "length"

    def __init__(self, half: float = 400.0) -> None:
        if not (math.isfinite(half) and half > 0):
            raise SettingsError(
                f"half={half!r} is not a length.", "Give a number of characters above 0, such as half=400."
            )
        self.half = half

    def score(self, prompt: Prompt) -> Score:
        count = len(prompt.text)
        return Score(1.0 / (1.0 + (count / self.half) ** 2), (f"it has {count} characters",))
