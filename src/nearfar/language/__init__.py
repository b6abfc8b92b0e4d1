"""Prompts: what may leave (privacy), who shall answer (routers), whether an answer is good enough.

Everything that decides is a pure function; what talks to a model takes an async callable.
"""
