"""Real quantised classifiers through the whole pipeline: what is in the picture is what comes first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nearfar.models.adding import AddOptions, add_file
from nearfar.models.process import Pipeline
from nearfar.models.store import Store
from nearfar.types.image import Image
from tests.models.zoo import load
from tests.realdata import need_data


def classifier(folder: Path, model: Path, options: AddOptions | None = None) -> Callable[[Path], tuple[int, float]]:
    """Best class and its score of a picture."""
    inputs, outputs, run = load(model)
    manifest = add_file(Store(folder), model, lambda _: ("tflite", inputs, outputs), options or AddOptions(name="m"))
    pipeline = Pipeline(manifest, manifest.variants[0], inputs, outputs)

    def best(picture: Path) -> tuple[int, float]:
        feed, geometry = pipeline.prepare(Image.encoded(picture.read_bytes()))
        scores, ids = pipeline.finish(run(feed), geometry)
        return int(ids.array()[0]), float(scores.array()[0])

    return best


@pytest.mark.parametrize(("picture", "label"), [("hot_dog.jpg", "hotdog"), ("dragonfly.bmp", "dragonfly")])
def test_uint8_networks_name_what_is_in_the_picture(tmp_path: Path, picture: str, label: str) -> None:
    labels = need_data("classification_models", "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    best = classifier(tmp_path, need_data("classification_models", "mobilenet_v2_1.0_224_quant.tflite"))
    class_id, score = best(need_data("images", "coral", picture))
    assert label in labels[class_id]
    assert score > 0.5


def test_an_int8_network_says_what_its_float_original_says(tmp_path: Path) -> None:
    """Both get the pictures by their own manifests: (pixel / 255) as float, and through the int8 input's own scale."""
    options = AddOptions(name="f", task="classification", input_fields={"mean": 0, "std": 255})
    exact = classifier(tmp_path, need_data("mcu_models", "vww_96_float.tflite"), options)
    coarse = classifier(tmp_path, need_data("mcu_models", "vww_96_int8.tflite"))
    pictures = sorted(need_data("images", "coco", "val2017").glob("*.jpg"))
    pairs = [(exact(picture), coarse(picture)) for picture in pictures]
    assert {e[0] for e, _ in pairs} == {0, 1}
    agree = np.mean([e[0] == c[0] for e, c in pairs])
    print(f"{agree:.3f} of {len(pairs)}")
    assert agree >= 0.95
