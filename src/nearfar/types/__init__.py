"""Frozen values that every room shares: ids, units, tensors, detections, requests, reports. Imports nothing of ours.

All values are `msgspec.Struct`s: frozen, compared by value, and the same object is what goes over the wire.
"""
