"""`POST /v1/detect`: an image in, detections out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from nearfar.gateway.answers import answer_as_json
from nearfar.models.manifest_toml import to_toml
from nearfar.models.process import Pipeline
from nearfar.models.store import Store
from nearfar.runtimes import registry
from nearfar.types.ids import ServiceId
from nearfar.types.image import Image
from nearfar.types.request import Answer, Stages
from tests.fleetlab import Node
from tests.gateway.raw import count, exchange, problem_of, request

YARD = "/v1/detect?model=yard"
JPEG = {"Content-Type": "image/jpeg"}


def picture(width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """Coloured blocks on grey."""
    image = np.full((height, width, 3), 96, np.uint8)
    image[60:180, 40:100] = (30, 60, 200)
    image[100:200, 180:280] = (40, 190, 220)
    return image


def encoded(suffix: str = ".jpg", image: NDArray[np.uint8] | None = None) -> bytes:
    done, data = cv2.imencode(suffix, picture() if image is None else image)
    assert done
    return data.tobytes()


def told_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_the_answer_is_that_of_the_model_called_directly(http: httpx.Client, tmp_path: Path) -> None:
    stored = Store(tmp_path).get("yard")
    told = told_of(http.post(YARD, content=encoded(".png"), headers={"Content-Type": "image/png"}))
    variant = stored.manifest.variant(told["variant"])
    engine = {"onnx": "onnx", "tflite": "litert"}[variant.format]
    with registry.runtime(engine).load(stored.open(variant.id)) as loaded:
        pipeline = Pipeline(stored.manifest, variant, loaded.inputs, loaded.outputs)
        inputs, geometry = pipeline.prepare(Image.bgr(picture()))
        outputs = pipeline.finish(loaded.infer(inputs), geometry)
    answer = Answer(outputs, ServiceId("house/yard"), told["variant"], Stages())
    want = answer_as_json(answer, to_toml(stored.manifest))
    assert told["detections"] == want["detections"]
    assert (told["model"], told["task"], told["served_by"]) == ("yard", "object-detection", "house/yard")
    assert set(told["stages_ms"]) == {"link", "queue", "preprocess", "inference", "postprocess"}


def test_headers_say_who_answered_and_where_the_time_went(http: httpx.Client) -> None:
    answer = http.post(YARD, content=encoded(), headers=JPEG)
    assert answer.headers["nearfar-served-by"] == "house/yard"
    stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert set(stages) == {"link", "queue", "preprocess", "inference", "postprocess"}
    assert all(float(spent) >= 0 for spent in stages.values())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize(
    "kind", ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", "IMAGE/X; a=b", None]
)
def test_pictures_are_known_by_their_bytes(http: httpx.Client, suffix: str, kind: str | None) -> None:
    answer = http.post(YARD, content=encoded(suffix), headers={"Content-Type": kind} if kind else {})
    assert "detections" in told_of(answer)


def test_a_form_gives_what_the_bare_picture_gives(http: httpx.Client) -> None:
    bare = told_of(http.post(YARD, content=encoded(), headers=JPEG))
    form = told_of(http.post(YARD, files={"image": ("yard.jpg", encoded(), "image/jpeg")}, data={"note": "x"}))
    assert form["detections"] == bare["detections"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "told"),
    [
        (b"", JPEG, 400, "The body is empty"),
        (b"this is text", JPEG, 400, "not a picture of a known format"),
        (b"\xff\xd8\xff\xe0", JPEG, 400, "cut off"),
        (b"\x89PNG\r\n\x1a\n", {"Content-Type": "image/png"}, 400, "not a picture"),
        (encoded()[:-200], JPEG, 400, "cut off"),
        (encoded()[:30], JPEG, 400, "cut off"),
        (encoded(".png")[:-30], JPEG, 400, "cut off"),
        (encoded(".webp")[:-30], JPEG, 400, "cut off"),
        (encoded(".bmp")[:-30], JPEG, 400, "cannot be decoded"),
        (b"GIF89a" + bytes(100), {"Content-Type": "image/gif"}, 400, "JPEG, PNG, WebP or BMP"),
        (b"{}", {"Content-Type": "application/json"}, 415, "application/json, not an image"),
        (b"hello", {"Content-Type": "text/plain; charset=utf-8"}, 415, "text/plain, not an image"),
        (b"hello", {"Content-Type": "multipart/form-data"}, 400, "form cannot be read"),
        (b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "form"),
        (b"\xff\x00", {"Content-Type": "multipart/form-data; boundary=\xff"}, 400, "form"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_bodies_without_a_picture(
    http: httpx.Client, body: bytes, headers: dict[str, str], status: int, told: str
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = http.post(YARD, content=body, headers=raw)
    assert answer.status_code == status, answer.text
    assert told in problem_of(answer.content)["error"]


def test_a_form_without_a_file(http: httpx.Client) -> None:
    answer = http.post(YARD, files={"image": (None, "text")})
    assert answer.status_code == 400 and "holds no file" in problem_of(answer.content)["error"]


def test_a_form_of_very_many_parts(http: httpx.Client) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\na\r\n'
    body = part * 10_000 + b"--x--\r\n"
    answer = http.post(YARD, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400 and "Too many files" in problem_of(answer.content)["error"]


def test_which_model_must_be_said_when_there_are_several(http: httpx.Client) -> None:
    answer = http.post("/v1/detect", content=encoded(), headers=JPEG)
    assert answer.status_code == 400
    assert (
        "Add ?model= with one of add, counted, every-dtype, identity, slow, yard" in problem_of(answer.content)["error"]
    )


def test_a_model_of_arrays_sees_nothing(http: httpx.Client) -> None:
    answer = http.post("/v1/detect?model=identity", content=encoded(), headers=JPEG)
    assert answer.status_code == 400 and "takes tensors, not images" in problem_of(answer.content)["error"]


def test_an_unknown_model_is_told_with_the_nearest_name_and_counted_as_one(http: httpx.Client) -> None:
    before = count(http, "(unknown)", "unknown-model")
    for name in ("yrad", "yarn", "%2A%2A"):
        answer = http.post(f"/v1/detect?model={name}", content=encoded(), headers=JPEG)
        assert answer.status_code == 404
    answer = http.post("/v1/detect?model=yardd", content=encoded(), headers=JPEG)
    assert "did you mean yard" in problem_of(answer.content)["error"]
    assert count(http, "(unknown)", "unknown-model") == before + 4


def test_bad_pictures_do_not_put_the_service_out(house: Node, http: httpx.Client) -> None:
    for _ in range(10):
        http.post(YARD, content=encoded()[:-200], headers=JPEG)
    told_of(http.post(YARD, content=encoded(), headers=JPEG))
    row = house.service_json("yard")
    assert row is not None and row["healthy"] and row["failures_seen_here"] == 0


def test_a_length_that_is_a_lie(house: Node) -> None:
    """Less than stated: the gateway waits for the rest, and the client closes; more: the rest is no request."""
    body = encoded()
    status, _, _ = exchange(house.url, request(YARD, {"Content-Length": str(len(body) - 100), **JPEG}, body))
    assert status == 400
