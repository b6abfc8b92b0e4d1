"""Answers to images as JSON, with the labels of the model's manifest."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from nearfar.models.labels import labels_of
from nearfar.models.manifest import Manifest, parse_manifest
from nearfar.types.request import STAGE_NAMES, Answer


@lru_cache(maxsize=64)
def manifest_of(text: str) -> Manifest:
    """The manifest that a service sent; parsed once."""
    return parse_manifest(text, "service")


@lru_cache(maxsize=64)
def labels_in(text: str) -> tuple[str, ...]:
    """The labels of a manifest; parsed once."""
    return tuple(labels_of(manifest_of(text)))


def answer_as_json(answer: Answer, manifest_text: str | None) -> dict[str, Any]:
    """Detections in pixels of the image that was sent, or classes; who served, and the stages in milliseconds.

    Without the manifest (its service fell silent after it had answered) labels are numbers.
    """
    labels = labels_in(manifest_text) if manifest_text else ()
    finds_boxes = any(tensor.name == "boxes" for tensor in answer.outputs)

    def label(class_id: int) -> str:
        return labels[class_id] if 0 <= class_id < len(labels) else str(class_id)

    told: dict[str, Any] = {
        "model": answer.served_by.partition("/")[2],
        "task": "object-detection" if finds_boxes else "classification",
        "served_by": answer.served_by,
        "variant": answer.variant,
        "stages_ms": {name: round(getattr(answer.stages, name), 3) for name in STAGE_NAMES},
        "total_ms": round(answer.stages.total, 3),
        "attempts": list(answer.attempts),
    }
    scores = answer.array("scores").tolist()
    class_ids = answer.array("class_ids").tolist()
    if finds_boxes:
        boxes = answer.array("boxes").tolist()
        told["detections"] = [
            {"box": [round(v, 2) for v in box], "score": round(score, 4), "class_id": cid, "label": label(cid)}
            for box, score, cid in zip(boxes, scores, class_ids, strict=True)
        ]
    else:
        told["classes"] = [
            {"score": round(score, 4), "class_id": cid, "label": label(cid)}
            for score, cid in zip(scores, class_ids, strict=True)
        ]
    return told
