"""Detectors on the fake runtime: services that take pictures and as much time as a test wants."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from nearfar.models.manifest import manifest_of
from nearfar.runtimes.fake import FakeModel, FakeTensor
from tests.fleetlab import LabModel

SHAPES = {"boxes": (1, 10, 4), "classes": (1, 10), "scores": (1, 10), "count": (1,)}


def detector(folder: Path, name: str, file: str = "", **fields: Any) -> LabModel:
    """A detector that takes its time and finds nothing; `file` tells apart two of one name."""
    outputs = tuple(FakeTensor(output, shape=shape) for output, shape in SHAPES.items())
    fake = FakeModel(inputs=(FakeTensor("image", shape=(1, 3, 32, 32)),), outputs=outputs, behaviour="zeros", **fields)
    path = folder / f"{file or name}.fake.json"
    path.write_bytes(msgspec.json.encode(fake))
    data = path.read_bytes()
    variant = {"id": "v", "format": "fake", "precision": "fp32", "file": path.name, "bytes": len(data)}
    stated = {
        "schema": 1, "name": name, "task": "object-detection", "labels": ["person", "car"],
        "input": {"width": 32, "height": 32}, "decoder": {"kind": "ssd-postprocess"},
        "variants": [variant | {"sha256": hashlib.sha256(data).hexdigest()}],
    }  # fmt: skip
    return LabModel(manifest_of(stated), path)
