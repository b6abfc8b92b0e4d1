"""How nodes find each other and talk. `base.py` is the seam; `zenoh.py` crosses machines, `memory.py` one process.

`impaired.py` wraps either one with delay, jitter, loss and a cut, for tests, the demo and simulation.
"""
