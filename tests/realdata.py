"""Where the real models and images are that some tests use; nothing of them is in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_dir() -> Path | None:
    """The folder of real data: `NEARFAR_TEST_DATA`, else `../shared/data` beside the checkout, else None."""
    stated = os.environ.get("NEARFAR_TEST_DATA")
    folder = Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


def need_data(*parts: str) -> Path:
    """A file or folder of the real data; skips the test with the reason when it is absent."""
    folder = data_dir()
    if folder is None:
        pytest.skip("real models and images are absent; set NEARFAR_TEST_DATA to their folder")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is absent from the real data")
    return path
