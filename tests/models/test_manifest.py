"""Manifests: what is read is what was written, and whatever is wrong is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ManifestError
from nearfar.models.labels import COCO80, COCO90, labels_of, read_labels
from nearfar.models.manifest import DECODER_FIELDS, Manifest, Resize, manifest_of, parse_manifest
from nearfar.models.manifest_toml import to_toml

VARIANT: dict[str, Any] = {"id": "onnx-fp32", "format": "onnx", "file": "m.onnx", "sha256": "ab" * 32, "bytes": 10}
GOOD: dict[str, Any] = {
    "schema": 1,
    "name": "yard",
    "task": "object-detection",
    "labels": ["person", "forklift"],
    "input": {"width": 320, "height": 192},
    "decoder": {"kind": "yolox", "heads": "split", "strides": [8, 16]},
    "variants": [VARIANT],
}

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
floats = st.floats(-1e6, 1e6, allow_nan=False)
loose = st.recursive(
    st.text(max_size=20) | st.integers(-(2**40), 2**40) | floats | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    task = draw(st.sampled_from(["object-detection", "classification", "tensors"]))
    raw: dict[str, Any] = {
        "schema": 1,
        "name": draw(names),
        "version": draw(st.text(min_size=1, max_size=10)),
        "task": task,
        "description": draw(st.text(max_size=50)),
        "labels": draw(st.lists(st.text(max_size=10), max_size=4) | st.sampled_from(["coco80", "coco90"])),
        "licence": draw(st.text(max_size=20)),
        "provenance": draw(st.dictionaries(st.text(max_size=10), loose, max_size=3)),
        "variants": [
            {
                "id": variant_id,
                "format": draw(st.sampled_from(["onnx", "tflite", "openvino", "x-mine"])),
                "precision": draw(st.sampled_from(["fp32", "int8"])),
                "file": "m.bin",
                "sha256": draw(st.from_regex(r"[0-9a-f]{64}", fullmatch=True)),
                "bytes": draw(st.integers(1, 2**40)),
                "layout": draw(st.sampled_from(["nchw", "nhwc"])),
                "dtype": draw(st.sampled_from(["float32", "uint8", "int8"])),
                "runtimes": draw(st.lists(names, max_size=2)),
            }
            for variant_id in draw(st.lists(names, min_size=1, max_size=3, unique=True))
        ],
    }
    if task != "tensors":
        raw["input"] = {
            "name": draw(st.text(max_size=10)),
            "width": draw(st.integers(1, 8192)),
            "height": draw(st.integers(1, 8192)),
            "resize": draw(st.sampled_from(list(Resize))),
            "mean": draw(st.lists(floats, min_size=3, max_size=3) | floats),
            "std": draw(st.floats(0.001, 1000)),
        }
        kinds = [k for k in DECODER_FIELDS if (k == "classification") == (task == "classification")]
        kind = draw(st.sampled_from(kinds))
        values: dict[str, Any] = {
            "score_threshold": draw(st.floats(0, 1)),
            "strides": draw(st.lists(st.integers(1, 64), min_size=1, max_size=4)),
            "activation": draw(st.sampled_from(["none", "sigmoid"])),
        }
        raw["decoder"] = {"kind": kind, **{k: v for k, v in values.items() if k in DECODER_FIELDS[kind]}}
    return manifest_of(raw)


@given(manifests())
def test_what_is_written_is_what_is_read(manifest: Manifest) -> None:
    assert parse_manifest(to_toml(manifest), "x.toml") == manifest


@given(st.text(max_size=300))
def test_any_text_is_a_manifest_or_an_error_that_names_the_file(text: str) -> None:
    with pytest.raises(ManifestError, match=r"x\.toml"):
        parse_manifest(text, "x.toml")


@given(st.sampled_from(["", "input", "decoder", "variants"]), st.data())
def test_any_value_in_any_field_is_taken_or_named(where: str, data: st.DataObject) -> None:
    raw = copy.deepcopy(GOOD)
    place = raw["variants"][0] if where == "variants" else raw[where] if where else raw
    key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(loose)
    try:
        manifest = manifest_of(raw)
    except ManifestError as e:
        if key == "task" and place[key] in ("classification", "tensors"):
            return  # named by what then contradicts it
        assert e.message.startswith((key, f"{where}.{key}", f"variants[0].{key}", "decoder")), e.message
    else:
        assert parse_manifest(to_toml(manifest), "") == manifest


WRONG: list[tuple[str, Any, str, str]] = [
    ("variants.0.layout", "nhcw", r"variants\[0\]\.layout is 'nhcw' \(did you mean 'nhwc'\?\)", "nchw, nhwc"),
    ("variants.0.file", "../../etc/passwd", r"variants\[0\]\.file", "plain file name"),
    ("variants.0.file", "/abs.onnx", r"variants\[0\]\.file", "plain file name"),
    ("variants.0.file", "..", r"variants\[0\]\.file", "plain file name"),
    ("variants.0.file", "a\0b", r"variants\[0\]\.file", "plain file name"),
    ("variants.0.sha256", "AB" * 32, r"variants\[0\]\.sha256", "64"),
    ("variants.0.bytes", 0, r"variants\[0\]\.bytes is 0", "whole number from 1"),
    ("variants.0.bytes", True, r"variants\[0\]\.bytes is True", "whole number"),
    ("variants.0.format", "pickle", r"variants\[0\]\.format is 'pickle'", "onnx, tflite"),
    ("variants", [], r"variants is \[\]", "1 to 64"),
    ("variants", [VARIANT, VARIANT], r"variants\[1\]\.id is 'onnx-fp32' a second time", "its own id"),
    ("input.width", "320", r"input\.width is '320'", "whole number"),
    ("input.std", [1.0, 0.0, 1.0], r"input\.std\[1\] is 0", "other number"),
    ("input.mean", [1.0, 2.0], r"input\.mean has 2 numbers", "one per channel"),
    ("input.colour", "rbg", r"input\.colour is 'rbg' \(did you mean 'rgb'\?\)", "rgb, bgr, gray"),
    ("input.scale", float("nan"), r"input\.scale is nan", "number"),
    ("input.hieght", 3, r"input\.hieght is not a field of a manifest \(did you mean 'height'\?\)", "width"),
    ("decoder.kind", "yolo", r"decoder\.kind is 'yolo' \(did you mean 'yolox'\?\)", "nanodet"),
    ("decoder.reg_max", 7, r"decoder\.reg_max means nothing to the decoder 'yolox'", "strides"),
    ("decoder.nms_iou", 1.5, r"decoder\.nms_iou is 1\.5", "from 0 to 1"),
    ("name", "../x", r"name is '\.\./x'", "a-z"),
    ("task", "detect", r"task is 'detect'", "object-detection"),
    ("task", "classification", r"decoder\.kind is 'yolox', but task", "classification"),
    ("task", "tensors", r"input is there, but task is 'tensors'", "Remove"),
    ("labels", "coco", r"labels is 'coco' \(did you mean .coco[89]0'\?\)", "coco80, coco90"),
    ("labels", [1], r"labels\[0\] is 1", "text"),
    ("lables", [], r"lables is not a field of a manifest \(did you mean 'labels'\?\)", "labels"),
    ("schema", 2, r"schema is 2", "from 1 to 1"),
    ("provenance", {"a": {"b": object}}, r"provenance\.a\.b", "texts"),
]


@pytest.mark.parametrize(("path", "value", "message", "hint"), WRONG)
def test_a_wrong_field_is_named_with_what_is_allowed(path: str, value: Any, message: str, hint: str) -> None:
    raw = copy.deepcopy(GOOD)
    place: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    with pytest.raises(ManifestError, match=f"^{message}") as caught:
        manifest_of(raw)
    assert hint in caught.value.hint


@pytest.mark.parametrize("key", ["schema", "name", "task", "variants", "input", "decoder"])
def test_a_missing_field_is_named(key: str) -> None:
    with pytest.raises(ManifestError, match=f"^{key} is missing"):
        manifest_of({k: v for k, v in GOOD.items() if k != key})


def test_an_unknown_variant_is_named_with_those_there() -> None:
    with pytest.raises(ManifestError, match=r"no variant 'onnx-fp23' \(did you mean 'onnx-fp32'"):
        manifest_of(GOOD).variant("onnx-fp23")


def test_a_manifest_that_never_ends_is_refused() -> None:
    with pytest.raises(ManifestError, match="characters"):
        parse_manifest("#" * (2 << 20), "x.toml")


def test_picodet_has_four_strides_of_its_own() -> None:
    raw = {**GOOD, "decoder": {"kind": "picodet"}}
    decoder = manifest_of(raw).decoder
    assert decoder is not None
    assert decoder.strides == (8, 16, 32, 64)


def test_built_in_labels_are_those_of_coco() -> None:
    assert (len(COCO80), len(COCO90)) == (80, 90)
    assert (COCO80[0], COCO80[56], COCO80[79]) == ("person", "chair", "toothbrush")
    assert (COCO90[0], COCO90[12], COCO90[43], COCO90[89]) == ("person", "stop sign", "bottle", "toothbrush")
    assert labels_of(manifest_of({**GOOD, "labels": "coco80"})) == COCO80


def test_labels_are_read_from_a_file(tmp_path: Any) -> None:
    path = tmp_path / "l.txt"
    path.write_text("cat\n dog \n\n", encoding="utf-8")
    assert read_labels(str(path)) == ("cat", "dog")
    assert read_labels("coco90") == "coco90"


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\xfa", None])
def test_labels_that_cannot_be_read_are_refused(tmp_path: Any, data: bytes | None) -> None:
    from nearfar.errors import InputError

    path = tmp_path / "l.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"l\.txt"):
        read_labels(str(path))
