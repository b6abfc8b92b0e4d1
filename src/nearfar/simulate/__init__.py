"""A testbed in virtual time: the real reducer, filters and policies against simulated devices, links and failures.

`scenario.py` says what is played, `devices.py` and `links.py` how long things take, `world.py` what is true, `view.py`
what a gateway knows of it, `run.py` plays, `measures.py` counts, `compare.py` sets policies side by side, `report.py`
and `plots.py` show. Nothing here sleeps, opens a socket or reads the clock.
"""
