"""What `benchmarks/soak.py` is made of: a fleet to break, those who ask it all the while, and the ways to break it.

`ground.py` where nodes stand (network namespaces that can be cut, or loopback), `fleet.py` the nodes, `asker.py` a
process that asks and checks every answer against `truth.py`, `parts.py` a third party's runtime that misbehaves on
demand and a clock that can be moved, `census.py` what is left over; `death.py`, `stops.py`, `lies.py`, `clocks.py`,
`room.py`, `links.py`, `churn.py` and `twins.py` are the faults, by family; `base.py` is what a fault is.
"""
