"""How a variant runs: `base.py` is the seam, each other file one engine, `registry.py` finds them by name."""
