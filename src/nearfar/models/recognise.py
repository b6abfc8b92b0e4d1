"""Which family a model file belongs to, from the names, shapes and dtypes of its tensors, with the reason.

Shapes tell a family; how pixels were scaled in training they do not. That comes from the family's published recipe, and
the reason says so: whoever knows better writes it in the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from nearfar.errors import ManifestError
from nearfar.models.fields import nearest
from nearfar.models.labels import BUILT_IN
from nearfar.models.manifest import DECODER_FIELDS, Layout, Task
from nearfar.types.tensor import DType, TensorSpec

_IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of ImageNet's pixels 0 to 255 in the order RGB (torchvision's, times 255)."""


class Recognition(msgspec.Struct, frozen=True):
    """Fields of a manifest that a file's tensors suggest. `input` and `decoder` are empty for the task `tensors`."""

    task: Task
    layout: Layout
    dtype: str
    precision: str
    reason: str
    input: Mapping[str, Any] = {}
    decoder: Mapping[str, Any] = {}
    labels: tuple[str, ...] | str = ()


class _NoPicture(ManifestError):
    """The inputs are not one picture."""


class _Guess(NamedTuple):
    kind: str
    reason: str
    decoder: Mapping[str, Any] = {}
    classes: int = 0


class _Seen(NamedTuple):
    """The picture input of a file and its outputs."""

    width: int
    height: int
    channels: int
    layout: Layout
    outputs: tuple[TensorSpec, ...]
    names: int


def recognise(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    task: str | None = None,
    kind: str | None = None,
    labels: tuple[str, ...] | str = (),
    size: tuple[int, int] | None = None,
    precision: str | None = None,
) -> Recognition:
    """What the tensors suggest; `task`, decoder `kind`, `labels` and `size` (width, height) narrow it down.

    Raises `ManifestError` when they contradict each other, or leave open what only the caller can know; the message
    names the flag to give.
    """
    if task is not None and task not in set(Task):
        raise ManifestError(f"task is {task!r}{nearest(task, list(Task))}.", f"Use --task {'|'.join(Task)}.")
    if kind is not None and kind not in DECODER_FIELDS:
        known = list(DECODER_FIELDS)
        raise ManifestError(f"decoder.kind is {kind!r}{nearest(kind, known)}.", f"Use --decoder {'|'.join(known)}.")
    quantised = any(t.dtype in (DType.UINT8, DType.INT8) for t in (*inputs, *outputs))
    precision = precision or ("int8" if quantised else "fp32")
    if task == Task.TENSORS:
        return _tensors(inputs, precision, "asked for with --task tensors")
    try:
        seen = _picture(inputs, outputs, size, len(BUILT_IN[labels] if isinstance(labels, str) else labels))
    except _NoPicture:
        if task or kind:
            raise
        return _tensors(inputs, precision, "no input looks like a picture")
    guess = _forced(kind, seen) if kind else _guess(seen, task)
    if guess is None:
        if task:
            have = "; ".join(str(spec) for spec in outputs)
            raise ManifestError(
                f"The outputs ({have}) are of no family that is known for {task}.",
                f"Give --decoder {'|'.join(DECODER_FIELDS)}, or --task tensors for arrays without decoding.",
            )
        return _tensors(inputs, precision, "the outputs are of no known family")
    found = Task.CLASSIFICATION if guess.kind == "classification" else Task.OBJECT_DETECTION
    if task and task != found:
        raise ManifestError(
            f"The outputs are those of {guess.kind} ({guess.reason}), but the task is {task}.",
            f"Use --task {found.value}, or --decoder to say another family.",
        )
    picture, why = _preprocessing(guess.kind, inputs[0], seen)
    if not labels and guess.classes == 80 and found is Task.OBJECT_DETECTION:
        labels, why = "coco80", f"{why}; 80 classes are taken for COCO's"
    return Recognition(
        task=found,
        layout=seen.layout,
        dtype=inputs[0].dtype.value,
        precision=precision,
        reason=f"{guess.kind}: {guess.reason}; {why}",
        input={"width": seen.width, "height": seen.height, **picture},
        decoder={"kind": guess.kind, **guess.decoder},
        labels=labels,
    )


