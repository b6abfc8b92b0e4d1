"""Reading the small files below /proc and /sys: absent, unreadable and odd ones are all "not there"."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """A file's text without trailing white space and NULs (device-tree strings end in one); None when there is none."""
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0 \t\r\n")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    text = read_text(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def folders(path: Path, pattern: str) -> list[Path]:
    """What matches, sorted with numbers as numbers (`zone10` after `zone9`); empty when the folder is absent."""
    try:
        found = list(path.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda entry: (len(entry.name), entry.name))
