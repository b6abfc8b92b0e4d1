"""Which box in this frame is which in the one before: trackers, and what a stream that is tracked knows.

Begin with `base.py` (the seam), then `sort.py`. `follow.py` binds a tracker and the counters of `vision.zones` into
one thing that moves as one. Association needs scipy: `pip install 'nearfar[track]'`.
"""
