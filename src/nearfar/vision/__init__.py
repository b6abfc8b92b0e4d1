"""Streams of frames: where they come from, how they reach a service, and what became of each.

Begin with `base.py` (the seams), then `stream.py` (the engine). Every frame that was read ends in exactly one outcome.
"""
