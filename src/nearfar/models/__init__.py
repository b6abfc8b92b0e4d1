"""Models: manifests, the content-addressed store, what goes before and after a network, and pulling from a hub.

Start at `manifest.py` (what a model is), then `store.py` (where it lies), `process.py` (image in, detections out).
"""
