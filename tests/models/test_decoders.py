"""Decoders: boxes that are written the family's way are read back exactly; broken outputs are errors, never empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InferenceError, ManifestError
from nearfar.models.decoders import decoder_for
from nearfar.models.decoders.base import DetectionDecoder, Floats, check_finite, logit, sigmoid, suppress
from nearfar.models.manifest import DecoderSpec, InputSpec, Layout, Manifest, Task, Variant
from nearfar.models.preprocess import Geometry
from nearfar.types.detections import Detections
from nearfar.types.tensor import DType, TensorSpec

W, H = 64, 32
PLAIN = Geometry(W, H, 1.0, 1.0, 0.0, 0.0)
# x1 y1 x2 y2, class; the centres lie in different cells of every stride used here
BOXES = np.array([[3, 2, 17, 13], [40, 5, 60, 30]], np.float32)
CLASSES = [1, 2]
SCORES = [0.9, 0.6]


def made(kind: str, outputs: Sequence[TensorSpec], layout: Layout = Layout.NCHW, **fields: Any) -> Any:
    classes = fields.pop("classes", 3)
    if "outputs_" in fields:
        fields["outputs"] = fields.pop("outputs_")
    picture = fields.pop("picture", InputSpec(W, H))
    variant = Variant("v", "onnx", "fp32", "m", "ab" * 32, 1, layout)
    task = Task.CLASSIFICATION if kind == "classification" else Task.OBJECT_DETECTION
    labels = tuple(f"c{i}" for i in range(classes))
    spec = DecoderSpec(kind, **fields)
    return decoder_for(Manifest("m", task, (variant,), labels=labels, input=picture, decoder=spec), variant, outputs)


def specs(*arrays: Any) -> list[TensorSpec]:
    return [TensorSpec(f"o{i}", DType(a.dtype.name), a.shape) for i, a in enumerate(arrays)]


def same(found: Detections, boxes: Any = BOXES, atol: float = 1e-3) -> None:
    np.testing.assert_allclose(found.scores, SCORES, atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes, atol=atol)
    assert found.class_ids.tolist() == CLASSES
    assert [a.dtype.name for a in (found.boxes, found.scores, found.class_ids)] == ["float32", "float32", "int32"]


def cell_of(box: Any, stride: int) -> tuple[int, int, int]:
    x, y = int((box[0] + box[2]) / 2 // stride), int((box[1] + box[3]) / 2 // stride)
    return x, y, y * -(-W // stride) + x


def raw_box(box: Any, stride: int) -> list[float]:
    x, y, _ = cell_of(box, stride)
    centre = ((box[0] + box[2]) / 2 / stride - x, (box[1] + box[3]) / 2 / stride - y)
    return [*centre, float(np.log((box[2] - box[0]) / stride)), float(np.log((box[3] - box[1]) / stride))]


def yolox_joined(logits: bool) -> Floats:
    strides = (8, 16, 32)
    sizes = [(W // s) * (H // s) for s in strides]
    out = np.full((1, sum(sizes), 8), -20.0 if logits else 0.0, np.float32)
    for box, class_id, score, level in zip(BOXES, CLASSES, SCORES, (0, 1), strict=True):
        row = sum(sizes[:level]) + cell_of(box, strides[level])[2]
        out[0, row, :4] = raw_box(box, strides[level])
        out[0, row, 4] = logit(0.99) if logits else 0.99
        out[0, row, 5 + class_id] = logit(score / 0.99) if logits else score / 0.99
    return out


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
@pytest.mark.parametrize("multi", [True, False])
def test_yolox_joined(scores: str, multi: bool) -> None:
    out = yolox_joined(scores == "logits")
    same(
        made("yolox", specs(out), activation="sigmoid" if scores == "logits" else "none", multi_label=multi).decode(
            [out], PLAIN
        )
    )


def yolox_split(layout: Layout) -> list[Floats]:
    arrays = []
    for level, stride in enumerate((8, 16)):
        columns, rows = W // stride, H // stride
        boxes, scores = np.zeros((rows * columns, 4), np.float32), np.full((rows * columns, 3), -9.0, np.float32)
        row = cell_of(BOXES[level], stride)[2]
        boxes[row] = raw_box(BOXES[level], stride)
        scores[row, CLASSES[level]] = logit(SCORES[level])
        for flat in (scores, boxes):
            square = flat.reshape(1, rows, columns, -1)
            arrays.append(np.moveaxis(square, 3, 1).copy() if layout is Layout.NCHW else square)
    return arrays[::-1]  # any order of strides


@pytest.mark.parametrize("layout", list(Layout))
def test_yolox_split_by_size_in_any_order(layout: Layout) -> None:
    arrays = yolox_split(layout)
    decoder = made("yolox", specs(*arrays), layout, heads="split", strides=(8, 16), activation="sigmoid")
    same(decoder.decode(arrays, PLAIN))


def test_yolox_split_by_name_when_there_are_four_classes() -> None:
    arrays = yolox_split(Layout.NCHW)  # box16, score16, box8, score8 with 3 classes; one more that is never found
    arrays = [a if a.shape[1] == 4 else np.concatenate([a, np.full_like(a[:, :1], -9)], axis=1) for a in arrays]
    turned = [arrays[i] for i in (1, 0, 3, 2)]  # scores before boxes: sizes alone would take them for boxes
    outputs = [TensorSpec(n, DType.FLOAT32, a.shape) for n, a in zip(("s16", "b16", "s8", "b8"), turned, strict=True)]
    fields: dict[str, Any] = {"heads": "split", "strides": (8, 16), "activation": "sigmoid", "classes": 4}
    same(made("yolox", outputs, outputs_=("b8", "s8", "b16", "s16"), **fields).decode(turned, PLAIN))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantised_maps_are_read_with_their_own_scale(dtype: type) -> None:
    floats = yolox_split(Layout.NHWC)
    limits = np.iinfo(dtype)
    stored, described = [], []
    for i, array in enumerate(floats):
        scale = float((array.max() - array.min()) / 255) or 1.0
        zero = round(float(limits.min - array.min() / scale))
        stored.append(np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(dtype))
        described.append(TensorSpec(f"o{i}", DType(np.dtype(dtype).name), array.shape, scale, zero))
    decoder = made("yolox", described, Layout.NHWC, heads="split", strides=(8, 16), activation="sigmoid")
    found = decoder.decode(stored, PLAIN)
    real = [(s.astype(np.float32) - d.zero_point) * np.float32(d.scale) for s, d in zip(stored, described, strict=True)]
    plain = made("yolox", specs(*real), Layout.NHWC, heads="split", strides=(8, 16), activation="sigmoid")
    assert found == plain.decode(real, PLAIN)
    np.testing.assert_allclose(found.boxes, BOXES, atol=1.0)


def distances(strides: Sequence[int], logits: bool, flat: bool) -> list[Floats]:
    scores_out, boxes_out = [], []
    for level, stride in enumerate(strides):
        cells = -(-W // stride) * -(-H // stride)
        scores, sides = np.full((cells, 3), -20.0 if logits else 0.0, np.float32), np.zeros((cells, 32), np.float32)
        if level < 2:
            box = BOXES[level]
            x, y, row = cell_of(box, stride)
            cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
            scores[row, CLASSES[level]] = logit(SCORES[level]) if logits else SCORES[level]
            for side, far in enumerate((cx - box[0], cy - box[1], box[2] - cx, box[3] - cy)):
                least, share = divmod(far / stride, 1)  # the expectation over two neighbouring bins
                bins = np.full(8, -60.0)
                bins[int(least)] = np.log(max(1 - share, 1e-20))
                bins[int(least) + 1] = np.log(max(share, 1e-20))
                sides[row, side * 8 : side * 8 + 8] = bins
        scores_out.append(scores if flat else scores[None])
        boxes_out.append(sides if flat else sides[None])
    return [*scores_out, *boxes_out]


@pytest.mark.parametrize("kind", ["nanodet", "picodet"])
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_distances(kind: str, scores: str) -> None:
    strides = (8, 16, 32) if kind == "nanodet" else (8, 16, 32, 64)
    arrays = distances(strides, scores == "logits", kind == "nanodet")
    same(
        made(kind, specs(*arrays), strides=strides, activation="sigmoid" if scores == "logits" else "none").decode(
            arrays, PLAIN
        )
    )
    reordered = arrays[::-1]
    same(
        made(kind, specs(*reordered), strides=strides, activation="sigmoid" if scores == "logits" else "none").decode(
            reordered, PLAIN
        )
    )


def test_fastestdet() -> None:
    columns, rows = W // 16, H // 16
    out = np.zeros((1, 8, rows, columns), np.float32)
    for box, class_id, score in zip(BOXES, CLASSES, SCORES, strict=True):
        x, y, _ = cell_of(box, 16)
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        out[0, 0, y, x] = out[0, 5 + class_id, y, x] = score  # score^0.6 * score^0.4
        out[0, 1:3, y, x] = np.arctanh([cx / 16 - x, cy / 16 - y])
        out[0, 3:5, y, x] = [logit((box[2] - box[0]) / W), logit((box[3] - box[1]) / H)]
    same(made("fastestdet", specs(out)).decode([out], PLAIN))
    last = np.moveaxis(out, 1, 3).copy()
    same(made("fastestdet", specs(last), Layout.NHWC).decode([last], PLAIN))


def ssd() -> list[Floats]:
    boxes = np.zeros((1, 4, 4), np.float32)
    boxes[0, :2] = BOXES[:, [1, 0, 3, 2]] / [H, W, H, W]
    classes, scores = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
    classes[0, :2], scores[0, :2] = CLASSES, SCORES
    scores[0, 3] = 1.0  # behind count: rubbish that must not be read
    return [boxes, classes, scores, np.array([2], np.float32)]


def test_ssd() -> None:
    arrays = ssd()
    same(made("ssd-postprocess", specs(*arrays)).decode(arrays, PLAIN))
    turned = [arrays[i] for i in (2, 0, 3, 1)]
    order = ("scores", "boxes", "count", "classes")
    same(made("ssd-postprocess", specs(*turned), order=order).decode(turned, PLAIN))


@pytest.mark.parametrize("count", [-1.0, 5.0, 1e9])
def test_an_ssd_that_counts_nonsense_is_an_error(count: float) -> None:
    arrays = ssd()
    arrays[3][0] = count
    with pytest.raises(InferenceError, match="order"):
        made("ssd-postprocess", specs(*arrays)).decode(arrays, PLAIN)


def test_fomo_joins_neighbouring_cells() -> None:
    out = np.zeros((1, 4, 8, 3), np.float32)
    out[..., 0] = 1.0
    for y, x, class_id, score in ((0, 1, 1, 0.6), (1, 2, 1, 0.9), (3, 7, 2, 0.7), (3, 0, 2, 0.1)):
        out[0, y, x] = 0.0
        out[0, y, x, class_id] = score
    found = made("fomo", specs(out), Layout.NHWC, classes=2).decode([out], PLAIN)
    assert found.boxes.tolist() == [[8, 0, 24, 16], [56, 24, 64, 32]]
    assert found.class_ids.tolist() == [0, 1]  # labels leave the background out
    np.testing.assert_allclose(found.scores, [0.9, 0.7])
    named = made("fomo", specs(out), Layout.NHWC, classes=3).decode([out], PLAIN)
    assert named.class_ids.tolist() == [1, 2]  # labels name it


def test_classification() -> None:
    out = np.array([[10, 250, 30, 250]], np.uint8)
    spec = TensorSpec("o", DType.UINT8, (1, 4), 1 / 256, 0)
    scores, ids = made("classification", [spec], classes=4, top_k=3).tensors([out], PLAIN)
    assert (scores.name, ids.name) == ("scores", "class_ids")
    assert ids.array().tolist() == [1, 3, 2]
    np.testing.assert_allclose(scores.array(), np.array([250, 250, 30]) / 256)
    logits = np.array([[[[1.0, 3.0, 2.0]]]], np.float32)
    scores, ids = made("classification", specs(logits), activation="softmax").tensors([logits], PLAIN)
    np.testing.assert_allclose(scores.array().sum(), 1.0, rtol=1e-6)
    assert ids.array().tolist() == [1, 2, 0]


def test_boxes_go_back_to_the_picture() -> None:
    arrays = ssd()
    geometry = Geometry(50, 40, 2.0, 1.0, 10.0, 4.0)
    found = made("ssd-postprocess", specs(*arrays)).decode(arrays, geometry)
    assert np.abs(found.boxes - np.array([[0, 0, 3.5, 9], [15, 1, 25, 26]], np.float32)).max() < 1e-5


FAMILIES = {
    "yolox": ([yolox_joined(False)], {}, Layout.NCHW),
    "yolox-split": (
        yolox_split(Layout.NHWC),
        {"heads": "split", "strides": (8, 16), "activation": "sigmoid"},
        Layout.NHWC,
    ),
    "nanodet": (distances((8, 16, 32), False, True), {}, Layout.NCHW),
    "fastestdet": ([np.zeros((1, 8, 2, 4), np.float32)], {}, Layout.NCHW),
    "ssd-postprocess": (ssd(), {}, Layout.NHWC),
    "fomo": ([np.zeros((1, 4, 8, 3), np.float32)], {}, Layout.NHWC),
    "classification": ([np.zeros((1, 3), np.float32)], {}, Layout.NCHW),
}
CASES = [(name, i) for name, (arrays, _, _) in FAMILIES.items() for i in range(len(arrays))]


@pytest.mark.parametrize(("name", "index"), CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_an_error_and_never_an_empty_result(name: str, index: int, bad: float) -> None:
    arrays, fields, layout = FAMILIES[name]
    arrays = [a.copy() for a in arrays]
    decoder = made(name.removesuffix("-split"), specs(*arrays), layout, **fields)
    assert decoder.tensors(arrays, PLAIN)
    arrays[index].reshape(-1)[-1] = bad
    with pytest.raises(InferenceError, match=f"o{index}"):
        decoder.tensors(arrays, PLAIN)


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_of_another_shape_are_errors(name: str) -> None:
    arrays, fields, layout = FAMILIES[name]
    decoder = made(name.removesuffix("-split"), specs(*arrays), layout, **fields)
    for wrong in ([a[..., :1] for a in arrays], [a[None] for a in arrays], arrays[:-1], [*arrays, arrays[0]]):
        if all(w.shape == a.shape for w, a in zip(wrong, arrays, strict=False)) and len(wrong) == len(arrays):
            continue
        with pytest.raises(InferenceError):
            decoder.tensors(wrong, PLAIN)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_familys_outputs_are_refused_when_the_model_is_loaded(name: str) -> None:
    _, fields, layout = FAMILIES[name]
    other = [TensorSpec("a", DType.FLOAT32, (1, 7, 11, 13, 17)), TensorSpec("b", DType.FLOAT32, (1, 2))]
    with pytest.raises(ManifestError, match=r"decoder\.kind .* but the file gives a float32"):
        made(name.removesuffix("-split"), other, layout, **fields)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "ssd-postprocess"])
def test_a_wrong_number_of_labels_is_refused(name: str) -> None:
    arrays, fields, layout = FAMILIES[name]
    with pytest.raises(ManifestError, match="labels has 5 names, but the file's outputs have"):
        made(name.removesuffix("-split"), specs(*arrays), layout, classes=5, **fields)


def test_a_width_that_overflows_is_an_error() -> None:
    out = yolox_joined(False)
    out[0, cell_of(BOXES[0], 8)[2], 2] = 200.0  # exp(200) is beyond float32
    with pytest.raises(InferenceError, match="boxes"):
        made("yolox", specs(out)).decode([out], PLAIN)


@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_any_finite_outputs_give_boxes_inside_the_picture(name: str, data: st.DataObject) -> None:
    arrays, fields, layout = FAMILIES[name]
    decoder = made(name.removesuffix("-split"), specs(*arrays), layout, score_threshold=0.0, **fields)
    seed, size = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([1e-3, 1.0, 30.0]))
    rng = np.random.default_rng(seed)
    noise = [rng.uniform(-size, size, a.shape).astype(np.float32) for a in arrays]
    if name == "ssd-postprocess":
        noise[3][:] = 4
    if name == "classification":
        scores, ids = decoder.tensors(noise, PLAIN)
        assert scores.shape == ids.shape == (3,)
        return
    found = decoder.decode(noise, PLAIN)
    assert np.isfinite(found.boxes).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [W, H, W, H]).all()
    assert (np.diff(found.scores) <= 0).all()
    assert len(found) <= 100


def test_large_but_finite_numbers_pass() -> None:
    check_finite("x", np.full(100, 3e38, np.float32))


def test_a_cell_may_give_two_classes_or_its_best() -> None:
    out = yolox_joined(False)
    out[0, cell_of(BOXES[0], 8)[2], 5] = 0.5
    both = made("yolox", specs(out)).decode([out], PLAIN)
    assert sorted(both.class_ids.tolist()) == [0, 1, 2]
    best = made("yolox", specs(out), multi_label=False).decode([out], PLAIN)
    assert best.class_ids.tolist() == CLASSES


def test_at_most_max_detections_and_only_above_the_threshold() -> None:
    out = yolox_joined(False)
    decoder = made("yolox", specs(out), max_detections=1)
    assert decoder.decode([out], PLAIN).class_ids.tolist() == [1]
    assert len(made("yolox", specs(out), score_threshold=0.95).decode([out], PLAIN)) == 0
    everything = made("yolox", specs(out), score_threshold=0.0, nms_iou=1.0, max_detections=10_000)
    assert len(everything.decode([out], PLAIN)) == 42 * 3


boxes_st = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 1)),
    max_size=25,
)


@given(boxes_st, st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_suppression_is_the_plain_greedy_one(raw: list[tuple[int, ...]], iou: float) -> None:
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in raw], np.float32).reshape(-1, 4)
    ids = np.array([c for *_, c in raw], np.int32)

    def overlap(a: Any, b: Any) -> float:
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        inter = max(w, 0) * max(h, 0)
        return float(inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter))

    kept: list[int] = []
    for i in range(len(boxes)):
        if all(ids[i] != ids[k] or overlap(boxes[i].tolist(), boxes[k].tolist()) <= iou for k in kept):
            kept.append(i)
    assert suppress(boxes, ids, iou, 1000).tolist() == kept


@given(st.floats(1e-6, 1 - 1e-6))
def test_logit_is_the_inverse_of_the_sigmoid(p: float) -> None:
    assert float(sigmoid(np.array([logit(p)], np.float32))[0]) == pytest.approx(p, abs=1e-6)


def test_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0, 0.5, 1]


def test_a_model_without_a_decoder_is_told_apart() -> None:
    manifest = Manifest("m", Task.TENSORS, (Variant("v", "onnx", "fp32", "m", "ab" * 32, 1),))
    with pytest.raises(ManifestError, match=r"no \[decoder\]"):
        decoder_for(manifest, manifest.variants[0], [])


def test_every_kind_has_its_decoder() -> None:
    from nearfar.models.manifest import DECODER_FIELDS

    assert {name.removesuffix("-split") for name in FAMILIES} | {"picodet"} == set(DECODER_FIELDS)
    known = set(msgspec.structs.asdict(DecoderSpec("")))
    assert {field for fields in DECODER_FIELDS.values() for field in fields} == known
    assert issubclass(type(made("yolox", specs(yolox_joined(False)))), DetectionDecoder)
