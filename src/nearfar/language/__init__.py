"""Prompts: what may leave (privacy), who shall answer (routers), whether the answer is good enough (judge), at what cost.

Everything that decides is a pure function; what talks to a model takes an async callable.
"""
