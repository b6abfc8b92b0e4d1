"""Privacy: what a request holds, how far it may travel, and what of it is replaced before it does.

`gate.py` is the one place where that is decided; the other files are what it looks with. All of it is pure.
"""
