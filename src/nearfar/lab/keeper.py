"""Outlives the lab by a moment: when the standard input ends, and so the lab, it clears what is left of it.

Started by `play.py` as `python -m nearfar.lab.keeper MARK`; knows nothing else, so that it dies of nothing else.
"""

from __future__ import annotations

import signal
import sys

from nearfar.lab.remains import clear


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clear(sys.argv[1])


if __name__ == "__main__":
    main()
