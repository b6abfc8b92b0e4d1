"""Judging a near answer: from the prompt and the answer alone to a probability that the answer is good enough.

Begin with `features.py` (what is looked at), then `model.py` (how it becomes a probability) and `train.py`.
Nothing here asks a model: the far answer is never seen, and no second model judges.
"""
