"""The fleet as one client sees it: `snapshot.py` holds the values, `events.py` what changes them, `reduce.py` folds.

`links.py` turns ping samples into link reports. Everything here is pure: moments are passed in, nothing is sent.
"""