def _tensors(inputs: Sequence[TensorSpec], precision: str, why: str) -> Recognition:
    dtype = inputs[0].dtype.value if inputs else "float32"
    return Recognition(
        task=Task.TENSORS,
        layout=Layout.NCHW,
        dtype=dtype if dtype in ("uint8", "int8") else "float32",
        precision=precision,
        reason=f"tensors only: {why}",
    )


def _picture(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], size: tuple[int, int] | None, names: int
) -> _Seen:
    have = "; ".join(str(spec) for spec in inputs)
    if len(inputs) != 1:
        raise _NoPicture(f"The file takes {len(inputs)} inputs ({have}); a picture is one.", "Use --task tensors.")
    shape = inputs[0].shape
    if len(shape) == 4 and inputs[0].dtype in (DType.FLOAT32, DType.UINT8, DType.INT8) and shape[0] in (1, -1):
        # Channels last when both ends could be channels: 3 pixels of height are no picture.
        if shape[3] in (1, 3):
            layout, (height, width, channels) = Layout.NHWC, shape[1:]
        elif shape[1] in (1, 3):
            layout, (channels, height, width) = Layout.NCHW, shape[1:]
        else:
            raise _NoPicture(f"The input {have} has no channel dimension of 1 or 3.", "Use --task tensors.")
        if size is not None:
            if any(want not in (-1, got) for want, got in zip((width, height), size, strict=True)):
                raise ManifestError(f"--size is {size[0]}x{size[1]}, but the file takes {have}.", "Leave --size away.")
            width, height = size
        if width < 1 or height < 1:
            raise ManifestError(f"The file leaves the picture's size open ({have}).", "Give --size WIDTHxHEIGHT.")
        return _Seen(width, height, channels, layout, tuple(outputs), names)
    raise _NoPicture(f"The input {have} is not a picture.", "Use --task tensors.")


