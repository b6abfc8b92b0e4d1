"""A bare file becomes a model: its manifest is written, and what does not fit is refused before it is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar.errors import ManifestError, ModelFileError
from nearfar.models import embedded
from nearfar.models.adding import AddOptions, Inspect, add_file, add_with_manifest, name_of
from nearfar.models.manifest import Task
from nearfar.models.manifest_toml import to_toml
from nearfar.models.store import Store
from nearfar.types.tensor import DType, TensorSpec
from tests.models.zoo import DETECTORS, load
from tests.realdata import need_data


def f32(*shape: int) -> TensorSpec:
    return TensorSpec("x", DType.FLOAT32, shape)


YOLOX = ((f32(1, 3, 416, 416),), (f32(1, 3549, 85),))


def says(format_: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Inspect:
    return lambda path: (format_, inputs, outputs)


def made(folder: Path, name: str = "YOLOX_nano 416.onnx", data: bytes = b"model") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_known_family_needs_nothing_but_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    manifest = add_file(store, made(tmp_path), says("onnx", *YOLOX))
    assert manifest.name == "yolox-nano"
    assert manifest.task is Task.OBJECT_DETECTION
    assert manifest.labels == "coco80"
    assert manifest.provenance["recognised"].startswith("yolox: one output of 3549 cells")
    assert [v.id for v in manifest.variants] == ["onnx-fp32"]
    assert store.get("yolox-nano").manifest == manifest


def test_options_come_before_what_was_recognised(tmp_path: Path) -> None:
    options = AddOptions(
        name="cams",
        labels=tuple(str(i) for i in range(80)),
        input_fields={"colour": "rgb"},
        decoder_fields={"score_threshold": 0.1},
        licence="MIT",
        version="7",
    )
    manifest = add_file(Store(tmp_path / "store"), made(tmp_path), says("onnx", *YOLOX), options)
    assert manifest.input is not None
    assert manifest.decoder is not None
    assert (manifest.input.colour, manifest.decoder.score_threshold) == ("rgb", 0.1)
    assert (manifest.name, manifest.labels[79], manifest.licence, manifest.version) == ("cams", "79", "MIT", "7")


def test_another_file_under_the_same_name_is_one_more_variant(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    add_file(store, made(tmp_path), says("onnx", *YOLOX), AddOptions(name="cams"))
    lite_in = (TensorSpec("x", DType.INT8, (1, 416, 416, 3), 1.0, -128),)
    lite = made(tmp_path, "m.tflite", b"\x20\0\0\0TFL3")
    manifest = add_file(store, lite, says("litert", lite_in, (f32(1, 3549, 85),)), AddOptions(name="cams"))
    assert [(v.id, v.layout, v.dtype) for v in manifest.variants] == [
        ("onnx-fp32", "nchw", "float32"),
        ("tflite-int8", "nhwc", "int8"),
    ]
    assert add_file(store, lite, says("litert", lite_in, YOLOX[1]), AddOptions(name="cams")) == manifest


def test_a_variant_that_differs_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = add_file(store, made(tmp_path), says("onnx", *YOLOX), AddOptions(name="cams"))
    other = made(tmp_path, "o.onnx", b"other")
    with pytest.raises(ManifestError, match=r"already has a variant 'onnx-fp32'.*--variant"):
        add_file(store, other, says("onnx", *YOLOX), AddOptions(name="cams"))
    small = ((f32(1, 3, 320, 320),), (f32(1, 2100, 85),))
    with pytest.raises(ManifestError, match="The manifest's input is 1x3x416x416"):
        add_file(store, other, says("onnx", *small), AddOptions(name="cams", variant="small"))
    with pytest.raises(ManifestError, match="--labels differs"):
        add_file(store, other, says("onnx", *YOLOX), AddOptions(name="cams", labels="coco90"))
    assert store.get("cams").manifest == before


def test_labels_that_do_not_fit_are_refused_before_anything_is_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(ManifestError, match="labels has 90 names, but the file's outputs have 80 classes"):
        add_file(store, made(tmp_path), says("onnx", *YOLOX), AddOptions(labels="coco90"))
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("data", "said", "format_"),
    [
        (b"\x08\x07", "onnx", "onnx"),
        (b"\x08\x07", "openvino", "onnx"),  # OpenVINO loads ONNX files too
        (b"\x20\0\0\0TFL3", "openvino", "tflite"),
        (b"\x20\0\0\0TFL3", "litert", "tflite"),
        (b"<?xml version='1.0'?>", "openvino", "openvino"),
        (b"anything", "x-mine", "x-mine"),
        (b"anything", "fake", "fake"),
    ],
)
def test_the_format_is_the_files_own_whichever_engine_loaded_it(
    tmp_path: Path, data: bytes, said: str, format_: str
) -> None:
    manifest = add_file(Store(tmp_path / "store"), made(tmp_path, data=data), says(said, *YOLOX))
    assert manifest.variants[0].format == format_


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AddOptions(name="../x"), "cannot name a model"),
        (AddOptions(decoder_fields={"reg_max": 3}), r"decoder\.reg_max means nothing"),
        (AddOptions(input_fields={"color": "rgb"}), r"input\.color is not a field .*'colour'"),
        (AddOptions(task="tensors", input_fields={"colour": "rgb"}), "has the task tensors"),
        (AddOptions(precision="int3"), r"variants\[0\]\.precision is 'int3'"),
        (AddOptions(variant="A B"), r"variants\[0\]\.id is 'A B'"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: AddOptions, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        add_file(Store(tmp_path / "store"), made(tmp_path), says("onnx", *YOLOX), options)


def test_embedded_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "folders", lambda: {"cams": tmp_path})
    monkeypatch.setattr(embedded, "read", lambda name: pytest.fail("not read"))
    with pytest.raises(ManifestError, match=r"embedded model.*--name"):
        add_file(Store(tmp_path / "store"), made(tmp_path), says("onnx", *YOLOX), AddOptions(name="cams"))


def test_what_the_engine_refuses_is_not_stored(tmp_path: Path) -> None:
    def refuse(path: Path) -> tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        raise ModelFileError("cut off")

    with pytest.raises(ModelFileError):
        add_file(Store(tmp_path / "store"), made(tmp_path), refuse)
    assert not (tmp_path / "store").exists()


def test_a_file_with_its_manifest(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), made(tmp_path, "m.onnx")
    manifest = add_file(store, file, says("onnx", *YOLOX), AddOptions(name="cams"))
    path = tmp_path / "cams.toml"
    path.write_text(to_toml(manifest))
    other = Store(tmp_path / "other")
    assert add_with_manifest(other, file, path, says("onnx", *YOLOX)) == manifest
    with pytest.raises(ManifestError, match="but the file gives"):
        add_with_manifest(other, file, path, says("onnx", YOLOX[0], (f32(1, 7),)))
    with pytest.raises(ManifestError, match="cannot be read"):
        add_with_manifest(other, file, tmp_path / "absent.toml", says("onnx", *YOLOX))


@pytest.mark.parametrize(
    ("file", "name"), [("a b.tar.onnx", "a-b.tar"), ("..x..y.onnx", "x.y"), ("模型.onnx", ""), ("A" * 90, "a" * 64)]
)
def test_names_come_from_files(file: str, name: str) -> None:
    assert name_of(file) == name


def test_the_name_of_a_file_leaves_the_size_of_its_input_away(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    name = add_file(store, made(tmp_path, "yolox_nano_416.onnx"), says("onnx", *YOLOX)).name
    assert name == "yolox-nano"
    assert add_file(store, made(tmp_path, "yolox_nano_7.onnx", b"7"), says("onnx", *YOLOX)).name == "yolox-nano-7"
    with pytest.raises(ManifestError, match="yard"):  # a name that the package has is refused in either form
        add_file(store, made(tmp_path, "yard_416.onnx", b"y"), says("onnx", *YOLOX))


@pytest.mark.parametrize("name", DETECTORS)
def test_the_real_detectors_are_recognised_as_their_recipes_say(tmp_path: Path, name: str) -> None:
    file_name, _, picture, decoder = DETECTORS[name]
    file = need_data("detection_models", file_name)
    inputs, outputs, _ = load(file)
    format_ = "tflite" if file.suffix == ".tflite" else "onnx"
    labels = "coco90" if name == "ssd" else "coco80"
    manifest = add_file(Store(tmp_path), file, says(format_, inputs, outputs), AddOptions(name=name, labels=labels))
    assert manifest.decoder is not None
    assert manifest.input is not None
    assert manifest.decoder.kind == decoder["kind"]
    for key, value in picture.items():
        have = getattr(manifest.input, key)
        assert (list(have) if isinstance(have, tuple) else have) == value, key
