"""The live lab: the scenarios of the testbed on real processes of one machine.

`check.py` says what cannot be played live, `plan.py` what happens when (pure, from the same luck as the testbed),
`network.py` how hosts are joined (`fabric.py` and `switch.py`: a network of its own for each; else loopback), `host.py`
runs a node, `gateway.py` is the process of a gateway, `play.py` conducts, `tally.py` counts as the testbed does,
`agreement.py` compares the two, `remains.py` and `keeper.py` see to it that nothing is left behind.
"""
