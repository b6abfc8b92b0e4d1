"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says how busy the machine is: a test never asserts a wall-clock figure.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import the engine themselves
