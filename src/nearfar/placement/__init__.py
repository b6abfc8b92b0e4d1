"""Where a request should run: filters with reasons, then a policy that ranks what is left.

`decide.py` is the way in. Pure functions of (snapshot, request, now, random source): the gateway and the simulator run
the same ones. `docs/explanation-placement.md` says what is computed and what is given up for speed.
"""
