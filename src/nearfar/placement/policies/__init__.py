"""How candidates are ranked: `base.py` is the seam, each other file one policy, `registry.py` finds them by name."""
