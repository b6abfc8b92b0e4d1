"""Language: prompts that are answered near, far or by both, and never far when they are private.

`privacy/` is the filter before everything else in this room: nothing reaches a far end that it did not rule on.
"""
