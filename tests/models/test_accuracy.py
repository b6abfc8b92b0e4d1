"""AP50 of the five real detectors on 64 COCO images, read by the manifest alone: within 0.005 of what they were given.

The 0.005 is far less than a mistake costs: one class per cell instead of all costs nanodet 0.011 and picodet 0.009.
"""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.models.accuracy import Truths, average_precision
from nearfar.models.decoders.base import DetectionDecoder
from nearfar.models.labels import COCO80, COCO90
from nearfar.models.process import Pipeline
from nearfar.types.detections import Detections
from nearfar.types.image import Image
from tests.models.zoo import DETECTORS, coco_truth, load, manifest_for
from tests.realdata import need_data

TO_COCO80 = np.array([COCO80.index(name) if name in COCO80 else -1 for name in COCO90], np.int32)
# The collection's two label files write these six classes in two ways (motorbike, motorcycle). Its figure for SSD was
# taken by name, so these count as never found there; by category the same detector has 0.428.
TWO_NAMES = [COCO80.index(n) for n in ("motorcycle", "airplane", "couch", "potted plant", "dining table", "tv")]


@pytest.mark.parametrize("name", DETECTORS)
def test_ap50_is_that_of_the_recipe(name: str) -> None:
    file_name, stated, _, _ = DETECTORS[name]
    file = need_data("detection_models", file_name)
    images = sorted(need_data("images", "coco", "val2017").glob("*.jpg"))
    assert len(images) == 64
    manifest = manifest_for(name, file)
    inputs, outputs, run = load(file)
    pipeline = Pipeline(manifest, manifest.variants[0], inputs, outputs, score_threshold=0.05, nms_iou=0.6)
    assert isinstance(pipeline.decoder, DetectionDecoder)
    found: list[Detections] = []
    truths: list[Truths] = []
    for path in images:
        feed, geometry = pipeline.prepare(Image.encoded(path.read_bytes()))
        detections = pipeline.decoder.decode(run(feed), geometry)
        if name == "ssd":
            detections = Detections(detections.boxes, detections.scores, TO_COCO80[detections.class_ids])
        found.append(detections)
        truths.append(coco_truth(path.with_suffix(".txt").read_text(), geometry.width, geometry.height))
    result = average_precision(found, truths)
    print(f"{name}: AP50 {result.ap50:.4f} (stated {stated}), person {result.per_class[0]:.3f}")
    assert len(result.per_class) == 63
    if name == "ssd":
        assert result.ap50 == pytest.approx(0.428, abs=0.005)
        by_name = {c: 0.0 if c in TWO_NAMES else ap for c, ap in result.per_class.items()}
        assert np.mean(list(by_name.values())) == pytest.approx(stated, abs=0.005)
        return
    assert result.ap50 == pytest.approx(stated, abs=0.005)