def _cells(seen: _Seen, strides: Sequence[int]) -> list[int]:
    return [-(-seen.width // s) * -(-seen.height // s) for s in strides]


def _yolox(seen: _Seen) -> _Guess | None:
    if len(seen.outputs) == 1:
        shape, cells = seen.outputs[0].shape, sum(_cells(seen, (8, 16, 32)))
        if len(shape) == 3 and shape[1] == cells and shape[2] > 5:
            why = f"one output of {cells} cells (strides 8, 16, 32) with 5 + {shape[2] - 5} columns"
            return _Guess("yolox", why, {"heads": "joined", "strides": [8, 16, 32]}, shape[2] - 5)
        return None
    maps = [_map_of(spec, seen.layout) for spec in seen.outputs]
    sizes = sorted({m[:2] for m in maps}, reverse=True)
    if not all(all(m) for m in maps) or len(maps) != 2 * len(sizes) or [m[2] for m in maps].count(4) < len(sizes):
        return None
    strides = [round(seen.height / rows) for rows, _ in sizes]
    classes = {m[2] for m in maps if m[2] != 4} or {4}
    if len(classes) != 1 or any(-(-seen.width // s) != c for s, (_, c) in zip(strides, sizes, strict=True)):
        return None
    why = f"per stride ({', '.join(map(str, strides))}) a map of 4 and one of {min(classes)} channels, taken for logits"
    return _Guess("yolox", why, {"heads": "split", "strides": strides, "activation": "sigmoid"}, min(classes))


def _distances(seen: _Seen) -> _Guess | None:
    kinds = {6: ("nanodet", (8, 16, 32)), 8: ("picodet", (8, 16, 32, 64))}
    if len(seen.outputs) not in kinds:
        return None
    kind, strides = kinds[len(seen.outputs)]
    flat = [s.shape[1:] if len(s.shape) == 3 and s.shape[0] in (1, -1) else s.shape for s in seen.outputs]
    cells = _cells(seen, strides)
    if any(len(s) != 2 for s in flat) or sorted(s[0] for s in flat) != sorted(cells * 2):
        return None
    columns = sorted({s[1] for s in flat})
    sides = [c for c in columns if c % 4 == 0 and c >= 8 and [s[1] for s in flat].count(c) >= len(strides)]
    if not sides or len(columns) > 2:
        return None
    # 8 bins are what both families publish; with two candidates only that can tell boxes from classes.
    bins = 32 if 32 in sides else sides[0]
    classes = next((c for c in columns if c != bins), bins)
    why = f"{len(flat)} outputs, per stride {', '.join(map(str, strides))} one of {classes} and one of {bins} columns"
    return _Guess(kind, why, {"strides": list(strides), "reg_max": bins // 4 - 1}, classes)


def _ssd(seen: _Seen) -> _Guess | None:
    if len(seen.outputs) != 4:
        return None
    shapes = [spec.shape for spec in seen.outputs]
    boxes = [i for i, s in enumerate(shapes) if len(s) == 3 and s[2] == 4]
    rows = [i for i, s in enumerate(shapes) if len(s) == 2]
    counts = [i for i, s in enumerate(shapes) if math.prod(s) == 1 and len(s) < 2]
    if len(boxes) != 1 or len(rows) != 2 or len(counts) != 1:
        return None
    roles = {boxes[0]: "boxes", counts[0]: "count"}
    # The operator gives classes before scores; TensorFlow 2's signature wrapper turns all four round.
    first, second = ("classes", "scores") if boxes[0] == 0 else ("scores", "classes")
    roles |= {rows[0]: first, rows[1]: second}
    order = [roles[i] for i in range(4)]
    return _Guess("ssd-postprocess", f"four outputs: {', '.join(order)}", {"order": order})


def _map_of(spec: TensorSpec, layout: Layout) -> tuple[int, int, int]:
    """Rows, columns and channels of an output map; zeros when it is none."""
    shape = spec.shape
    if len(shape) != 4 or min(shape[1:]) < 1 or shape[0] not in (1, -1):
        return (0, 0, 0)
    return (shape[2], shape[3], shape[1]) if layout is Layout.NCHW else (shape[1], shape[2], shape[3])


def _grids(seen: _Seen) -> list[_Guess]:
    """FastestDet and FOMO: one map, coarse."""
    if len(seen.outputs) != 1:
        return []
    rows, columns, channels = _map_of(seen.outputs[0], seen.layout)
    # A grid over the picture has square cells; what has not (key points, a row of anchors) is no grid.
    stride = round(seen.height / rows) if rows else 0
    if rows * columns < 4 or stride < 4 or (-(-seen.height // stride), -(-seen.width // stride)) != (rows, columns):
        return []
    guesses = []
    size = f"one map of {rows}x{columns} cells and"
    if channels > 5 and seen.names in (0, channels - 5):
        guesses.append(_Guess("fastestdet", f"{size} 5 + {channels - 5} channels", {}, channels - 5))
    if channels > 1 and seen.names in (0, channels, channels - 1) and channels != 85:
        guesses.append(_Guess("fomo", f"{size} {channels} channels, 0 the background", {}, channels - 1))
    return guesses


def _classes(seen: _Seen) -> int:
    """How many numbers the only output has when it is one row; 0 when it is not."""
    if len(seen.outputs) != 1:
        return 0
    shape = seen.outputs[0].shape
    flat = len(shape) >= 2 and min(shape[1:]) >= 1 and math.prod(shape[1:]) == max(shape[1:])
    return max(shape[1:]) if flat else 0


def _classifier(seen: _Seen, sure: bool) -> _Guess | None:
    count = _classes(seen)
    if not count:
        return None
    spec = seen.outputs[0]
    # 1/256 with zero point 0 is how TensorFlow Lite fixes the output of a softmax (its quantisation specification).
    probabilities = math.isclose(spec.scale, 1 / 256, rel_tol=1e-3) and spec.zero_point in (0, -128)
    if not sure and seen.names != count and not probabilities:
        raise ManifestError(
            f"One output of {count} numbers ({spec}) may be classes or an embedding.",
            "Give --task classification or --task tensors (or --labels with one name per class).",
        )
    note = "" if probabilities else ", taken as scores without a softmax"
    return _Guess("classification", f"one output of {count} numbers{note}", {}, count)


_FAMILIES: Sequence[Callable[[_Seen], _Guess | None]] = (_ssd, _distances, _yolox)


def _guess(seen: _Seen, task: str | None) -> _Guess | None:
    if task != Task.CLASSIFICATION:
        for family in _FAMILIES:
            if found := family(seen):
                return found
        grids = _grids(seen)
        if len(grids) > 1:
            raise ManifestError(
                f"The output {seen.outputs[0]} may be that of {' or '.join(g.kind for g in grids)}.",
                f"Give --decoder {'|'.join(g.kind for g in grids)}, or --labels with one name per class.",
            )
        if grids:
            return grids[0]
    if task != Task.OBJECT_DETECTION:
        return _classifier(seen, task is not None)
    return None


def _forced(kind: str, seen: _Seen) -> _Guess:
    """The guess for a kind that the caller named; the decoder itself checks the rest."""
    found: Sequence[_Guess | None]
    if kind == "classification":
        found = [_classifier(seen, True)]
    else:
        found = [*(family(seen) for family in _FAMILIES), *_grids(seen)]
    return next((g for g in found if g and g.kind == kind), _Guess(kind, "asked for with --decoder"))


def _preprocessing(kind: str, tensor: TensorSpec, seen: _Seen) -> tuple[dict[str, Any], str]:
    """[input] as the family's own recipe has it, and in words."""
    mean, std = _IMAGENET
    colour = "gray" if seen.channels == 1 else "rgb"
    if tensor.dtype is not DType.FLOAT32:
        return _stored(kind, tensor, colour)
    if seen.channels == 1:
        return {"colour": "gray", "scale": 1 / 255}, "grey pixels / 255, stretched (assumed)"
    match kind:
        case "yolox":
            return {"colour": "bgr", "resize": "letterbox-top-left", "pad": 114}, "BGR 0 to 255, letterbox top left"
        case "nanodet":
            usual = {"mean": list(mean[::-1]), "std": list(std[::-1])}
            return {"colour": "bgr", **usual}, "BGR with ImageNet's mean and deviation, stretched"
        case "picodet":
            return {"mean": list(mean), "std": list(std)}, "RGB with ImageNet's mean and deviation, stretched"
        case "fastestdet":
            return {"colour": "bgr", "scale": 1 / 255}, "BGR / 255, stretched"
        case "fomo":
            return {"scale": 1 / 255, "resize": "center-crop"}, "RGB / 255, centre crop (assumed)"
        case "classification" if seen.layout is Layout.NCHW:
            crop = {"mean": list(mean), "std": list(std), "resize": "center-crop"}
            return crop, "RGB with ImageNet's mean and deviation, centre crop (assumed)"
        case _:
            return {"mean": [127.5], "std": [127.5]}, "RGB (pixel - 127.5) / 127.5, stretched (assumed)"


def _stored(kind: str, tensor: TensorSpec, colour: str) -> tuple[dict[str, Any], str]:
    """For a quantised input: pixels 0 to 255 span the tensor's own range of real values."""
    picture: dict[str, Any] = {"colour": colour}
    if kind == "yolox":
        picture |= {"resize": "letterbox-top-left", "pad": 114}
    if tensor.dtype is DType.UINT8:
        return picture, f"{colour.upper()} pixels as they are"
    least, most = ((v - tensor.zero_point) * tensor.scale for v in (-128, 127))
    if most <= least:
        raise ManifestError(
            f"The input {tensor} states no scale.", "Export it with a quantised int8 input, or as float."
        )
    span = 255 / (most - least)
    if abs(least) <= tensor.scale / 2:
        return picture | {"scale": 1 / span}, f"{colour.upper()} pixels over the input's own range"
    return picture | {"mean": [-least * span], "std": [span]}, f"{colour.upper()} pixels over the input's own range"
